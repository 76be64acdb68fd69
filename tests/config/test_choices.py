"""Tables of choices: what stands in them, and the three ways to add to them."""

import json
import subprocess
import sys

import numpy as np
import pytest

from helpers import tiny_config
from transfusion_jax import config as configs
from transfusion_jax.config import NOISE_SCHEDULES, Choices, ConfigError, choices
from transfusion_jax.diffusion.schedule import make_schedule

TABLES = [table for table in vars(choices).values() if isinstance(table, Choices)]
ADDING = """
import numpy as np
from ml_collections import ConfigDict
from transfusion_jax.config import NOISE_SCHEDULES
from transfusion_jax.diffusion.schedule import Schedule

@NOISE_SCHEDULES.add("{name}")
def steep(timesteps):
    '''As steep as {power}.'''
    return Schedule((1 - np.arange(timesteps + 1) / (timesteps + 1)) ** {power})

def get_config(arg):
    return ConfigDict({values})
"""


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch):
    """What a test adds is gone after it."""
    for table in TABLES:
        monkeypatch.setattr(table, "_added", dict(table._added))
        monkeypatch.delitem(table.__dict__, "_installed", raising=False)
    monkeypatch.setattr(choices, "_extensions", {})


@pytest.mark.parametrize("table", TABLES, ids=[table.name for table in TABLES])
def test_each_choice_has_a_line_of_help_and_an_implementation(table):
    assert len(table) > 1 or table is configs.OPTIMIZERS
    for name in table:
        assert table.help[name].endswith((".", ":"))
        assert table[name] is not None


def test_what_python_adds_is_checked_listed_and_found():
    def level(timesteps):
        """Level."""

    assert NOISE_SCHEDULES.add("level", level) is level
    NOISE_SCHEDULES.add("flat", help="Flat.")(level)
    assert NOISE_SCHEDULES["flat"] is level
    assert {name: NOISE_SCHEDULES.help[name] for name in ("level", "flat")} == {"level": "Level.", "flat": "Flat."}
    assert tiny_config(diffusion__schedule="level").diffusion.resolved_schedule == "level"


@pytest.mark.parametrize("name", ["cosine", "level"])
def test_a_name_that_is_taken_is_refused(name):
    NOISE_SCHEDULES.add("level", print)
    with pytest.raises(ConfigError, match=f"NOISE_SCHEDULES has '{name}' already .*choose another name"):
        NOISE_SCHEDULES.add(name, print)


def test_an_unknown_name_is_answered_with_the_nearest_and_how_to_add_one():
    with pytest.raises(ConfigError) as caught:
        tiny_config(diffusion__schedule="cosin")
    assert str(caught.value) == (
        "diffusion.schedule is 'cosin'; did you mean 'cosine'? (a config file adds one with NOISE_SCHEDULES.add: "
        "docs/extending.md)"
    )


def test_a_config_file_adds_and_its_text_is_kept_in_the_config(tmp_path):
    config = configs.load(written(tmp_path, "mine"))
    assert list(config.extensions) == ["mine.py"]
    assert "def steep" in config.extensions["mine.py"]
    assert configs.load(written(tmp_path, "mine")) == config  # again: it is the same file
    assert configs.parse(configs.to_dict(config)) == config
    np.testing.assert_allclose(make_schedule(config.diffusion).alpha_bar[:2], [1, 1 - 1 / 1001])


def test_another_process_needs_the_config_alone(tmp_path):
    """As one that resumes a run does, or a loader's."""
    config = configs.load(written(tmp_path, "mine"))
    (tmp_path / "mine.py").unlink()
    (tmp_path / "config.json").write_text(json.dumps(configs.to_dict(config)))
    code = (
        "import json, sys; from transfusion_jax import config, diffusion\n"
        "from transfusion_jax.diffusion.schedule import make_schedule\n"
        "found = config.parse(json.load(open(sys.argv[1]))); print(make_schedule(found.diffusion).timesteps)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "config.json"], capture_output=True, text=True)
    assert done.stdout == "1000\n", done.stderr


def test_the_users_file_counts_before_the_one_that_a_run_keeps(tmp_path):
    old = configs.to_dict(configs.load(written(tmp_path, "mine", power=1)))
    new = configs.load(written(tmp_path, "mine", power=2))
    assert configs.parse(old).diffusion == new.diffusion
    np.testing.assert_allclose(make_schedule(new.diffusion).alpha_bar[1], (1 - 1 / 1001) ** 2)


def test_two_runs_that_keep_different_files_with_one_name_are_not_mixed_up(tmp_path, monkeypatch):
    runs = []
    for power in (1, 2):
        monkeypatch.setattr(NOISE_SCHEDULES, "_added", {})
        monkeypatch.setattr(choices, "_extensions", {})
        runs.append(configs.to_dict(configs.load(written(tmp_path, "mine", power=power))))
    monkeypatch.setattr(NOISE_SCHEDULES, "_added", {})
    monkeypatch.setattr(choices, "_extensions", {})
    configs.parse(runs[0])
    with pytest.raises(ConfigError, match=r"NOISE_SCHEDULES has 'steep' already \(of mine.py\)"):
        configs.parse(runs[1])


def test_a_module_or_a_file_is_named_in_the_config(tmp_path, monkeypatch):
    (tmp_path / "noises.py").write_text(ADDING.format(name="other", power=3, values={}))
    monkeypatch.syspath_prepend(tmp_path)
    config = tiny_config(extensions=["noises"], diffusion__schedule="other")
    assert config.extensions == {"noises": ""}
    (tmp_path / "file.py").write_text(ADDING.format(name="third", power=3, values={}))
    config = tiny_config(extensions=[str(tmp_path / "file.py")], diffusion__schedule="third")
    assert list(config.extensions) == ["file.py"]


@pytest.mark.parametrize(
    ("extensions", "message"),
    [
        (["no.such.module"], "extensions: no.such.module cannot be imported"),
        (["missing.py"], "extensions: there is no file missing.py"),
        (["a/mine.py", "b/mine.py"], "extensions: two files are called mine.py: rename one"),
        ("one.py", "extensions must be a list of modules and .py files, not 'one.py'"),
    ],
)
def test_an_extension_that_cannot_be_loaded_is_named(extensions, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text("x = 1\n")
    with pytest.raises(ConfigError, match=message):
        tiny_config(extensions=extensions)


def test_an_installed_package_adds_by_its_entry_points(tmp_path, monkeypatch):
    (tmp_path / "noises_of_a_package.py").write_text("def slow(timesteps):\n    return timesteps\n")
    about = tmp_path / "noises-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: noises\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[transfusion_jax.noise_schedules]\nslow = noises_of_a_package:slow\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert tiny_config(diffusion__schedule="slow").diffusion.schedule == "slow"
    assert NOISE_SCHEDULES["slow"](7) == 7
    assert NOISE_SCHEDULES.help["slow"] == "of package noises"


def written(folder, name, power=1):
    """A config file that adds a noise schedule and uses it."""
    values = configs.to_dict(tiny_config())
    values["diffusion"]["schedule"] = "steep"
    path = folder / f"{name}.py"
    path.write_text(ADDING.format(name="steep", power=power, values=values))
    return str(path)
