import pytest

from transfusion_jax.training.checkpoint import commit
from transfusion_jax.training.checkpoint.commit import (
    UNFINISHED,
    UNWANTED,
    WHOLE,
    delete_folder,
    move,
    numbered,
    remove_unfinished,
)
from transfusion_jax.training.checkpoint.errors import DamagedCheckpoint
from transfusion_jax.training.checkpoint.manager import Checkpoints
from transfusion_jax.training.checkpoint.reader import SIZES


def fill(folder):
    for name in ("a", "state/b", WHOLE):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_a_folder_is_deleted_or_moved_on_a_disk_as_in_a_bucket(remote, tmp_path):
    for directory in (remote / "checkpoints", tmp_path / "checkpoints"):
        assert numbered(directory) == []
        remove_unfinished(directory)
        for step in (4, 40, 8):
            fill(directory / str(step))
        assert numbered(directory) == [4, 8, 40]
        delete_folder(directory / "4")
        (directory.parent / "aside").mkdir()
        moved = move(directory / "8", directory.parent / "aside/8-1")
        assert numbered(directory) == [40]
        assert [(moved / name).read_text() for name in ("a", "state/b", WHOLE)] == ["a", "state/b", WHOLE]


def test_what_a_kill_left_is_cleaned_away(remote, tmp_path):
    fill(remote / "8")
    (remote / "12/a").write_text("an unfinished save, or deletion")
    assert numbered(remote) == [8]
    remove_unfinished(remote)
    assert list(remote.sizes()) == ["8/a", f"8/{WHOLE}", "8/state/b"]
    for name in ("8", f"12{UNFINISHED}", f"4{UNWANTED}"):
        fill(tmp_path / name)
    remove_unfinished(tmp_path)
    assert numbered(tmp_path) == [8]
    assert [path.name for path in tmp_path.iterdir()] == ["8"]


def test_a_kill_at_any_moment_leaves_a_folder_in_one_place(remote, monkeypatch):
    """Each change to the bucket may be the last."""

    class Killed(Exception):
        pass

    source, target, left = remote / "checkpoints/8", remote / "aside/8-1", [0]

    def counting(function):
        def call(*arguments, **options):
            if not left[0]:
                raise Killed
            left[0] -= 1
            return function(*arguments, **options)

        return call

    for name in ("copy", "unlink", "remove"):
        monkeypatch.setattr(commit.BucketPath, name, counting(getattr(commit.BucketPath, name)))
    for changes in range(5):
        left[0] = 99
        remote.remove()
        fill(source)
        left[0] = changes
        with pytest.raises(Killed):
            move(source, target)
        whole = [folder for folder in (source, target) if (folder / WHOLE).is_file()]
        assert whole
        assert all({"a", "state/b"} <= folder.sizes().keys() for folder in whole)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": []}', b"\xff"])
def test_a_damaged_list_of_files_is_told_of(tmp_path, content):
    (tmp_path / "4").mkdir()
    (tmp_path / "4" / SIZES).write_bytes(content)
    with pytest.raises(DamagedCheckpoint, match=r"checkpoint 4 is damaged: sizes\.json cannot be read"):
        Checkpoints(tmp_path).listed(4)
