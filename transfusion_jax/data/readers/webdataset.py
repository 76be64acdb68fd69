"""Tar files as WebDataset and img2dataset write them: members that share a key, such as 1.jpg and 1.txt.

An archive is read as it comes, for as long as samples are complete. Where one is not, or holds links, the archive's
headers tell whether its other members lie elsewhere; then each sample's members are looked up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from transfusion_jax.data.readers import archive, fields, files, records
from transfusion_jax.data.readers.archive import Survey, TarSample
from transfusion_jax.data.readers.fields import IMAGES
from transfusion_jax.data.readers.format import Format, ReadOptions
from transfusion_jax.data.readers.raw import Fault, InputShard, RawDocument, RecordError

CAPTIONS = ("txt", "caption")  # before the fields of .json
BESIDE = (*CAPTIONS, "json", "cls", "id", "index", "idx", "key", "url")  # what a text may have beside it
APART = (
    "members lie apart, or are links, and the archive is too large for them to be looked up: unpack it, or sort it"
)
Found = Iterator[RawDocument | Fault]


def _shards(path: str, options: ReadOptions) -> list[InputShard]:
    return [InputShard(path)]


def _read(shard: InputShard, options: ReadOptions) -> Found:
    survey: Survey | None = None
    with files.open_unpacked(shard.path) as stream:
        for sample in archive.samples(stream):
            if isinstance(sample, Fault):
                yield sample
                continue
            if sample.links or not _is_complete(sample, options):
                survey = survey or _survey(shard.path)
                if not survey.ordered:
                    if _is_small(survey, shard.path):
                        yield from _by_index(shard.path, options, sample.number, survey)
                        return
                    yield Fault(sample.key, APART)
                    continue
            yield from _documents(sample, options, survey)


def _survey(path: str) -> Survey:
    with files.open_unpacked(path) as stream:
        return archive.survey_archive(stream)


def _is_small(survey: Survey, path: str) -> bool:
    """Whether an archive's index can be held, and the copy that is unpacked for it."""
    copied = survey.size if files.is_packed(path) else 0
    return survey.members <= archive.MEMBERS and survey.names <= archive.NAMES and copied <= archive.UNPACKED


def _by_index(path: str, options: ReadOptions, begin: int, survey: Survey) -> Found:
    with archive.seekable(path) as stream:
        for sample in archive.indexed_samples(stream, begin):
            yield from [sample] if isinstance(sample, Fault) else _documents(sample, options, survey)


def _is_complete(sample: TarSample, options: ReadOptions) -> bool:
    """Whether no more members are needed: the sample is a captioned image, or cannot be used."""
    try:
        return bool(sample.reason) or None not in _parts(sample.data, options)
    except RecordError:
        return True


def _documents(sample: TarSample, options: ReadOptions, survey: Survey | None) -> Found:
    """What a sample holds; of one that is torn, what is complete: the archive's own fault tells of the rest."""
    try:
        if sample.reason:
            raise RecordError(sample.reason)
        image, text = _parts(sample.data, options)
        if image is None:
            _check_text_alone(sample, text, options, survey)
    except RecordError as error:
        if not sample.torn:
            yield Fault(sample.key, str(error))
        return
    if image is not None and not (sample.torn and text is None):
        yield from records.pairs(sample.key, image, text)
    elif image is None and not sample.torn:
        yield from records.document(sample.key, text, sure=False)


def _parts(data: Mapping[str, bytes], options: ReadOptions) -> tuple[bytes | None, Any]:
    """The image of a sample and its text or texts, None for what is not there.

    Raises:
        RecordError: there are several images, or what an option names is missing or cannot be read.
    """
    named = options.image_column and options.image_column.lower()
    images = [extension for extension in ((named,) if named else IMAGES) if extension in data]
    if not named and not images:
        images = [e for e in data if e not in BESIDE and fields.looks_like_image(data[e])]
    if len(images) > 1:
        raise RecordError(f"several images: name one with --image-column: .{', .'.join(images)}")
    if named and not images:
        raise RecordError(f"no image: members are {_names(data)}")
    return data[images[0]] if images else None, _text(data, options.text_column)


def _text(data: Mapping[str, bytes], field: str | None) -> Any:
    for extension in () if field else CAPTIONS:
        if extension in data:
            return data[extension]
    return records.caption_of(records.json_object(data["json"]), field) if "json" in data else None


def _check_text_alone(sample: TarSample, text: Any, options: ReadOptions, survey: Survey | None) -> None:
    """Returns where the text of a sample without an image is a document, and not an image's caption.

    Raises:
        RecordError: it may be one.
    """
    if text is None:
        raise RecordError(f"neither image nor text: members are {_names(sample.data)}")
    if sample.split:
        raise RecordError("a caption without its image: there are more members of this name, of another sample")
    if not set(sample.data) <= set(BESIDE):
        names = _names(sample.data)
        raise RecordError(f"no image that can be read: members are {names}; name the image's with --image-column")
    if survey and not survey.whole:
        raise RecordError("a text without an image, which may be lost: the archive breaks off")
    if "json" in sample.data and not options.text_column:
        fields.check_text_alone(records.json_object(sample.data["json"]))


def _names(data: Mapping[str, bytes]) -> str:
    return f".{', .'.join(sorted(data))}"[:200]


SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst")
FORMAT = Format(_shards, _read, SUFFIXES, ("image_column", "text_column"))
