"""English prose that every Python carries: the docstrings of the standard library."""

from __future__ import annotations

import ast
import inspect
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from transfusion_jax.config import require
from transfusion_jax.data.readers.format import Format, ReadOptions
from transfusion_jax.data.readers.raw import InputShard, RawDocument, RawText

SHORTEST = 120  # characters; shorter docstrings say little


def shards(path: str, options: ReadOptions) -> list[InputShard]:
    """One shard; `path` is empty.

    Raises:
        ConfigError: the path is not empty.
    """
    require(not path, f"prose:{path}: the docstrings are one set: name it prose")
    return [InputShard(path)]


def read(shard: InputShard, options: ReadOptions) -> Iterator[RawDocument]:
    """A document for each docstring; a text that stands twice in the library is given once."""
    seen = set()
    for key, text in _docstrings():
        if text not in seen:
            seen.add(text)
            yield RawDocument(key, (RawText(text),))


def _docstrings() -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.glob("*.py")):  # the modules that are one file: enough, and read in two seconds
        code = path.read_text(encoding="utf-8", errors="ignore")
        yield from ((f"{path.stem}:{line}", text) for line, text in docstrings_of(code))


def docstrings_of(code: str) -> Iterator[tuple[int, str]]:
    """The line of each thing that is documented at length, and what is said of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in the library's own strings
        tree = ast.parse(code)
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(tree):
        text = ast.get_docstring(node) if isinstance(node, documented) else None
        if text and len(text) >= SHORTEST:
            yield getattr(node, "lineno", 1), inspect.cleandoc(text)


FORMAT = Format(shards, read, is_set=True)
