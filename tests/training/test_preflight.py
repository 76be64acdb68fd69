import os

import pytest

from helpers import digits_config, tiny_config
from transfusion_jax.config import ConfigError
from transfusion_jax.errors import StorageError, UserError
from transfusion_jax.storage.gcs import BucketPath
from transfusion_jax.training import preflight
from transfusion_jax.training.preflight import check_storage


def test_what_can_be_used_passes_and_nothing_stays(digits_folder, remote, tmp_path):
    check_storage(tmp_path / "new/run", digits_config(digits_folder))
    assert list(tmp_path.iterdir()) == []
    check_storage(remote / "run", tiny_config())
    assert remote.sizes() == {}


def test_each_failure_is_one_sentence(remote, tmp_path):
    for workdir, source, kind, message in [
        (
            BucketPath("forbidden-bucket/run"),
            None,
            StorageError,
            "forbidden-bucket/run cannot be used: forbidden",
        ),
        (
            BucketPath("mistyped-bucket/run"),
            None,
            StorageError,
            "mistyped-bucket/run cannot be used: there is no",
        ),
        (tmp_path, "gs://forbidden-bucket/data", StorageError, "cannot be used: forbidden to these credentials"),
        (tmp_path, "gs://mistyped-bucket/data", ConfigError, "gs://mistyped-bucket/data does not exist"),
        (tmp_path, "hdfs://host/data", UserError, "hdfs:// cannot be used here"),
        (tmp_path, str(tmp_path / "none"), ConfigError, "none does not exist"),
        ("/proc/run", None, StorageError, "cannot write to /proc"),
    ]:
        config = digits_config(source) if source else tiny_config()
        workdir = type(tmp_path)(workdir) if isinstance(workdir, str) else workdir
        with pytest.raises(kind, match=message) as raised:
            check_storage(workdir, config)
        assert "\n" not in str(raised.value)


def test_what_hangs_is_given_up(tmp_path, monkeypatch):
    """A pipe that nobody writes to blocks whoever opens it, as a dead network disk does."""
    monkeypatch.setattr(preflight, "WITHIN", 1.0)
    (tmp_path / "data").mkdir()
    os.mkfifo(tmp_path / "data/data.json")
    monkeypatch.setattr(type(tmp_path), "is_file", lambda path: True)
    with pytest.raises(StorageError, match=r"data cannot be reached: no answer within 1 s"):
        check_storage(tmp_path, digits_config(tmp_path / "data"))
