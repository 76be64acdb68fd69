"""Which field of a record holds its image, and whether one may that is not known."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from transfusion_jax.data.readers.raw import RecordError

IMAGES = (
    *("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "ppm", "pgm", "jfif", "jpe"),
    *("pjpeg", "apng", "j2k", "jpx", "pbm"),
)  # endings of names
UNREAD = ("heic", "heif", "dng", "cr2", "nef", "arw", "raw", "svg", "psd")  # images that Pillow alone does not read
INLINE = "data:image/"  # a URL that is the image itself
MARK = "<image>"  # where in a text one of its images stands
FIELDS = (
    *("image", "image_path", "image_file", "image_name", "image_bytes", "img", "img_path", "picture", "photo"),
    *("jpg", "jpeg", "png", "webp", "images", "image_paths", "image_files", "image_url", "image_urls", "img_url"),
)  # that hold images, the first of them that says one
PLURAL = ("images", "image_paths", "image_files", "image_urls")  # where there is none, the record has no image
# names of files, of images if a caption is beside them or their endings say so
FILES = ("file_name", "filename", "filepath", "file_path", "file", "path")
URLS = ("url", "uri")  # the same; of a page as often
CAPTIONS = ("caption", "captions")  # of an image always
COMPARED = 1 << 12  # pairs of paths
REMEDY = "name the images' with --image-column, or the text's with --text-column to read texts alone"
_ALL, _PATHS = frozenset(FIELDS), frozenset((*FILES, *URLS))
_ENDINGS = tuple(f".{extension}" for extension in IMAGES)
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
_BOXES = (b"ftypavif", b"ftypavis")
_FROM = re.compile("ur[il]|src|source|link|origin", re.IGNORECASE)
SHOWS = re.compile("image|img|picture|photo|pixel|video", re.IGNORECASE)


def unread_image(name: str) -> str:
    """What to do with an image of a kind that is not read, by its name; empty for other files."""
    ending = name.rpartition(".")[2]
    return f".{ending} is not read: convert it to JPEG or PNG" if ending.lower() in UNREAD else ""


def is_image(path: str) -> bool:
    """Whether a path or a URL ends as an image's does."""
    whole = path.partition("?")[0].partition("#")[0] if "://" in path else path
    name = whole.rpartition("/")[2].lower()
    return name.endswith(_ENDINGS) and not name.startswith(".")


def looks_like_image(data: bytes) -> bool:
    """Whether bytes begin as an image's do; TIFF is left out, since raw photographs begin as it does."""
    return data.startswith(_BEGINNINGS) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP") or data[4:12] in _BOXES


def image_field(values: Mapping[str, Any], text: str | None) -> str | None:
    """The field that holds a record's image or images, if it has one.

    Args:
        values: the record.
        text: the field that an option names for the text; then a URL is taken for where the text is from.
    """
    there = values.keys()
    named = (
        [name for name in FIELDS if name in there and (values[name] or name not in PLURAL)] if there & _ALL else []
    )
    for name in FILES + (() if text else URLS) if there & _PATHS else ():
        value = values.get(name)
        if isinstance(value, str) and value and (not there.isdisjoint(CAPTIONS) or is_image(value)):
            named.append(name)
    return next((name for name in named if values[name]), named[0] if named else None)


def unknown_images(values: Mapping[str, Any], known: Iterable[str]) -> list[str]:
    """Fields besides the known ones that seem to hold images, by their names or by what they hold."""
    others = {name: value for name, value in values.items() if name not in known and value}
    return [
        name
        for name, value in others.items()
        if _images_in(value) or (SHOWS.search(name) and isinstance(value, str | list | dict))
    ]


def check_one_field(values: Mapping[str, Any], name: str) -> None:
    """Returns where a record's images are all in the field of this name.

    Other fields may name the same files, with more or fewer of their folders, and URLs say where an image is from.
    Beside an image's bytes, so may names.

    Raises:
        RecordError: another field holds other images.
    """
    held = values[name]
    known = (name, *CAPTIONS, "text", *(() if isinstance(held, str) else FILES))
    others = [other for other in unknown_images(values, known) if _says_more(other, values[other], held)]
    if others:
        raise RecordError(f"images in several fields: {names_of((name, *others))}; name one with --image-column")


def _says_more(name: str, value: Any, held: Any) -> bool:
    """Whether a field says images besides those of the field that holds a record's."""
    found, there = _images_in(value), _images_in(held)
    if value == held or (found == {URLS[0]} and _FROM.search(name)):
        return False
    more = found - there
    if INLINE in found or len(more) * len(there) > COMPARED:
        return True
    return any(not any(_ends_with(one, other) or _ends_with(other, one) for other in there) for one in more)


def _ends_with(path: str, end: str) -> bool:
    return f"/{path}".endswith(f"/{end}")


def check_text_alone(values: Mapping[str, Any]) -> None:
    """Returns where the text of a record without a known image is a document.

    Raises:
        RecordError: it may be a caption.
    """
    odd = unknown_images(values, (*CAPTIONS, "text"))
    if odd:
        raise RecordError(f"images in fields that are not known: {names_of(odd)}; {REMEDY}")
    if any(name in values for name in CAPTIONS):
        raise RecordError(f"a caption and no image: {names_of(values)}; {REMEDY}")


def names_of(values: Iterable[str]) -> str:
    """The names of some fields, for an error."""
    return f"keys are {', '.join(map(repr, itertools.islice(values, 8)))}"[:200]


def _images_in(value: Any) -> set[str]:
    """What a value says of images: paths of files, `url` for a URL, and `INLINE` for an image itself."""
    parts = value if isinstance(value, list) else [value]
    inner = [v for part in parts for v in (part.values() if isinstance(part, dict) else [part])]
    found = {INLINE for part in parts if isinstance(part, dict) and "bytes" in part}  # as Hugging Face has them
    for text in inner:
        if isinstance(text, str) and (text.startswith(INLINE) or is_image(text)):
            path = text.removeprefix("./")
            found.add(INLINE if text.startswith(INLINE) else URLS[0] if "://" in text else path)
    return found
