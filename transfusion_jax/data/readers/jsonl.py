"""Files of JSON lines: texts, images with captions, documents of OBELICS and of MMC4, and lists of segments.

The last form says everything, such as an edit: `{"segments": [{"image": "a.png", "loss": false}, {"text": "make it
red", "loss": false}, {"image": "b.png"}], "meta": {}}`. Keys are `@` and the byte at which the line begins.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

from transfusion_jax.data.readers import files, records
from transfusion_jax.data.readers.format import Format, ReadOptions
from transfusion_jax.data.readers.raw import Fault, InputShard, RawDocument, RawImage, RawText

RANGE = 1 << 28  # bytes per shard of a file that is not compressed

Found = Iterator[RawDocument | Fault]


def _shards(path: str, options: ReadOptions) -> list[InputShard]:
    if path.lower().endswith((".gz", ".zst")):
        return [InputShard(path)]
    size = files.size(path)
    return [InputShard(path, begin, min(begin + RANGE, size)) for begin in range(0, size, RANGE)]


def _read(shard: InputShard, options: ReadOptions) -> Found:
    folder = files.folder_of(shard.path) if options.images is None else options.images
    for offset, line in lines_of_shard(shard):
        key = f"@{offset}"
        try:
            if isinstance(line, Fault):
                yield line
            elif line.strip():
                yield from _documents(key, records.json_object(line), folder, options)
        except records.RecordError as error:
            yield Fault(key, str(error))


def lines_of_shard(shard: InputShard) -> Iterator[tuple[int, bytes | Fault]]:
    """The lines that begin within the shard's bytes, and where each begins."""
    with files.open_unpacked(shard.path) as stream:
        offset = shard.begin
        if offset:  # the line that holds the byte before belongs to the range before
            stream.seek(offset - 1)
            offset += _skip(stream) - 1
        while not shard.end or offset < shard.end:
            try:
                line = stream.readline(files.LARGEST)
                length = len(line)
                if length == files.LARGEST and not line.endswith(b"\n"):
                    length += _skip(stream)
            except files.DAMAGE as error:
                yield offset, Fault(f"@{offset}", f"broken file: {files.damage(error)}")
                return
            if not line:
                return
            yield offset, line if length == len(line) else Fault(f"@{offset}", "line too long")
            offset += length


def _skip(stream: IO[bytes]) -> int:
    """Passes the rest of a line; its bytes."""
    length = 0
    while part := stream.readline(1 << 20):
        length += len(part)
        if part.endswith(b"\n"):
            break
    return length


def _documents(key: str, values: Mapping[str, Any], folder: str, options: ReadOptions) -> Found:
    """What a line holds; options that name its fields leave only images with captions, and texts."""
    images, texts = options.image_column, options.text_column
    for names, form in () if images or texts else FORMS:
        if all(name in values for name in names):
            return form(key, values, folder)
    text = records.caption_of(values, texts)
    if images or "image" in values:
        return records.pairs(key, records.image_bytes(values.get(images or "image"), folder), text)
    if text is None:
        raise records.RecordError(f"neither image nor text: keys are {', '.join(map(repr, list(values)[:8]))}")
    return records.document(key, text)


def _segments(key: str, values: Mapping[str, Any], folder: str) -> Found:
    segments, meta = values["segments"], values.get("meta", {})
    known = isinstance(segments, list) and isinstance(meta, dict) and set(values) <= {"segments", "meta"}
    if not known or not segments:
        raise records.RecordError('not of the form {"segments": [{...}, ...], "meta": {...}}')
    return iter([RawDocument(key, tuple(_segment(segment, folder) for segment in segments), meta)])


def _segment(segment: Any, folder: str) -> RawText | RawImage:
    if not isinstance(segment, dict) or set(segment) - {"loss"} not in ({"text"}, {"image"}):
        raise records.RecordError("a segment holds a text or an image, and perhaps loss")
    loss = segment.get("loss", True)
    if not isinstance(loss, bool):
        raise records.RecordError(f"loss is true or false, not of type {type(loss).__name__}")
    if "text" in segment:
        return RawText(records.text_of(segment["text"]), loss)
    return RawImage(records.image_bytes(segment["image"], folder), loss)


def _obelics(key: str, values: Mapping[str, Any], folder: str) -> Found:
    return records.interleaved(key, records.aligned(values["texts"], values["images"]), folder)


def _mmc4(key: str, values: Mapping[str, Any], folder: str) -> Found:
    """Each image before the sentence that it matches; sentences between two images become one text."""
    sentences, images = values["text_list"], values["image_info"]
    if not isinstance(sentences, list) or not isinstance(images, list):
        raise records.RecordError("text_list and image_info are not lists")
    before: dict[int, list[Any]] = {}
    for image in images:
        place = image.get("matched_text_index") if isinstance(image, dict) else None
        if type(place) is not int or not 0 <= place < len(sentences):
            raise records.RecordError("matched_text_index is not a sentence's number")
        before.setdefault(place, []).append(image.get("image_name") or image.get("raw_url"))
    cuts = sorted({0, len(sentences), *before})
    entries: list[tuple[str, Any]] = []
    for begin, end in itertools.pairwise(cuts):
        entries += [("image", image) for image in before.get(begin, ())]
        entries.append(("text", " ".join(records.text_of(s).strip() for s in sentences[begin:end] if s != "")))
    return records.interleaved(key, entries, folder)


FORMS: tuple[tuple[tuple[str, ...], Callable[[str, Mapping[str, Any], str], Found]], ...] = (
    (("segments",), _segments),
    (("text_list", "image_info"), _mmc4),
    (("texts", "images"), _obelics),
)
FORMAT = Format(
    _shards,
    _read,
    (".jsonl", ".json", ".ndjson", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst"),
    ("image_column", "text_column", "images"),
)
