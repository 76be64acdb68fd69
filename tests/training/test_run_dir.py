import json

import pytest

from helpers import begin_tiny, tiny_config
from transfusion_jax.config import ConfigError
from transfusion_jax.storage.atomic import DamagedFile, write_json
from transfusion_jax.training.facts import trained_shapes
from transfusion_jax.training.run_dir import Workdir, union


def test_a_run_exists_once_its_config_does_and_keeps_its_history(tmp_path):
    workdir = Workdir(tmp_path / "run")
    assert not workdir.exists()
    with pytest.raises(ConfigError, match="no run in"):
        workdir.config()
    begin_tiny(workdir, "start")
    assert workdir.exists()
    assert workdir.config() == tiny_config()
    workdir.remember("damaged checkpoint", step=4, reason="")
    begin_tiny(workdir, "rewind", [(8, 12)], to=4, accepted={})
    begin_tiny(workdir, "rewind", [(10, 16)])
    history = workdir.manifest()["history"]
    assert [entry["event"] for entry in history] == ["start", "damaged checkpoint", "rewind", "rewind"]
    assert history[2].keys() == {"event", "time", "to"}
    assert workdir.skip_rows == ((8, 16),)
    assert workdir.began_from_nothing()


def test_one_process_at_a_time_trains_in_a_workdir(tmp_path):
    workdir = Workdir(tmp_path / "run")
    with workdir.locked(), pytest.raises(ConfigError, match="another process trains in"), workdir.locked():
        pass
    with workdir.locked():
        pass


def test_what_every_checkpoint_says_is_enough_to_read_it(tmp_path):
    workdir = Workdir(tmp_path)
    begin_tiny(workdir, "start")
    about = json.loads(json.dumps(workdir.about()))
    assert "--xla_force_host_platform_device_count=8" in about["flags"]["XLA_FLAGS"]
    assert {"config", "versions", "identity_hash", "data_hash", "codec", "skip_rows", "parameters"} <= about.keys()
    assert "history" not in about


def test_the_sizes_of_a_runs_images_are_read_from_its_manifest(tmp_path):
    workdir = Workdir(tmp_path)
    begin_tiny(workdir, "start")
    assert trained_shapes(workdir.manifest()) is None
    sizes = {"height": [4, 8], "width": [2, 8], "area": [16, 32]}
    path = tmp_path / "manifest.json"
    write_json(path, workdir.manifest() | {"shapes": sizes})
    assert trained_shapes(workdir.manifest()) == sizes
    write_json(path, workdir.manifest() | {"shapes": sizes | {"width": [2]}})
    with pytest.raises(DamagedFile, match=r"shapes\.width has 1 entries"):
        workdir.manifest()


@pytest.mark.parametrize(
    ("stretches", "expected"),
    [
        ([], []),
        ([(4, 6), (0, 2)], [[0, 2], [4, 6]]),
        ([(0, 4), (4, 6)], [[0, 6]]),
        ([(0, 9), (2, 3), (8, 12)], [[0, 12]]),
    ],
)
def test_a_union_is_in_order_and_does_not_touch(stretches, expected):
    assert union(stretches) == expected
