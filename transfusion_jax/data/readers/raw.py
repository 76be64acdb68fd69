"""What readers find: documents as their files hold them, and what could not be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class RawText:
    """A text."""

    text: str
    loss: bool = True


@dataclass(frozen=True)
class RawImage:
    """An image: the bytes of its file, or pixels `[H, W, 3 or 1]` uint8 that were drawn."""

    data: bytes | np.ndarray
    loss: bool = True


@dataclass(frozen=True)
class RawDocument:
    """Segments in order, and where they were found."""

    key: str  # within its shard: a tar's member, a table's row, a line's number, a file's name
    segments: tuple[RawText | RawImage, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)  # JSON values to keep, such as a scene graph


@dataclass(frozen=True)
class Fault:
    """A record that cannot be used, or that is one image or caption short."""

    key: str
    reason: str


@dataclass(frozen=True)
class InputShard:
    """A part of the input that one call reads: a file, or a range of one."""

    format: str = field(default="", kw_only=True)  # an entry of `READERS`; `input_shards` fills it in
    path: str  # a local path, a URL such as gs://bucket/file.tar, or a data set's name
    begin: int = 0  # of rows, lines, bytes or files: whatever the format counts
    end: int = 0  # 0: to the end
