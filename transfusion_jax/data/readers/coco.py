"""COCO's captions (captions_*.json), or Karpathy's dataset_coco.json, whose images have splits."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from transfusion_jax.config import ConfigError
from transfusion_jax.data.readers import files, records
from transfusion_jax.data.readers.folder import Entries, FolderEntry, captioned_images, same
from transfusion_jax.data.readers.format import ReadOptions
from transfusion_jax.data.readers.raw import Fault, RecordError
from transfusion_jax.data.readers.records import ImageFolder
from transfusion_jax.errors import nearest, require

BYTES = 1 << 28  # of a file; Karpathy's of COCO has half as many
OBJECTS = 1 << 21  # and lists of a file; his has 1.6 million


def _entries(path: str, options: ReadOptions) -> Entries:
    require(not files.is_folder(path), f"{path} is a folder: name its file of captions")
    with files.open_file(path) as file:
        try:
            data = file.read(BYTES + 1)
            if len(data) > BYTES:
                raise RecordError(f"too large: above {BYTES >> 20} MiB")
            values = records.json_object(data, OBJECTS)
        except RecordError as error:
            raise ConfigError(f"{path} cannot be read: {error}") from error
    images, notes = values.get("images"), values.get("annotations", [])
    if (
        not isinstance(images, list)
        or not isinstance(notes, list)
        or not all(isinstance(n, dict) for n in [*images, *notes])
    ):
        raise ConfigError(
            f"{path} is not a file of COCO's captions: it needs lists of objects, images and annotations"
        )
    if options.split:
        there = {str(image["split"]) for image in images if "split" in image}
        wanted = set(options.split.split(","))
        for name in sorted(wanted - there):
            raise ConfigError(f"{path} has no split {name!r}: {nearest(name, there)}")
        images = [image for image in images if str(image.get("split")) in wanted]
    captions: dict[Any, list[Any]] = {}
    for note in notes:
        captions.setdefault(str(note.get("image_id")), []).append(note.get("caption"))
    folder = ImageFolder.of(path, options)
    return [_entry(number, image, captions, folder) for number, image in enumerate(images)]


def _entry(
    number: int, image: Mapping[str, Any], captions: Mapping[str, list[Any]], folder: ImageFolder
) -> FolderEntry | Fault:
    name = image.get("file_name") or image.get("filename")
    if not isinstance(name, str):
        return Fault(f"images[{number}]", "no file_name")
    if isinstance(inner := image.get("filepath"), str):
        name = files.join(inner, name)
    found = captions.get(str(image.get("id")), [])
    if isinstance(sentences := image.get("sentences"), list):
        found = [s.get("raw") if isinstance(s, dict) else s for s in sentences]
    return FolderEntry(name, partial(folder.read, name), partial(same, found))


FORMAT = captioned_images(_entries, ("images", "allow_paths", "split"))
