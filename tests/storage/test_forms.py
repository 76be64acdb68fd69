"""Files of our own that are torn, foreign or old end in one sentence with their name, whatever is in them."""

import json
import math
import shutil
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfusion_jax.cli import main
from transfusion_jax.config import ConfigError
from transfusion_jax.errors import UserError
from transfusion_jax.evaluation.results import read_entries
from transfusion_jax.scaling.reference import load_reference
from transfusion_jax.storage.forms import misfit
from transfusion_jax.training.checkpoint.reader import SIZES, CheckpointReader
from transfusion_jax.training.monitoring.heartbeat import read_heartbeat
from transfusion_jax.training.run_dir import Workdir

STORED = Path(__file__).parents[1] / "stored/before-the-house.tar.xz"
TORN = [
    b"",
    b"{",
    b'{"a": 1',
    b"[]",
    b"3",
    b"null",
    b"\xff\xfe",
    b"[" * 9000,
    b'"text"',
    b"{}",
    b'{"a": {"b": [1]}}',
]
FILES = {  # by the command that reads them
    "doctor run": ["run/config.json", "run/manifest.json", "run/attempts/00001.json"],
    "train --dry-run --workdir run": ["run/config.json", "run/manifest.json"],
    "doctor digits": ["digits/data.json"],
    "doctor --verify digits": ["digits/data.json", "digits/shards/00000.json"],
    "autoencoder reconstruct --workdir ae --output a.png": ["ae/config.json", "ae/manifest.json"],
}
CASES = [(command, name) for command, names in FILES.items() for name in names]
REPLACED = [None, True, -1, 1.5, "x", "", [], [1], [[]], {}, {"a": 1}]
HUGE = [10**400, -(10**400), 10**30, 2**63, -(2**63) - 1]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    with tarfile.open(STORED) as archive:
        archive.extractall(folder)
    return folder


def ends_in_a_sentence(command, name, capsys):
    """The exit code and what was said: one sentence about that folder, doctor's report, or all that goes on."""
    code = main(command.split())
    said = capsys.readouterr()
    assert code in (0, 1, 2)
    if code == 2:
        assert said.err.startswith("transfusion: ")
        assert len(said.err.splitlines()) == 1
        assert name.partition("/")[0] in said.err
    return code, said.out + said.err


