import os
import pickle
import subprocess
import sys
from pathlib import PurePosixPath

import pytest

from transfusion_jax.errors import StorageError
from transfusion_jax.storage import gcs as buckets
from transfusion_jax.storage.gcs import BucketPath, read_ranges, storage_errors


def test_a_path_has_the_parts_of_pathlibs():
    path = BucketPath("a-bucket") / "run" / "model.v3.json"
    assert str(path) == "gs://a-bucket/run/model.v3.json"
    assert (path.bucket, path.name, path.suffix, path.suffixes) == (
        "a-bucket",
        "model.v3.json",
        ".json",
        [".v3", ".json"],
    )
    assert path.parent == BucketPath("a-bucket/run") == path.with_name("x").parent
    assert path.relative_to(BucketPath("a-bucket")) == PurePosixPath("run/model.v3.json")
    assert pickle.loads(pickle.dumps(path)) == path.absolute() == path
    with pytest.raises(TypeError):
        os.fspath(path)  # no local file of that name may come of it


def test_an_emulator_is_not_asked_for_a_buckets_kind_whoever_imports_gcsfs_first():
    code = """
import gcsfs, gcsfs.core
from transfusion_jax.storage import gcs
core = gcsfs.core.GCSFileSystem
assert gcsfs.GCSFileSystem is not core
assert type(gcs._filesystem("http://localhost:1")) is core
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GCSFS")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_objects_are_put_read_listed_copied_and_deleted(remote, tmp_path):
    assert not remote.exists()
    assert list(remote.iterdir()) == []
    assert remote.sizes() == {}
    data = bytes(range(256)) * 300 + b"\r\n\r\n"
    (remote / "4/a.bin").write_bytes(data)
    (remote / "40/a.bin").write_text("é")
    (remote / "4.txt").write_text("x\r\ny\n")
    assert (remote / "4/a.bin").read_bytes() == data
    assert (remote / "4/a.bin").read_bytes(300, 310) == data[300:310]
    assert (remote / "4.txt").read_text() == "x\r\ny\n"
    assert read_ranges([(remote / "4.txt", 0, 2), (remote / "40/a.bin", None, None)]) == [b"x\r", "é".encode()]
    assert remote.is_dir()
    assert not remote.is_file()
    assert (remote / "4.txt").is_file()
    assert [path.name for path in remote.iterdir()] == ["4", "4.txt", "40"]
    assert remote.sizes() == {"4.txt": 5, "4/a.bin": len(data), "40/a.bin": 2}
    (remote / "4/a.bin").copy(remote / "5/b.bin")
    assert (remote / "5/b.bin").download(tmp_path / "b").read_bytes() == data
    (remote / "6").upload(tmp_path / "b")
    assert (remote / "6").read_bytes() == data
    (remote / "4").remove()
    (remote / "4").remove()
    (remote / "6").unlink()
    assert remote.sizes().keys() == {"4.txt", "40/a.bin", "5/b.bin"}
    (remote / "6").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match="no such object"):
        (remote / "6").unlink()
    with pytest.raises(FileNotFoundError):
        (remote / "6").read_bytes()


def test_what_is_not_available_for_a_moment_is_asked_for_again(remote):
    (remote / "flaky").write_text("here")
    assert (remote / "flaky").read_text() == "here"


def test_a_bucket_that_refuses_is_one_sentence(emulated):
    forbidden, missing = BucketPath("forbidden-bucket/run"), BucketPath("mistyped-bucket/run")
    for use in (BucketPath.exists, lambda path: list(path.iterdir()), lambda path: path.write_text("x")):
        with pytest.raises(StorageError, match=r"^gs://forbidden-bucket/run cannot be used: forbidden to these"):
            use(forbidden)
    with pytest.raises(
        StorageError, match=r"^cannot write gs://mistyped-bucket/run: there is no bucket gs://mistyped"
    ):
        missing.write_text("x")
    assert not missing.exists()
    assert list(missing.iterdir()) == []


def test_a_service_that_does_not_answer_is_given_up_after_a_while(monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://localhost:1")
    monkeypatch.setattr(buckets, "FIRST", 1.0)
    with pytest.raises(StorageError, match="gs://far-away/x cannot be reached: no answer within 1 s") as raised:
        BucketPath("far-away/x").exists()
    assert raised.value.exit_code == 74


def test_what_the_library_raises_is_known():
    from gcsfs.retry import HttpError

    assert {OSError, HttpError, KeyError} <= set(storage_errors(KeyError))
