"""The Open Clip Art Library of 2005: public-domain drawings, named by their titles, files and folders."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from contextlib import suppress

from transfusion_jax.config import require
from transfusion_jax.data.readers import files
from transfusion_jax.data.readers.folder import stem_of
from transfusion_jax.data.readers.format import Format, ReadOptions
from transfusion_jax.data.readers.packages import package_folder
from transfusion_jax.data.readers.pictures import texts_in
from transfusion_jax.data.readers.raw import Fault, InputShard, RawDocument, RawImage, RawText, RecordError
from transfusion_jax.data.readers.records import ImageFolder

PACKAGE, PLACE = "openclipart-png", "usr/share/openclipart/png"
KEPT = {"Title": "title", "Author": "author"}  # of what a file says in words, and the names in a document's meta

_NO_WORD = re.compile(r"[\W_]+")


def shards(path: str, options: ReadOptions) -> list[InputShard]:
    """Ranges of the drawings; `path` is their folder, or that of the unpacked package; if empty, the installed one.

    Raises:
        ConfigError: there are no drawings.
    """
    root = package_folder("clipart", path, PACKAGE, PLACE)
    count, step = len(files.inside(root)), options.shard_size
    require(count > 0, f"{root} holds no drawings")
    return [InputShard(root, begin, min(begin + step, count)) for begin in range(0, count, step)]


def read(shard: InputShard, options: ReadOptions) -> Iterator[RawDocument | Fault]:
    """A document for each drawing; one that is filed in two folders has a caption for each."""
    folder = ImageFolder(shard.path)
    for name in files.inside(shard.path)[shard.begin : shard.end or None]:
        if not name.lower().endswith(".png"):
            yield Fault(name, "not a drawing, by its ending: drawings are PNG")
            continue
        try:
            image = folder.read(name)
        except RecordError as error:
            yield Fault(name, str(error))
            continue
        said = texts_in(image)
        about = {field: _in_utf8(said[key]) for key, field in KEPT.items() if key in said}
        caption = clipart_caption(name, about.get("title", ""))
        yield RawDocument(name, (RawText(caption), RawImage(image)), {"file": name, **about})


def clipart_caption(name: str, title: str = "") -> str:
    """A drawing's folders and its title, such as `animals, birds: Blue Jay`.

    Many files bear the title of a whole collection: where a file is not named after its title, its name is used.
    """
    *folders, last = stem_of(name).split("/")
    named, titled = (_NO_WORD.sub("", text.lower()).rstrip("0123456789") for text in (last, title))
    is_own = bool(titled) and (named.startswith(titled) or titled.startswith(named))
    subject, place = _words(title if is_own else last), ", ".join(map(_words, folders))
    return f"{place}: {subject}" if place else subject


def _words(name: str) -> str:
    """A name with spaces between its words."""
    return " ".join(name.replace("_", " ").replace("-", " ").split())


def _in_utf8(text: str) -> str:
    """A text of a PNG without escapes of HTML; bytes of UTF-8, which Pillow takes for Latin-1, are put right."""
    with suppress(UnicodeError):
        text = text.encode("latin-1").decode()
    return html.unescape(text)


FORMAT = Format(shards, read, options=("shard_size",), is_set=True)
