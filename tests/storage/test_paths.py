import hashlib
from pathlib import Path

import pytest

from transfusion_jax.errors import UserError
from transfusion_jax.storage.gcs import BucketPath
from transfusion_jax.storage.paths import file_sizes, on_disk, place, put, read_all, remove, sha256, within


def test_a_name_is_a_local_path_or_one_in_a_bucket():
    assert place("runs/a:300") == Path("runs/a:300")
    assert place("gs://b/runs/a/") == BucketPath("b/runs/a") == place(BucketPath("b/runs/a"))


@pytest.mark.parametrize("name", ["s3://b/x", "hdfs://host/x", "file:///x", "gs://", "gs:/b/x", "gs:b/x"])
def test_another_scheme_is_one_sentence(name):
    with pytest.raises(UserError, match=r"gs://BUCKET/FOLDER") as raised:
        place(name)
    assert raised.value.exit_code == 2
    assert "\n" not in str(raised.value)


def test_both_kinds_are_treated_alike(remote, tmp_path):
    for folder in (remote, tmp_path / "local"):
        for number in range(3):
            made = tmp_path / "made"
            made.write_bytes(b"%d" % number)
            (folder / "in").mkdir(parents=True, exist_ok=True)
            put(made, folder / f"in/{number}")
            assert not made.exists()
        assert file_sizes(folder) == {f"in/{number}": 1 for number in range(3)}
        assert list(read_all([folder / f"in/{number}" for number in (2, 0)])) == [b"2", b"0"]
        assert sha256(folder / "in/1") == hashlib.sha256(b"1").hexdigest()
        with on_disk(folder / "in/2") as file:
            assert file.read_bytes() == b"2"
        assert within(folder / "in/2", folder) == "in/2"
        remove(folder)
        assert not folder.exists()
