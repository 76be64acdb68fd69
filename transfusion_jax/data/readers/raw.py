"""What readers find: documents as their files hold them, and what could not be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


class RecordError(Exception):
    """Why a record cannot be used: a few words, then details after a colon."""


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
    places: tuple[int, ...] = ()  # of a page's segments in it; a page stays without those that cannot be used


@dataclass(frozen=True)
class Fault:
    """A record that cannot be used, or what a page or an image with captions is short of."""

    key: str
    reason: str


@dataclass(frozen=True)
class InputShard:
    """A part of the input that one call reads: a file, or a range of one."""

    format: str = field(default="", kw_only=True)  # an entry of `READERS`; `input_shards` fills it in
    path: str  # a local path, a URL such as gs://bucket/file.tar, or a data set's name
    begin: int = 0  # of rows, lines, bytes or files: whatever the format counts
    end: int = 0  # 0: to the end
