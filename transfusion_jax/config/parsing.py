"""The way from a file to a `Config`, and back to plain values.

A config file defines `get_config(arg)` and returns an `ml_collections.ConfigDict`. `load` parses it once.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import inspect
import json
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict

from transfusion_jax.config.autoencoder import AutoencoderRun
from transfusion_jax.config.base import Run
from transfusion_jax.config.choices import errors_of, execute, extend, read_source
from transfusion_jax.config.data import SYNTHETIC, SYNTHETIC_TEXT
from transfusion_jax.config.experiment import Config
from transfusion_jax.errors import LARGEST, MOST, ConfigError, check_text, nearest, require

R = TypeVar("R", bound=Run)
T = TypeVar("T")


def load(spec: str, overrides: Iterable[str] = ()) -> Config:
    """Reads `FILE[:arg]`, applies `a.b=value` overrides, and parses.

    Raises:
        ConfigError: the file, an override, a key or a value is not valid.
    """
    return as_model(load_run(spec, overrides))


def load_run(spec: str, overrides: Iterable[str] = ()) -> Run:
    """As `load`, for a config of either kind."""
    path, _, argument = spec.partition(":")
    values, adds = _read(Path(path), "get_config", argument)
    for entry in overrides:
        _apply_override(values, entry)
    named = values.get("extensions", ())
    if adds and isinstance(named, Mapping):  # to a table: the run keeps the file
        values["extensions"] = {**named, **extend([path])}
    elif adds and isinstance(named, list | tuple):
        values["extensions"] = [path, *named]
    return parse_run(values)


def override(config: R, overrides: Iterable[str]) -> R:
    """The config with `a.b=value` overrides applied.

    Raises:
        ConfigError: an override is not valid.
    """
    values = to_dict(config)
    for entry in overrides:
        _apply_override(values, entry)
    result = parse_run(values)
    assert isinstance(result, type(config))
    return result


def parse(values: Mapping[str, Any]) -> Config:
    """A `Config` from nested plain values, as a config file or `config.json` holds them.

    Raises:
        ConfigError: a key or a value is not valid, or they are of an autoencoder's run.
    """
    return as_model(parse_run(values))


def as_model(run: Run) -> Config:
    """The run, where it is of the mixed-modality model.

    Raises:
        ConfigError: it is of an autoencoder.
    """
    require(isinstance(run, Config), f"{run.name!r} is an autoencoder's run: transfusion autoencoder works with it")
    assert isinstance(run, Config)
    return run


def parse_run(values: Mapping[str, Any]) -> Run:
    """As `parse`, for a config of either kind: that of an autoencoder has an `architecture`.

    Its extensions are loaded first.
    """
    if values.get("extensions"):
        values = {**values, "extensions": extend(values["extensions"])}
    if isinstance(data := values.get("data"), Mapping) and data.get("sources") == "synthetic":
        model = values.get("model")
        text_only = isinstance(model, Mapping) and model.get("images") == "none"
        values = {**values, "data": {**data, "sources": SYNTHETIC_TEXT if text_only else SYNTHETIC}}
    config = _parse(AutoencoderRun if "architecture" in values else Config, values, "")
    assert isinstance(config, Run)
    return config


def read_file(path: Path, function: str, *arguments: str) -> dict[str, Any]:
    """What a function of a Python file returns, as nested plain values.

    Raises:
        ConfigError: there is no such file or function, it raises an error, or returns no ConfigDict.
    """
    return _read(path, function, *arguments)[0]


def _read(path: Path, function: str, *arguments: str) -> tuple[dict[str, Any], bool]:
    """As `read_file`, and whether the file adds to a table."""
    if not path.is_file():
        raise ConfigError(f"no config file {path}: pass one such as configs/digits.py")
    module, adds = execute(str(path), read_source(path))
    found = getattr(module, function, None)
    if not inspect.isfunction(found):
        raise ConfigError(f"{path} defines no {function}({', '.join('arg' for _ in arguments)})")
    arguments = _arguments_of(found, str(path), *arguments)
    with errors_of(str(path)):
        result = found(*arguments)
        if not isinstance(result, ConfigDict):
            raise ConfigError(f"{function} of {path} must return an ml_collections.ConfigDict")
        return result.to_dict(), adds


def _arguments_of(function: Callable, path: str, *given: str) -> tuple[str, ...]:
    """What a function of a file is called with: one that takes no argument gets none, where none is given.

    Raises:
        ConfigError: it takes others.
    """
    takes = len(inspect.signature(function).parameters)
    if takes == 0 and not any(given):
        return ()
    try:
        inspect.signature(function).bind(*given)
    except TypeError as error:
        said = f"takes no argument: leave :{given[0]} out" if takes == 0 else f"must take {len(given)} argument(s)"
        raise ConfigError(f"{path}: {function.__name__} {said}") from error
    return given


def parse_as(kind: type[T], values: Mapping[str, Any]) -> T:
    """A frozen dataclass from nested plain values.

    Raises:
        ConfigError: a key or a value is not valid.
    """
    result = _parse(kind, values, "")
    assert isinstance(result, kind)
    return result


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain values (JSON types) that `parse` reads back to the same config."""
    result: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return result


def kept(config: R) -> R:
    """The config as its run keeps it: fields that apply to one command only have their defaults."""
    return _kept(config)


