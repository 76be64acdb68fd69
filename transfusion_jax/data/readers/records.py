"""From the values of a record to documents.

Captions lose the white space around them. Texts of documents stay as they are, since a line's indent and the space
where two segments meet may matter; a text of white space alone is a fault.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transfusion_jax.data.readers import fields, files
from transfusion_jax.data.readers.format import ReadOptions
from transfusion_jax.data.readers.raw import Fault, RawDocument, RawImage, RawText, RecordError

CAPTION_NAMES = ("caption", "captions", "text")  # where no option names the captions: the first that is there
LONGEST = 1 << 25  # characters of a text
OBJECTS, ITEMS = 1 << 20, 1 << 24  # of a record, of which an empty one takes 64 bytes, and a number 32
PIXELS = 1 << 28  # bytes of a document's images as they are stored
PARTS = 1 << 18  # texts and images of a document, and its parts that are lost, each of which has a line
COUNTED = (1 << 16) - 1  # images of a document, which the index counts in 16 bits, and captions of an image

Segments = tuple[RawText | RawImage, ...]


@dataclass(frozen=True)
class ImageFolder:
    """Where the images lie that data names."""

    path: str
    anywhere: bool = False  # whether names may lead out of it
    most: int = COUNTED  # images of one document

    @classmethod
    def of(cls, file: str, options: ReadOptions) -> ImageFolder:
        """That of a file's images: the one that the options name, or the file's own."""
        path = files.folder_of(file) if options.images is None else options.images
        return cls(path, options.allow_paths, most_images(options.area))

    def path_of(self, name: str, what: str) -> str:
        """The path of a file by its name in the folder; `what` says in errors what it should hold.

        Raises:
            RecordError: it lies elsewhere.
        """
        path = files.join(self.path, name)
        if not self.anywhere and not files.lies_in(path, self.path):
            raise RecordError(f"{what} lies outside the folder of the input: --allow-paths reads it: {name[:200]}")
        return path

    def read(self, name: str, what: str = "image") -> bytes:
        """The bytes of a file by its name in the folder; `what` says in errors what it should hold.

        Raises:
            RecordError: it lies elsewhere, cannot be read or is too large.
        """
        path = files.join(self.path, name)
        try:
            with files.open_file(self.path_of(name, what)) as file:
                data = file.read(files.LARGEST + 1)
        except (ConnectionError, TimeoutError):
            raise
        except (OSError, ValueError) as error:  # ValueError: a path with a zero byte, or half a character
            reason = getattr(error, "strerror", None) or "no such file"
            raise RecordError(f"{what} cannot be read: {reason}: {path[:200]}") from error
        if len(data) > files.LARGEST:
            raise RecordError(f"{what} too large: above {files.LARGEST >> 20} MiB: {path[:200]}")
        return data


def most_images(area: int, channels: int = 3) -> int:
    """How many images one document may hold, given the most pixels that one has."""
    return max(1, min(COUNTED, PIXELS // (area * channels)))


def text_of(value: Any, what: str = "text") -> str:
    """A text as it is, from a string or from bytes in UTF-8; `what` names it in errors.

    Raises:
        RecordError: it is missing, empty, not a text, not UTF-8, or too long, or holds zeros.
    """
    if value is None:
        raise RecordError(f"no {what}")
    try:
        if isinstance(value, bytes):
            value = value.decode("utf-8-sig")
        if not isinstance(value, str):
            raise RecordError(f"{what} is not a text: {type(value).__name__}")
        if len(value) > LONGEST:
            raise RecordError(f"{what} too long: {len(value):,} characters, and one may have {LONGEST:,}")
        value.encode()  # half of a surrogate pair, which JSON can hold
    except UnicodeError as error:
        raise RecordError(f"{what} is not UTF-8") from error
    if "\0" in value:
        raise RecordError(f"{what} holds characters of the value 0, as UTF-16 does where it is taken for UTF-8")
    if not value.strip():
        raise RecordError(f"empty {what}")
    return value


def json_object(data: bytes, objects: int | None = None) -> dict[str, Any]:
    """A JSON object in UTF-8; NaN, as Python writes it, and numbers of any length may stand in it.

    Args:
        data: the bytes.
        objects: how many objects and lists there may be; `OBJECTS`, unless said otherwise.

    Raises:
        RecordError: it is none, or holds so many values that they would fill the memory.
    """
    most = OBJECTS if objects is None else objects
    if data.count(b"{") + data.count(b"[") > most or data.count(b",") > ITEMS:
        raise RecordError(f"too many values: more than {most:,} objects and lists, or {ITEMS:,} commas")
    try:
        values = _parsed(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RecordError("not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"not JSON: {error}") from error
    if isinstance(values, float) and not math.isfinite(values):
        raise RecordError(f"not JSON: {json.dumps(values)}")
    if not isinstance(values, dict):
        raise RecordError("not a JSON object")
    return values


def caption_of(values: Mapping[str, Any], name: str | None) -> Any:
    """The value of this name, or else of the first of `CAPTION_NAMES` that is there; None where there is none."""
    return next((values[n] for n in ((name,) if name else CAPTION_NAMES) if n in values), None)


def document(key: str, value: Any, sure: bool) -> Iterator[RawDocument | Fault]:
    """One text; one with a mark for an image is a fault, unless an option makes `sure` that it is a text."""
    try:
        text = text_of(value)
        if fields.MARK in text and not sure:
            raise RecordError(f"the text has a mark {fields.MARK} and there is no image: {fields.REMEDY}")
        yield RawDocument(key, (RawText(text),))
    except RecordError as error:
        yield Fault(key, str(error))


def pairs(key: str, image: bytes, captions: Any) -> Iterator[RawDocument | Fault]:
    """A caption and its image; a list of captions gives a document for each, with keys `key#0`, `key#1`, …"""
    named = [(key, captions)]
    if isinstance(captions, Sequence) and not isinstance(captions, str | bytes):
        if len(captions) > COUNTED:
            yield Fault(key, f"too many captions: {len(captions):,}, and an image may have {COUNTED:,}")
            return
        named = [(f"{key}#{i}", caption) for i, caption in enumerate(captions)] or [(key, None)]
    for name, caption in named:
        try:
            yield RawDocument(name, _captioned(text_of(caption, "caption"), image))
        except RecordError as error:
            yield Fault(name, str(error))


def _captioned(caption: str, image: bytes) -> Segments:
    """A caption and its image; where a mark stands between words, the image goes there."""
    texts = caption.split(fields.MARK)
    said = [text for text in texts if text.strip()]
    if len(texts) > 2 or not said:
        raise RecordError(
            f"marks and images differ: {len(texts) - 1:,} marks {fields.MARK} and 1 image: {caption[:80]!r}"
        )
    if len(said) == 2:
        return RawText(said[0]), RawImage(image), RawText(said[1])
    return RawText(said[0].strip()), RawImage(image)


def pictured(key: str, images: Sequence[Any], caption: Any, folder: ImageFolder) -> Iterator[RawDocument | Fault]:
    """A captioned image; or several images, each of which stands where the text has a mark.

    Raises:
        RecordError: there are other marks than images, or the one image cannot be read.
    """
    if len(images) == 1:
        return pairs(key, image_bytes(images[0], folder), caption)
    texts = caption.split(fields.MARK) if isinstance(caption, str) else [""]
    if len(texts) - 1 != len(images):
        raise RecordError(
            f"marks and images differ: {len(texts) - 1:,} marks {fields.MARK} and {len(images):,} images"
        )
    check_count(len(images), folder.most)
    entries: list[tuple[str, Any]] = [("text", texts[0])]
    for image, text in zip(images, texts[1:], strict=True):
        entries += [("image", image), ("text", text)]
    return page(key, [(kind, v) for kind, v in entries if kind == "image" or v.strip()], folder)


def together(segments: Iterable[RawText | RawImage]) -> Segments:
    """All segments of a document.

    Raises:
        RecordError: they are too large to be held at once; the rest is not asked for.
    """
    found, size = [], 0
    for segment in segments:
        size += len(segment.text if isinstance(segment, RawText) else segment.data)
        if size > files.LARGEST:
            raise RecordError(f"document too large: above {files.LARGEST >> 20} MiB")
        found.append(segment)
    return tuple(found)


def check_count(images: int, most: int) -> None:
    """Returns where a document may hold so many images.

    Raises:
        RecordError: it may not.
    """
    if images > most:
        raise RecordError(f"too many images: {images:,}, and a document of this image size holds {most:,} at most")


def check_parts(count: int) -> None:
    """Returns where a document may have so many parts.

    Raises:
        RecordError: it may not.
    """
    if count > PARTS:
        raise RecordError(f"too many parts: {count:,}, and a document may have {PARTS:,}")


def page(key: str, entries: Sequence[tuple[str, Any]], folder: ImageFolder) -> Iterator[RawDocument | Fault]:
    """Texts and images in order, from `("text", …)`, `("image", …)` and `("lost", the reason)`.

    A part that cannot be used is left out and is a fault of its own: on the web, images vanish.

    Raises:
        RecordError: the page is too large.
    """
    check_parts(len(entries))
    check_count(sum(kind == "image" for kind, _ in entries), folder.most)
    places: list[int] = []
    faults: list[Fault] = []

    def usable() -> Iterator[RawText | RawImage]:
        for place, (kind, value) in enumerate(entries):
            try:
                segment = _segment_of(kind, value, folder)
            except RecordError as error:
                faults.append(Fault(f"{key}#{place}", str(error)))
            else:
                places.append(place)
                yield segment

    segments = together(usable())
    yield from faults
    yield (
        RawDocument(key, segments, places=tuple(places)) if segments else Fault(key, "no segment that can be used")
    )


def _segment_of(kind: str, value: Any, folder: ImageFolder) -> RawText | RawImage:
    if kind == "lost":
        raise RecordError(value)
    return RawText(text_of(value)) if kind == "text" else RawImage(image_bytes(value, folder))


def aligned(texts: Any, images: Any) -> list[tuple[str, Any]]:
    """The entries of two lists of which each place holds a text in one or an image in the other, as in OBELICS.

    Raises:
        RecordError: they are not such lists, or too long.
    """
    if not (isinstance(texts, list) and isinstance(images, list)):
        raise RecordError("texts and images are not lists")
    if len(texts) != len(images):
        raise RecordError(f"lists of unequal length: {len(texts)} texts and {len(images)} images")
    check_parts(len(texts))
    both, neither = (
        ("lost", "a place must hold a text or an image: it holds both"),
        ("lost", "no text and no image"),
    )
    return [
        (both if t and image else ("text", t) if t else ("image", image) if image else neither)
        for t, image in zip(texts, images, strict=True)
    ]


def image_bytes(value: Any, folder: ImageFolder) -> bytes:
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
        if len(value) > files.LARGEST:
            raise RecordError(f"image too large: above {files.LARGEST >> 20} MiB")
        return value
    if not isinstance(value, str):
        raise RecordError(f"image is not bytes or a path: {type(value).__name__}")
    if value.startswith(fields.INLINE) and ";base64," in value[:80]:
        return _unpacked(value.partition(",")[2])
    if files.is_url(value) and value.partition("://")[0] not in files.BUCKETS:
        raise RecordError(f"image is a URL: fetch the images first: {value[:100]}")
    return folder.read(value)


def _parsed(text: str) -> Any:
    """JSON's values; a whole number of more digits than Python reads is as good as infinite."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:
        return json.loads(text, parse_int=float)


def _unpacked(value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except ValueError as error:
        raise RecordError("image is not base64") from error
