"""Holds arrays to the dtypes and shapes that signatures name, in tests alone: production runs none of this.

jaxtyping's import hook hands every function of `MODULES` to `checked`. Its usual type checkers look at no field of
a named tuple, and at those of a dataclass when one is made, which JAX does with leaves that are no arrays.
"""

import collections.abc
import dataclasses
import functools
import inspect
import types
import typing
from typing import Any

import jaxtyping

MODULES = [
    f"transfusion_jax.{name}" for name in ("model", "kernels", "diffusion", "tasks", "generation", "data.batch")
]


def install():
    """To be called before the package is imported."""
    jaxtyping.install_import_hook(MODULES, f"{__name__}.checked")


def checked(function):
    """The same function, which raises TypeError where an array is not as its annotation says."""
    hints = {name: hint for name, hint in function.__annotations__.items() if arrays_in(hint)}
    if not hints or function.__name__ == "__init__":
        return function
    signature, fitting = inspect.signature(function), set()

    @functools.wraps(function)
    def checking(*args, **kwargs):
        result = function(*args, **kwargs)
        values = signature.bind(*args, **kwargs).arguments | {"return": result}
        held = {name: values[name] for name in hints if name in values}
        call = tuple((name, outline(value)) for name, value in held.items())
        if call in fitting:
            return result
        for name, value in held.items():
            if not fits(value, hints[name]):
                raise TypeError(f"{name} is not {hints[name]}")
        fitting.add(call)
        return result

    return checking


def outline(value):
    """What decides whether a value fits: calls that are alike in it are checked once."""
    if hasattr(value, "shape"):
        return value.shape, value.dtype
    if isinstance(value, tuple):
        return type(value), *map(outline, value)
    if isinstance(value, dict):
        return tuple((name, outline(one)) for name, one in value.items())
    if found := fields(type(value)):
        return type(value), *(outline(getattr(value, name)) for name in found)
    return type(value) if value is None or isinstance(value, int | float) else object()  # is checked every time


@functools.cache
def arrays_in(hint):
    """Whether an annotation says anything of arrays."""
    if is_array(hint):
        return True
    if typing.get_origin(hint) is collections.abc.Callable:
        return False
    return any(map(arrays_in, typing.get_args(hint))) or bool(fields(hint))


def is_array(hint):
    """Whether an annotation is one of jaxtyping's."""
    return inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray)


@functools.cache
def fields(hint):
    """The annotations of a named tuple's or dataclass's arrays by name."""
    if not (dataclasses.is_dataclass(hint) or hasattr(hint, "_fields")):
        return {}
    return {name: one for name, one in typing.get_type_hints(hint).items() if arrays_in(one)}


def fits(value, hint):
    """Whether a value is as an annotation says of arrays, or of what may stand in their place."""
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if kind is tuple:
        hints = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        return len(hints) == len(value) and all(map(fits, value, hints))
    if kind in (dict, collections.abc.Mapping):
        return all(fits(one, inner[1]) for one in value.values())
    if found := fields(hint):
        return isinstance(value, hint) and all(fits(getattr(value, name), one) for name, one in found.items())
    if is_array(hint):  # NumPy's arrays may stand where JAX's do
        return isinstance(value, hint.dtype[Any, hint.dim_str])
    if hint is float:
        return isinstance(value, float | int)
    return isinstance(value, hint) if inspect.isclass(hint) and hint is not Any else True
