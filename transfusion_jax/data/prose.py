"""English prose that every Python carries: the docstrings of the standard library."""

from __future__ import annotations

import ast
import hashlib
import inspect
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

SHORTEST = 120  # characters; shorter docstrings say little


def load(held_out: float) -> tuple[list[str], list[str]]:
    """Docstrings to train on and docstrings kept out, split by a hash of the text; no text stands twice."""
    split: tuple[list[str], list[str]] = ([], [])
    for text in dict.fromkeys(_docstrings()):
        share = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32
        split[share < held_out].append(text)
    return split


def _docstrings() -> Iterator[str]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.glob("*.py")):  # the modules that are one file: enough, and read in two seconds
        yield from _docstrings_of(path.read_text(encoding="utf-8", errors="ignore"))


def _docstrings_of(code: str) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in the library's own strings
        tree = ast.parse(code)
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(tree):
        text = ast.get_docstring(node) if isinstance(node, documented) else None
        if text and len(text) >= SHORTEST:
            yield inspect.cleandoc(text)
