"""Files of JSON lines: texts, images with captions, documents of OBELICS and of MMC4, and lists of segments.

The last form says everything, such as an edit: `{"segments": [{"image": "a.png", "loss": false}, {"text": "make it
red", "loss": false}, {"image": "b.png"}], "meta": {}}`. Keys are `@` and the byte at which the line begins.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from transfusion_jax.data.readers import fields, files, lines, records
from transfusion_jax.data.readers.format import Format, ReadOptions
from transfusion_jax.data.readers.raw import Fault, InputShard, RawDocument, RawImage, RawText
from transfusion_jax.data.readers.records import ImageFolder, RecordError

RANGE = 1 << 28  # bytes per shard of a file that is not compressed

Found = Iterator[RawDocument | Fault]


def _shards(path: str, options: ReadOptions) -> list[InputShard]:
    if path.lower().endswith((".gz", ".zst")) or lines.is_spread(path):
        return [InputShard(path)]
    size = files.size(path)
    return [InputShard(path, begin, min(begin + RANGE, size)) for begin in range(0, size, RANGE)]


def _read(shard: InputShard, options: ReadOptions) -> Found:
    folder = ImageFolder.of(shard.path, options)
    for offset, line in lines.records_of_shard(shard):
        key = f"@{offset}"
        try:
            if isinstance(line, Fault):
                yield line
            elif line.strip():
                yield from _documents(key, records.json_object(line), folder, options)
        except RecordError as error:
            yield Fault(key, str(error))


def _documents(key: str, values: Mapping[str, Any], folder: ImageFolder, options: ReadOptions) -> Found:
    """What a record holds; options that name its fields leave only images with captions, and texts."""
    image, text = options.image_column, options.text_column
    for names, form in () if image or text else FORMS:
        if all(name in values for name in names):
            return form(key, values, folder)
    name = image or fields.image_field(values, text)
    caption = records.caption_of(values, text)
    if name is not None:
        value = values.get(name)
        if caption is None and isinstance(value, list) and value:
            help = "name the text's with --text-column; COCO's captions are --format coco"
            raise RecordError(f"images and no text: {fields.names_of(values)}; {help}")
        if not image:
            fields.check_one_field(values, name)
        return records.pictured(key, value if isinstance(value, list) and value else [value], caption, folder)
    if caption is None:
        raise RecordError(f"neither image nor text: {fields.names_of(values)}; name the text's with --text-column")
    if not text:
        fields.check_text_alone(values)
    return records.document(key, caption, sure=text is not None)


def _segments(key: str, values: Mapping[str, Any], folder: ImageFolder) -> Found:
    segments, meta = values["segments"], values.get("meta", {})
    known = isinstance(segments, list) and isinstance(meta, dict) and set(values) <= {"segments", "meta"}
    if not known or not segments:
        raise RecordError('not of the form {"segments": [{...}, ...], "meta": {...}}')
    records.check_parts(len(segments))
    records.check_count(sum(isinstance(s, dict) and "image" in s for s in segments), folder.most)
    return iter([RawDocument(key, records.together(_segment(s, folder) for s in segments), meta)])


def _segment(segment: Any, folder: ImageFolder) -> RawText | RawImage:
    if not isinstance(segment, dict) or set(segment) - {"loss"} not in ({"text"}, {"image"}):
        raise RecordError("a segment holds a text or an image, and perhaps loss")
    loss = segment.get("loss", True)
    if not isinstance(loss, bool):
        raise RecordError(f"loss is true or false, not of type {type(loss).__name__}")
    if "text" in segment:
        return RawText(records.text_of(segment["text"]), loss)
    return RawImage(records.image_bytes(segment["image"], folder), loss)


def _obelics(key: str, values: Mapping[str, Any], folder: ImageFolder) -> Found:
    return records.page(key, records.aligned(values["texts"], values["images"]), folder)


def _mmc4(key: str, values: Mapping[str, Any], folder: ImageFolder) -> Found:
    """Each image before the sentence that it matches; sentences between two images become one text."""
    sentences, images = values["text_list"], values["image_info"]
    if not isinstance(sentences, list) or not isinstance(images, list):
        raise RecordError("text_list and image_info are not lists")
    records.check_parts(len(sentences) + len(images))
    before: dict[int, list[Any]] = {}
    entries: list[tuple[str, Any]] = []
    for image in images:
        place = image.get("matched_text_index") if isinstance(image, dict) else None
        if type(place) is int and 0 <= place < len(sentences):
            before.setdefault(place, []).append(image.get("image_name") or image.get("raw_url"))
        else:
            entries.append(("lost", "matched_text_index is not a sentence's number"))
    cuts = sorted({0, len(sentences), *before})
    for begin, end in itertools.pairwise(cuts):
        entries += [("image", image) for image in before.get(begin, ())]
        said, lost = _sentences(sentences[begin:end])
        entries += [("text", " ".join(said))] * bool(said) + [("lost", reason) for reason in lost]
    return records.page(key, entries, folder)


def _sentences(values: Sequence[Any]) -> tuple[list[str], list[str]]:
    """The sentences among values, and why others are none; empty ones were there only to be counted."""
    said, lost = [], []
    for value in values:
        try:
            if value != "":
                said.append(records.text_of(value).strip())
        except RecordError as error:
            lost.append(str(error))
    return said, lost


FORMS: tuple[tuple[tuple[str, ...], Callable[[str, Mapping[str, Any], ImageFolder], Found]], ...] = (
    (("segments",), _segments),
    (("text_list", "image_info"), _mmc4),
    (("texts", "images"), _obelics),
)
FORMAT = Format(
    _shards,
    _read,
    (".jsonl", ".json", ".ndjson", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst"),
    ("image_column", "text_column", "images", "allow_paths"),
)
