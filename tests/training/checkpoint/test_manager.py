import dataclasses
import pickle
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from transfusion_jax.config import GuardConfig, MeshConfig
from transfusion_jax.errors import CheckpointError, StorageError
from transfusion_jax.parallel.mesh import make_mesh
from transfusion_jax.storage.gcs import BucketPath
from transfusion_jax.training.checkpoint import commit, manager, reader
from transfusion_jax.training.checkpoint.errors import DamagedCheckpoint, DeletedCheckpoint
from transfusion_jax.training.checkpoint.manager import Checkpoints
from transfusion_jax.training.checkpoint.reader import CheckpointReader, to_devices
from transfusion_jax.training.step.bad_step_guard import new_guard
from transfusion_jax.training.step.state import State


def test_state_and_row_come_back_and_the_weights_alone_too(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state(3), next_row=24, metrics=None)
    with Checkpoints(tmp_path) as checkpoints:
        restored, manifest = checkpoints.restore(3, to_devices(state(0)))
        assert manifest["next_row"] == 24
        jax.tree.map(np.testing.assert_array_equal, restored, state(3))
        for which, scale in (("raw", 1), ("ema", 2)):
            weights = checkpoints.weights(3, which, to_devices(state(0).params))
            np.testing.assert_array_equal(weights["w"], np.full((2, 3), 3 * scale))


def test_checkpoints_in_a_bucket_are_whole_or_not_there(remote):
    with Checkpoints(remote / "checkpoints", keep=2) as checkpoints:
        for step, loss in ((4, 1.0), (8, 3.0), (12, 2.0), (16, None)):
            checkpoints.save(state(step), step, {"loss": loss} if loss else None)
    with Checkpoints(remote / "checkpoints") as checkpoints:
        assert checkpoints.steps == [4, 12, 16]
        assert checkpoints.find("best") == 4
        (remote / "checkpoints/16/commit_success.txt").unlink()
        assert checkpoints.steps == [4, 12]
        checkpoints.clean()
        assert not (remote / "checkpoints/16").exists()
        checkpoints.conclude(12, {"loss": 0.5})
        assert checkpoints.restore(12, to_devices(state(0)))[1]["metrics"] == {"loss": 0.5}
        jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(4, to_devices(state(0)))[0], state(4))
        name, _ = max((remote / "checkpoints/12").sizes().items(), key=lambda item: item[1])
        (remote / "checkpoints/12" / name).write_bytes(b"cut")
        with pytest.raises(DamagedCheckpoint, match=r"3 of \d+ bytes"):
            checkpoints.restore(12, to_devices(state(0)))
        moved = checkpoints.set_aside(12, remote / "aside")
        assert moved == remote / "aside/12-1"
        assert moved.is_dir()
        checkpoints.save(state(12), 12, None)
        checkpoints.wait()
        assert checkpoints.restore(12, to_devices(state(0)))[1]["next_row"] == 12


def test_a_bucket_that_is_forbidden_or_gone_is_no_damage(emulated):
    with Checkpoints(BucketPath("forbidden-bucket/checkpoints")) as checkpoints:
        with pytest.raises(StorageError, match="forbidden-bucket"):
            checkpoints.save(state(4), 4, None)
        with pytest.raises(StorageError):
            checkpoints.manifest(4)


def test_a_run_without_an_average_comes_back_without_one(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state(3, ema=False), next_row=24, metrics=None)
        checkpoints.wait()
        assert checkpoints.restore(3, to_devices(state(0, ema=False)))[0].ema is None


