"""Every field of every config refuses absurd values, in one sentence that names the field and the value."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import tiny_config, token_config
from transfusion_jax import config as configs
from transfusion_jax.config import AutoencoderRun, Config, ConfigError, MeshConfig
from transfusion_jax.config.parsing import parse_as
from transfusion_jax.errors import LARGEST, MOST, printable
from transfusion_jax.scaling.ladder import Ladder

ROOT = Path(__file__).parents[2]
NUMBERS = [math.nan, math.inf, -math.inf, 1e300, -1e30, 10**400, -1]
WORDS = ["", "²", "\0", "1e400", "x" * 5000]
OTHERS = [None, [], {}, [[]], {1: 2}]
ABSURD = {  # by a field's type: what no such field can be
    int: [*NUMBERS, 1e30, 2**63, 2.5, True, *WORDS, *OTHERS],
    float: [*NUMBERS, True, *WORDS, *OTHERS],
    bool: [1, 0.0, *WORDS, *OTHERS],
    str: ["a\0b", "\ud800", "\udcff", 3, True, 1e30, *OTHERS],
    tuple: [3, math.nan, "", "²", None, {}, [None], ["\0"], [[1]]],
    Mapping: [3, math.nan, "", None, [], {1: 1}, {"\0": 1}, {"a": None}, {"²": math.nan}],
}
ALLOWED = {**{f"mesh.{axis.name}": (-1,) for axis in dataclasses.fields(MeshConfig)}}  # what is not absurd there
LADDER = dict(
    name="l",
    families=dict(a=dict(config="configs/x.py:{size}")),
    scales=[dict(size="s", elements=1e6)],
    sweep=dict(rates=[1e-3], size="s", elements=1e6),
)
AUTOENCODER = configs.load_run(f"{ROOT}/configs/autoencoder.py:kl,small", ["losses.lpips=0", "losses.identity=0"])
ROOTS = {
    "config": (Config, configs.to_dict(tiny_config())),
    "codes": (Config, configs.to_dict(token_config())),
    "autoencoder": (AutoencoderRun, configs.to_dict(AUTOENCODER)),
    "ladder": (Ladder, configs.to_dict(parse_as(Ladder, LADDER))),
}


def fields(kind, values, path=()):
    """Each field's dotted path and type, those of named entries and of lists of fields among them."""
    for name, hint in typing.get_type_hints(kind).items():
        if typing.get_origin(hint) is types.UnionType:
            hint = typing.get_args(hint)[0]
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        here, value = (*path, name), values[name]
        if dataclasses.is_dataclass(hint):
            yield from fields(hint, value, here)
            continue
        yield here, origin or hint
        if origin in (tuple, Mapping) and dataclasses.is_dataclass(arguments[origin is Mapping]):
            keys = value if origin is Mapping else range(len(value))
            for key in keys:
                yield from fields(arguments[origin is Mapping], value[key], (*here, key))


CASES = [
    pytest.param(root, path, kind, id=f"{root}:{'.'.join(map(str, path))}")
    for root, (config, values) in ROOTS.items()
    for path, kind in fields(config, values)
]


@pytest.mark.parametrize(("root", "path", "kind"), CASES)
def test_a_field_refuses_what_is_absurd(root, path, kind):
    config, values = ROOTS[root]
    for absurd in ABSURD[kind]:
        if absurd in ALLOWED.get(".".join(map(str, path)), ()):
            continue
        with pytest.raises(ConfigError) as error:
            parse(config, put(values, path, absurd))
        said = str(error.value)
        assert [name for name in path if isinstance(name, str)][-1] in said, said
        assert len(printable(said).splitlines()) == 1, said
        if (isinstance(absurd, int | float) and abs(absurd) < 2**64) or absurd in WORDS:
            assert str(absurd) in said or repr(absurd) in said, said


def parse(config, values):
    return parse_as(config, values) if config is Ladder else configs.parse_run(values)


def put(values, path, value):
    """The values with one of them replaced."""
    if not path:
        return value
    name, rest = path[0], path[1:]
    if isinstance(values, list):
        return [put(old, rest, value) if number == name else old for number, old in enumerate(values)]
    return {**values, name: put(values[name], rest, value)}


@pytest.mark.parametrize("root", ROOTS)
def test_the_values_that_they_are_put_into_are_fine(root):
    config, values = ROOTS[root]
    assert configs.to_dict(parse(config, values)) == values


PATHS = [".".join(map(str, case.values[1])) for case in CASES if case.values[0] == "config"]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(PATHS),
    st.one_of(st.text(max_size=40), st.sampled_from(["(" * 900, "9" * 6000, "1,", "{}", "a=b"])),
)
def test_an_override_is_honoured_or_refused(path, text):
    try:
        found = configs.override(tiny_config(), [f"{path}={text}"])
    except ConfigError:
        return
    assert configs.parse(configs.to_dict(found)) == found


@pytest.mark.parametrize(
    "entry", ["", "=", ".=1", "..=1", "model.=1", "model..width=1", "steps", "a.b=1", "steps.a=1", "²=1"]
)
def test_an_override_that_names_no_field_is_refused(entry):
    with pytest.raises(ConfigError):
        configs.override(tiny_config(), [entry])


@pytest.mark.parametrize("entry", ["data.sources..path=x", 'data.sources={"": {"path": "x"}}'])
def test_an_entry_without_a_name_is_refused(entry):
    with pytest.raises(ConfigError, match=r"data\.sources has an entry without a name"):
        configs.override(tiny_config(), [entry])


def test_numbers_are_those_that_devices_compute_with():
    assert tiny_config(steps=MOST // 4, optimizer__learning_rate=LARGEST / 2, seed=2**63 - 1).seed == 2**63 - 1
    with pytest.raises(ConfigError, match=r"steps 536870912 × batch_rows 4 are 2,147,483,648 rows"):
        tiny_config(steps=MOST // 4 + 1)
    with pytest.raises(ConfigError, match=r"rope_theta must be at least 1, not 0\.5"):
        tiny_config(model__rope_theta=0.5)