def kept_values(config: Run) -> dict[str, Any]:
    """`to_dict(kept(config))`, without fields that came later and have their default: former versions read it."""
    values = to_dict(kept(config))
    _leave_out_added(config, values)
    return values


def identity(config: Run) -> dict[str, Any]:
    """The identity fields alone, as `{dotted name: value}`."""
    return dict(_identity(config, ""))


def identity_hash(config: Run) -> str:
    """A short hash of the identity fields; those that came later count where they have not their default."""
    text = json.dumps(dict(_identity(config, "", hashed=True)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def identity_changes(old: Run, new: Run) -> dict[str, str]:
    """Each identity field that differs, as `{dotted name: "old -> new"}`."""
    before, after = identity(old), identity(new)
    return {
        name: f"{before.get(name, 'absent')} -> {after.get(name, 'absent')}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    }


def _apply_override(values: dict[str, Any], entry: str) -> None:
    name, equals, text = entry.partition("=")
    require(bool(equals), f"--config.{name} needs a value: --config.{name}=VALUE")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # what literal_eval raises
        value = {"true": True, "false": False}.get(text.lower(), text)
    *parents, leaf = name.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        require(isinstance(values, dict), f"--config.{name}: {parent!r} holds no further fields")
    values[leaf] = value


def _parse(kind: Any, value: Any, name: str, most: int = MOST) -> Any:
    """`value` as the annotated type `kind`; `name` is its dotted path, for messages, and `most` an int's bound."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:  # KIND | None
        return None if value is None else _parse(arguments[0], value, name)
    if dataclasses.is_dataclass(kind):
        return _parse_dataclass(kind, value, name)
    if origin is tuple:
        require(isinstance(value, list | tuple), f"{name} must be a list, not {value!r}")
        inner = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        require(len(inner) == len(value), f"{name} must have {len(inner)} entries, not {len(value)}")
        return tuple(_parse(k, v, name) for k, v in zip(inner, value, strict=True))
    if origin is Mapping:
        require(isinstance(value, dict), f"{name} must hold named entries, not {value!r}")
        for key in value:
            _parse(str, key, f"a name in {name}")
            require(key != "", f"{name} has an entry without a name (an unset variable of the shell is empty)")
        return {key: _parse(arguments[1], entry, f"{name}.{key}") for key, entry in sorted(value.items())}
    if kind in (int, float) and isinstance(value, int | float) and not isinstance(value, bool):
        return _parse_number(kind, value, name, most)
    matches = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    require(matches, f"{name} must be of type {kind.__name__}, not {value!r}")
    if kind is str:
        check_text(value, name)
    return value


def _parse_number(kind: Any, value: float, name: str, most: int) -> Any:
    shown = f"one of {value.bit_length()} bits" if isinstance(value, int) and abs(value) >= 2**64 else value
    if kind is float:
        require(abs(value) <= LARGEST, f"{name} must be a finite number of 32 bits, not {shown}")
        return float(value)
    require(abs(value) <= most, f"{name} must be a whole number of at most {most:,}, not {shown}")
    require(value == int(value), f"{name} must be of type int, not {value!r}")
    return int(value)


def _parse_dataclass(kind: Any, value: Any, name: str) -> Any:
    require(isinstance(value, Mapping), f"{name or 'the config'} must hold named fields, not {value!r}")
    hints = typing.get_type_hints(kind)
    prefix = f"{name}." if name else ""
    for key in value:
        if key not in hints:
            raise ConfigError(f"unknown config key {prefix}{key}: {nearest(str(key), hints)}")
    fields = dataclasses.fields(kind)
    most = {f.name: f.metadata.get("most", MOST) for f in fields}
    parsed = {key: _parse(hints[key], entry, prefix + key, most[key]) for key, entry in value.items()}
    for f in fields:
        optional = f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
        require(f.name in parsed or optional, f"config key {prefix}{f.name} is missing")
    return kind(**parsed)


def _kept(config: T) -> T:
    values: dict[str, Any] = {}
    for f in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, f.name)
        if f.metadata.get("of_command"):
            values[f.name] = f.default
        elif dataclasses.is_dataclass(value):
            values[f.name] = _kept(value)
    return dataclasses.replace(config, **values)  # type: ignore[type-var]


def _leave_out_added(config: Any, values: dict[str, Any]) -> None:
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if f.metadata.get("added"):
            if value == (f.default if f.default_factory is dataclasses.MISSING else f.default_factory()):
                del values[f.name]
        elif dataclasses.is_dataclass(value):
            _leave_out_added(value, values[f.name])


def _identity(config: Any, prefix: str, hashed: bool = False) -> Iterator[tuple[str, Any]]:
    for f in dataclasses.fields(config):
        if f.metadata.get("execution"):
            continue
        value = getattr(config, f.name)
        if hashed and f.metadata.get("added") and value == f.default:
            continue
        entries = value.items() if isinstance(value, dict) else [(None, value)]
        for key, entry in entries:
            name = f"{prefix}{f.name}" + (f".{key}" if key else "")
            if dataclasses.is_dataclass(entry):
                yield from _identity(entry, f"{name}.", hashed)
            else:
                yield name, list(entry) if isinstance(entry, tuple) else entry
