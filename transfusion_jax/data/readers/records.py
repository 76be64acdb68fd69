"""From the values of a record to documents.

Captions lose the white space around them. Texts of documents stay as they are, since a line's indent and the space
where two segments meet may matter; a text of white space alone is a fault.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transfusion_jax.data.readers import files
from transfusion_jax.data.readers.raw import Fault, RawDocument, RawImage, RawText

CAPTION_NAMES = ("caption", "captions", "text")  # where no option names the captions: the first that is there


class RecordError(Exception):
    """Why a record cannot be used: a few words, then details after a colon."""


def text_of(value: Any, what: str = "text") -> str:
    """A text as it is, from a string or from bytes in UTF-8; `what` names it in errors.

    Raises:
        RecordError: it is missing, empty, not a text or not UTF-8.
    """
    if value is None:
        raise RecordError(f"no {what}")
    try:
        if isinstance(value, bytes):
            value = value.decode("utf-8-sig")
        if not isinstance(value, str):
            raise RecordError(f"{what} is not a text: {type(value).__name__}")
        value.encode()  # half of a surrogate pair, which JSON can hold
    except UnicodeError as error:
        raise RecordError(f"{what} is not UTF-8") from error
    if not value.strip():
        raise RecordError(f"empty {what}")
    return value


def json_object(data: bytes) -> dict[str, Any]:
    """A JSON object in UTF-8.

    Raises:
        RecordError: it is none.
    """
    try:
        values = json.loads(data.decode("utf-8-sig"), parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise RecordError("not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"not JSON: {error}") from error
    if not isinstance(values, dict):
        raise RecordError("not a JSON object")
    return values


def caption_of(values: Mapping[str, Any], name: str | None) -> Any:
    """The value of this name, or else of the first of `CAPTION_NAMES` that is there; None where there is none."""
    return next((values[n] for n in ((name,) if name else CAPTION_NAMES) if n in values), None)


def document(key: str, value: Any) -> Iterator[RawDocument | Fault]:
    """One text."""
    try:
        yield RawDocument(key, (RawText(text_of(value)),))
    except RecordError as error:
        yield Fault(key, str(error))


def pairs(key: str, image: bytes, captions: Any) -> Iterator[RawDocument | Fault]:
    """A caption and its image; a list of captions gives a document for each, with keys `key#0`, `key#1`, …"""
    named = [(key, captions)]
    if isinstance(captions, Sequence) and not isinstance(captions, str | bytes):
        named = [(f"{key}#{i}", caption) for i, caption in enumerate(captions)] or [(key, None)]
    for name, caption in named:
        try:
            yield RawDocument(name, (RawText(text_of(caption, "caption").strip()), RawImage(image)))
        except RecordError as error:
            yield Fault(name, str(error))


def interleaved(key: str, entries: Sequence[tuple[str, Any]], folder: str) -> Iterator[RawDocument | Fault]:
    """Texts and images in order, from `("text", …)` and `("image", …)`; `folder` holds the images that are paths.

    A part that cannot be used is left out and is a fault of its own: on the web, images vanish.
    """
    segments: list[RawText | RawImage] = []
    for place, (kind, value) in enumerate(entries):
        try:
            segments.append(RawText(text_of(value)) if kind == "text" else RawImage(image_bytes(value, folder)))
        except RecordError as error:
            yield Fault(f"{key}#{place}", str(error))
    yield RawDocument(key, tuple(segments)) if segments else Fault(key, "no segment that can be used")


def aligned(texts: Any, images: Any) -> list[tuple[str, Any]]:
    """The entries of two lists of which each place holds a text in one or an image in the other, as in OBELICS.

    Raises:
        RecordError: they are not such lists.
    """
    if not (isinstance(texts, list) and isinstance(images, list)):
        raise RecordError("texts and images are not lists")
    if len(texts) != len(images):
        raise RecordError(f"lists of unequal length: {len(texts)} texts and {len(images)} images")
    for place, both in enumerate(zip(texts, images, strict=True)):
        if all(both) or not any(both):
            raise RecordError(f"a place must hold a text or an image: place {place} does not")
    return [("text", t) if t else ("image", image) for t, image in zip(texts, images, strict=True)]


def image_bytes(value: Any, folder: str) -> bytes:
    """An image from its bytes, from `{"bytes", "path"}` as Hugging Face writes it, or from its path below a folder.

    Raises:
        RecordError: there is none, or it cannot be read.
    """
    if isinstance(value, Mapping):
        inner = next((value[name] for name in ("bytes", "path", "url") if value.get(name)), None)
        value = _unpacked(inner) if isinstance(inner, str) and inner == value.get("bytes") else inner
    if not value:
        raise RecordError("no image")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise RecordError(f"image is not bytes or a path: {type(value).__name__}")
    if files.is_url(value) and value.partition("://")[0] not in files.BUCKETS:
        raise RecordError(f"image is a URL: fetch the images first: {value[:100]}")
    return read_image(files.join(folder, value))


def read_image(path: str) -> bytes:
    """The bytes of an image's file.

    Raises:
        RecordError: it cannot be read.
    """
    try:
        with files.open_file(path) as file:
            data = file.read(files.LARGEST + 1)
    except (ConnectionError, TimeoutError):
        raise
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        reason = getattr(error, "strerror", None) or "no such file"
        raise RecordError(f"image cannot be read: {reason}: {path[:200]}") from error
    if len(data) > files.LARGEST:
        raise RecordError(f"image too large: {path[:200]}")
    return data


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _unpacked(value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except ValueError as error:
        raise RecordError("image is not base64") from error
