"""Tux Paint's stamps: drawings and photographs on transparent ground, with captions in many languages.

`NAME.txt` holds the captions of `NAME.png`: the English one in its first line, the others in lines such as
`pt_BR.utf8=…`. `NAME_mirror.png` and `NAME_flip.png` are drawn in place of a mirrored `NAME.png`, so that what is
written on it can be read. `NAME.dat` says how a stamp may be coloured and scaled, and the rest are sounds; both are
passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from transfusion_jax.config import require
from transfusion_jax.data.readers import files, records
from transfusion_jax.data.readers.folder import stem_of
from transfusion_jax.data.readers.format import Format, ReadOptions
from transfusion_jax.data.readers.packages import package_folder
from transfusion_jax.data.readers.raw import Fault, InputShard, RawDocument, RawImage, RawText, RecordError
from transfusion_jax.data.readers.records import ImageFolder
from transfusion_jax.errors import nearest, some

PACKAGE, PLACE = "tuxpaint-stamps-default", "usr/share/tuxpaint/stamps"
ENGLISH, ALL = "en", "all"
ENDINGS = (".png", ".svg", ".txt", ".dat", ".ogg", ".wav")  # of a stamp's files

_TRANSLATION = re.compile(r"([\w@]+)\.utf8=(.*)")
_TURNED = re.compile(r"(?:_mirror|_flip|_mirror_flip)$")


def shards(path: str, options: ReadOptions) -> list[InputShard]:
    """Ranges of the stamps; `path` is their folder, or that of the unpacked package; if empty, the installed one.

    Raises:
        ConfigError: there are no stamps, or none has a caption in a language that is asked for.
    """
    root = package_folder("stamps", path, PACKAGE, PLACE)
    names, _ = _stamps_and_strays(files.inside(root))
    known = {language for name in names for language in _languages_of(name, ImageFolder(root))}
    require(bool(known), f"{root} holds no stamps: each is a NAME.png with its captions in NAME.txt")
    wanted = _wanted(options) or tuple(known)
    for language in wanted:
        require(
            language in known, f"--languages: no caption is in {language!r}; {nearest(language, (*known, ALL))}"
        )
    step = max(1, options.shard_size // len(wanted))
    return [InputShard(root, begin, min(begin + step, len(names))) for begin in range(0, len(names), step)]


def read(shard: InputShard, options: ReadOptions) -> Iterator[RawDocument | Fault]:
    """A document for each caption of each stamp in the languages that are asked for, equal ones once."""
    names, strays = _stamps_and_strays(files.inside(shard.path))
    folder = ImageFolder(shard.path)
    if not shard.begin:
        yield from strays
    for name in names[shard.begin : shard.end or None]:
        try:
            captions, image = _captions(name, folder), RawImage(folder.read(name))
        except RecordError as error:
            yield Fault(name, str(error))
            continue
        there = [language for language in _wanted(options) or captions if language in captions]
        if not there:
            yield Fault(
                name, f"no caption in a language that is asked for: it has {some(list(captions)) or 'none'}"
            )
        said = set()
        for language in there:
            if (caption := captions[language]) not in said:
                said.add(caption)
                meta = {"file": name, "language": language}
                yield RawDocument(f"{name}:{language}", (RawText(caption), image), meta)


def captions_by_language(text: str) -> dict[str, str]:
    """What a stamp's text says by language: its first line is English, others begin with a code such as `pt_BR`."""
    english, *lines = text.split("\n")
    others = (found.groups() for line in lines if (found := _TRANSLATION.match(line)))
    return {language: caption.strip() for language, caption in [(ENGLISH, english), *others] if caption.strip()}


def _wanted(options: ReadOptions) -> tuple[str, ...]:
    """The languages that are asked for; none stands for all."""
    return () if options.languages == ALL else tuple(options.languages.split(","))


def _captions(name: str, folder: ImageFolder) -> dict[str, str]:
    """A stamp's captions by language.

    Raises:
        RecordError: they cannot be read, or there are none.
    """
    data = folder.read(f"{stem_of(name)}.txt", "caption")
    if data.count(b"\n") > records.COUNTED:
        raise RecordError(f"too many captions: an image may have {records.COUNTED:,}")
    return captions_by_language(records.text_of(data, "caption"))


def _languages_of(name: str, folder: ImageFolder) -> Iterable[str]:
    try:
        return _captions(name, folder)
    except RecordError:  # `read` makes it a fault
        return ()


def _stamps_and_strays(names: Sequence[str]) -> tuple[list[str], list[Fault]]:
    """The stamps among a folder's files, and one fault for each file, or kind of file, that is not used."""
    pictures, drawings, texts = ([n for n in names if n.lower().endswith(e)] for e in (".png", ".svg", ".txt"))
    pictured, drawn = set(map(stem_of, pictures)), set(map(stem_of, drawings))
    stamps = [name for name in pictures if not _is_turned(stem_of(name), pictured)]
    kinds = {
        "mirror images of other stamps are not used": sorted(set(pictures) - set(stamps)),
        "stamps in SVG alone are not read": sorted(drawn - pictured),
    }
    return stamps, [
        *(Fault("folder", f"{reason}: {some(found)}") for reason, found in kinds.items() if found),
        *(
            Fault(n, "captions of no image: none of its name is here")
            for n in texts
            if stem_of(n) not in pictured | drawn
        ),
        *(Fault(n, "not a stamp's file, by its ending") for n in names if not n.lower().endswith(ENDINGS)),
    ]


def _is_turned(stem: str, pictured: set[str]) -> bool:
    """Whether a picture is a mirror image of another one."""
    upright = _TURNED.sub("", stem)
    return upright != stem and upright in pictured


FORMAT = Format(shards, read, options=("shard_size", "languages"), is_set=True)