def test_the_newest_and_the_best_stay(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step, loss in enumerate([5.0, 1.0, 3.0, None, 2.0, None], 1):
            checkpoints.save(state(step), step, {"loss": loss} if loss else None)
            checkpoints.wait()
        assert checkpoints.steps == [2, 5, 6]
        assert (checkpoints.find("latest"), checkpoints.find("best"), checkpoints.find("5")) == (6, 2, 5)


def test_what_is_not_there_is_said(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(CheckpointError, match="no checkpoint in"):
            checkpoints.find("latest")
        checkpoints.save(state(4), 1, None)
        checkpoints.wait()
        with pytest.raises(CheckpointError, match="no checkpoint 9: there are 4, latest and best"):
            checkpoints.find("9")
        with pytest.raises(CheckpointError, match="no checkpoint was evaluated"):
            checkpoints.find("best")


def test_multiples_of_keep_every_stay_for_good(tmp_path):
    with Checkpoints(tmp_path, keep=1, keep_every=3) as checkpoints:
        for step in range(1, 8):
            checkpoints.save(state(step), step, None)
    assert checkpoints.steps == [3, 6, 7]


def test_what_was_left_of_a_save_or_a_deletion_is_cleaned_and_nothing_else(tmp_path):
    (tmp_path / "8.orbax-checkpoint-tmp/state").mkdir(parents=True)
    (tmp_path / "2.deleting").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state(4), 1, None)
        checkpoints.wait()
        checkpoints.clean()
    assert [path.name for path in tmp_path.iterdir()] == ["4"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # TensorStore's threads, late
@pytest.mark.parametrize("harm", ["flip", "truncate", "empty", "remove"])
def test_whatever_happens_to_a_file_the_state_is_as_it_was_or_refused(tmp_path, harm, capfd):
    """Every file of a checkpoint in turn; what must be refused is named."""
    with Checkpoints(tmp_path / "whole") as checkpoints:
        checkpoints.save(state(3), next_row=24, metrics={"loss": 1.5})
    random = np.random.default_rng(0)
    files = [path.relative_to(tmp_path / "whole") for path in checkpoints.path(3).rglob("*") if path.is_file()]
    assert len(files) > 8
    refused = {}
    for number, name in enumerate(files):
        damaged = Checkpoints(shutil.copytree(tmp_path / "whole", tmp_path / str(number)))
        harm_file(damaged.directory / name, harm, random)
        try:
            restored, manifest = damaged.restore(3, to_devices(state(0)))
        except DamagedCheckpoint as error:
            refused[name.name] = str(error)
        else:
            assert manifest["next_row"] == 24
            jax.tree.map(np.testing.assert_array_equal, restored, state(3))
    assert all(message.startswith("checkpoint 3 is damaged: ") for message in refused.values())
    assert "_CHECKPOINT_METADATA" in refused
    assert any(len(name) == 32 for name in refused)  # the arrays' files have hashes for names
    if harm != "flip":
        assert "Traceback" not in capfd.readouterr().err


def harm_file(path, harm, random):
    content = bytearray(path.read_bytes())
    if harm == "remove":
        path.unlink()
        return
    if harm == "flip" and content:
        content[random.integers(len(content))] ^= 1 << random.integers(8)
    path.write_bytes({"flip": content, "truncate": content[: len(content) // 2], "empty": b""}[harm])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_flipped_bit_is_found_in_every_part_of_the_arrays(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state(3), 24, None)
    file = max((p for p in checkpoints.path(3).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    whole = file.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 40)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            restored, _ = checkpoints.restore(3, to_devices(state(0)))
        except DamagedCheckpoint:
            continue
        jax.tree.map(np.testing.assert_array_equal, restored, state(3))  # it was no part of an array


def test_a_manifest_that_was_changed_is_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state(3), 24, None)
    path = checkpoints.path(3) / "_CHECKPOINT_METADATA"
    path.write_text(path.read_text().replace('"next_row": 24', '"next_row": 25'))
    with pytest.raises(DamagedCheckpoint, match="its manifest cannot be read"):
        checkpoints.manifest(3)


def test_a_state_of_another_shape_is_refused_and_is_no_damage(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state(3), 24, None)
    other = dataclasses.replace(state(3), params={"w": jnp.zeros((2, 4))})
    with pytest.raises(CheckpointError, match=r"params/w: float32\[2, 3\] -> float32\[2, 4\]") as refused:
        checkpoints.restore(3, to_devices(other))
    assert not isinstance(refused.value, DamagedCheckpoint)
    with pytest.raises(CheckpointError, match=r"ema/w: float32\[2, 3\] -> absent"):
        checkpoints.restore(3, to_devices(state(3, ema=False)))


def test_a_mesh_that_does_not_divide_a_leaf_is_refused_and_is_no_damage(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state(3), 24, None)
    mesh = make_mesh(MeshConfig(data=2, fsdp=4), jax.devices())
    split = jax.ShapeDtypeStruct((2, 3), jnp.float32, sharding=NamedSharding(mesh, P(None, "fsdp")))
    abstract = dataclasses.replace(to_devices(state(3)), params={"w": split})
    with pytest.raises(CheckpointError, match="params/w cannot be split over this mesh") as refused:
        checkpoints.restore(3, abstract)
    assert not isinstance(refused.value, DamagedCheckpoint)


def test_another_window_of_recent_steps_begins_anew_and_the_counts_stay(tmp_path):
    guard = new_guard(GuardConfig(spikes="skip", spike_window=4))
    guard = guard._replace(in_a_row=jnp.int32(2), skipped=jnp.int32(5), seen=jnp.int32(9), recent=guard.recent + 1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(dataclasses.replace(state(3), guard=guard), 24, None)
    for window in (2, 4, 8):
        wanted = new_guard(GuardConfig(spikes="skip", spike_window=window))
        restored, _ = checkpoints.restore(3, to_devices(dataclasses.replace(state(0), guard=wanted)))
        assert (restored.guard.in_a_row, restored.guard.skipped) == (2, 5)
        assert restored.guard.seen == (9 if window == 4 else 0)
        np.testing.assert_array_equal(restored.guard.recent, np.full((window, 2), 1.0 if window == 4 else 0.0))


def test_what_was_due_at_a_step_can_be_concluded_later_and_counts_for_the_best(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(state(1), 8, None, concluded=False)
        checkpoints.wait()
        assert not checkpoints.manifest(1)["concluded"]
        checkpoints.conclude(1, {"loss": 0.5})
        assert checkpoints.manifest(1)["concluded"]
        for step, loss in ((2, 1.0), (3, float("nan")), (4, 2.0)):
            checkpoints.save(state(step), 8 * step, {"loss": loss})
    assert checkpoints.steps == [1, 4]
    assert Checkpoints(tmp_path).find("best") == 1
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(1, to_devices(state(0)))[0], state(1))


READERS = {
    "restore": lambda c, step: c.restore(step, to_devices(state(0)))[0].params,
    "weights": lambda c, step: c.weights(step, "raw", to_devices(state(0).params)),
    "pieces": lambda c, step: {"w": next(c.read_pieces(step, "params/w"))[1]},
    "manifest": lambda c, step: {"w": np.full((2, 3), c.manifest(step)["step"])},
    "hash": lambda c, step: {"w": np.full((2, 3), step)} if c.hash(step, "raw") else None,
}
DELETIONS = {
    "deleted": lambda folder: commit.delete_folder(folder),
    "being deleted": lambda folder: shutil.rmtree(folder.rename(f"{folder}{commit.UNWANTED}") / "state"),
    "moved aside": lambda folder: folder.rename(folder.with_name(f"{folder.name} aside")),
}


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A folder with checkpoints of the steps 2, 3 and 4."""
    folder = tmp_path_factory.mktemp("three")
    with Checkpoints(folder) as checkpoints:
        for step in (2, 3, 4):
            checkpoints.save(state(step), 8 * step)
    return folder


@pytest.mark.parametrize("when", ["before the manifest", "after it"])
@pytest.mark.parametrize("how", DELETIONS)
@pytest.mark.parametrize("reader", READERS)
def test_what_its_run_deletes_while_it_is_read_is_not_called_damaged(
    three, tmp_path, monkeypatch, reader, how, when
):
    checkpoints = Checkpoints(shutil.copytree(three, tmp_path / "checkpoints"))
    real, leaving = Checkpoints.manifest, [4, 3]

    def manifest(self, step):
        if step in leaving[:1] and when == "before the manifest":
            DELETIONS[how](self.path(step))
        found = real(self, step)
        if step in leaving[:1]:
            DELETIONS[how](self.path(step))
        return found

    monkeypatch.setattr(CheckpointReader, "manifest", manifest)
    read, reads_on = READERS[reader], reader not in ("manifest", "hash") or when == "before the manifest"
    found = checkpoints.read("latest", lambda step: read(checkpoints, step))
    np.testing.assert_array_equal(found["w"], np.full((2, 3), 3 if reads_on else 4))
    del leaving[0]
    if reads_on:
        with pytest.raises(DeletedCheckpoint, match="3 was deleted by its run while it was read: read another"):
            checkpoints.read("3", lambda step: read(checkpoints, step))


def test_a_run_that_deletes_faster_than_can_be_read_is_not_read_for_ever(tmp_path):
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        for step in range(1, 8):
            checkpoints.save(state(step), 8 * step, {"loss": 1.0 / step})

    def read(step):
        commit.delete_folder(checkpoints.path(step))
        return checkpoints.manifest(step)

    for word in ("latest", "best"):
        assert checkpoints.find(word) == checkpoints.steps[-1]
    with pytest.raises(DeletedCheckpoint):
        checkpoints.read("best", read)
    assert checkpoints.steps == [1, 2]
    damaged = pickle.loads(pickle.dumps(DeletedCheckpoint(3)))  # raised on other processes, too
    assert (damaged.step, str(damaged)) == (3, str(DeletedCheckpoint(3)))


def test_a_checkpoint_of_a_bucket_that_is_deleted_while_it_is_read_is_not_called_damaged(remote):
    with Checkpoints(remote / "checkpoints") as checkpoints:
        checkpoints.save(state(4), 8)
    (remote / "checkpoints/4/commit_success.txt").unlink()
    (remote / "checkpoints/4/_CHECKPOINT_METADATA").unlink()
    with pytest.raises(DeletedCheckpoint):
        checkpoints.manifest(4)


def test_a_checkpoint_of_another_format_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        for module in (manager, reader):
            patch.setattr(module, "FORMAT", 99)
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(state(3), 24, None)
    with pytest.raises(CheckpointError, match="has format 99; this version reads 1"):
        checkpoints.manifest(3)


def test_a_step_is_set_aside_under_a_name_that_is_free(tmp_path):
    for number in (1, 2):
        with Checkpoints(tmp_path / "checkpoints") as checkpoints:
            checkpoints.save(state(3), 24, None)
        assert checkpoints.set_aside(3, tmp_path / "aside") == tmp_path / f"aside/3-{number}"
        assert checkpoints.steps == []


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    checkpoints = Checkpoints(tmp_path / "file")
    with pytest.raises(StorageError, match=r"checkpoint 3 could not be written .*there is no earlier one"):
        checkpoints.save(state(3), 24, None)


def state(step, ema=True):
    params = {"w": jnp.full((2, 3), float(step))}
    average = {"w": 2 * params["w"]} if ema else None
    return State(jnp.int32(step), params, {"mu": params}, average, new_guard(GuardConfig()))