@pytest.mark.parametrize(("command", "name"), CASES)
def test_a_torn_file_is_named(command, name, stored, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(copied(stored, name, tmp_path))
    for torn in TORN:
        Path(name).write_bytes(torn)
        code, said = ends_in_a_sentence(command, name, capsys)
        assert code != 0, torn
        assert Path(name).name in said


@pytest.mark.parametrize(("command", "name"), [case for case in CASES if "reconstruct" not in case[0]])
def test_a_file_with_a_value_of_another_type_is_named_or_read(command, name, stored, tmp_path, capsys, monkeypatch):
    """As a foreign program, or a version to come, might have written it: without the hash of its content."""
    monkeypatch.chdir(copied(stored, name, tmp_path))
    whole = json.loads(Path(name).read_text())
    whole.pop("digest", None)
    for number, path in enumerate(paths(whole)):
        others = [value for value in REPLACED if type(value) is not type(at(whole, path))]
        removed = (...,) if isinstance(path[-1], str) else ()
        for value in (others[number % len(others)], *removed):
            Path(name).write_text(json.dumps(put(whole, path, value)))
            ends_in_a_sentence(command, name, capsys)


@pytest.mark.parametrize(("command", "name"), [case for case in CASES if "reconstruct" not in case[0]])
def test_a_file_with_a_number_of_any_length_is_named_or_read(command, name, stored, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(copied(stored, name, tmp_path))
    whole = json.loads(Path(name).read_text())
    whole.pop("digest", None)
    numbers = (path for path in paths(whole) if type(at(whole, path)) in (int, float))
    for number, path in enumerate(numbers):
        Path(name).write_text(json.dumps(put(whole, path, HUGE[number % len(HUGE)])))
        ends_in_a_sentence(command, name, capsys)


@pytest.mark.parametrize("form", [int, float])
def test_whole_numbers_have_64_bits(form):
    assert misfit({"a": 2**63 - 1, "b": -(2**63), "c": 0}, {...: form}) == ""
    for number in HUGE:
        assert misfit({"a": number}, {"a": form}).startswith("a is")


def copied(stored, name, folder):
    """A copy of what the command reads."""
    shutil.copytree(stored, folder / "copy")
    return folder / "copy"


def paths(values, path=()):
    """Where the values of nested objects and lists are, the outer ones first."""
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from paths(value, (*path, key))


def at(values, path):
    return at(values[path[0]], path[1:]) if path else values


def put(values, path, value):
    """The values with one of them replaced, or for ... left out."""
    key, rest = path[0], path[1:]
    new = dict(values) if isinstance(values, dict) else list(values)
    if rest:
        new[key] = put(values[key], rest, value)
    elif value is ...:
        del new[key]
    else:
        new[key] = value
    return new


def test_a_torn_file_of_numbers_is_named(tmp_path):
    """Of evaluations and of a checkpoint's sizes, by the functions that read them."""
    workdir = Workdir(tmp_path)
    sizes = tmp_path / "checkpoints/2" / SIZES
    sizes.parent.mkdir(parents=True)
    for torn in TORN:
        workdir.evaluation.write_bytes(torn)
        sizes.write_bytes(torn)
        if torn not in (TORN[-1], b"{}"):  # no evaluations: a former version's
            with pytest.raises(UserError, match=r"evaluation\.json is damaged"):
                read_entries(workdir)
        if torn != b"{}":
            with pytest.raises(UserError, match="checkpoint 2 is damaged"):
                CheckpointReader(workdir.checkpoints).listed(2)
    workdir.evaluation.write_text('{"evaluations": [{"step": 1}]}')
    with pytest.raises(UserError, match=r"evaluations\[0\]\.metrics missing"):
        read_entries(workdir)


def test_a_torn_reference_is_named(tmp_path):
    path = tmp_path / "mine.json"
    for torn in TORN:
        path.write_bytes(torn)
        with pytest.raises(UserError, match=r"mine\.json"):
            load_reference(str(path))
    path.write_text('{"name": 3}')
    with pytest.raises(ConfigError, match=r"mine\.json is no reference \(name must be of type str, not 3\): write"):
        load_reference(str(path))


@pytest.mark.parametrize("torn", TORN)
def test_a_torn_heartbeat_is_none(torn, tmp_path):
    (tmp_path / "heartbeat.json").write_bytes(torn)
    assert read_heartbeat(tmp_path / "heartbeat.json") is None


FORM = {
    "name": str,
    "sizes": [int],
    "about?": {"mean": (None, float)},
    "counts": {"a": int, ...: int},
    "pair?": [int, str],
}
GOOD = {"name": "a", "sizes": [1], "about": {"mean": None, "more": []}, "counts": {"a": 1, "b": 2}, "more": 3}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"sizes": []}, ""),
        ({"about": {"mean": 3}}, ""),
        ({"name": 3}, "name is '3'"),
        ({"sizes": {}}, "sizes is no list"),
        ({"pair": [1, "a"]}, ""),
        ({"pair": [1]}, "pair has 1 entries"),
        ({"pair": [1, 2]}, "pair[1] is '2'"),
        ({"sizes": [1, True]}, "sizes[1] is 'True'"),
        ({"about": {"mean": math.inf}}, "about.mean is 'inf'"),
        ({"about": {}}, "about.mean missing"),
        ({"counts": {"b": 1}}, "counts.a missing"),
        ({"counts": {"a": 1, "b": "1"}}, "counts.b is '1'"),
        ({"counts": []}, "counts is no object"),
    ],
)
def test_what_does_not_fit_is_named(changes, said):
    assert misfit(GOOD | changes, FORM) == said


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
)


@settings(max_examples=50, deadline=None)
@given(JSON)
def test_any_value_fits_or_does_not(value):
    assert isinstance(misfit(value, FORM), str)
    assert misfit(value, FORM) != ""
