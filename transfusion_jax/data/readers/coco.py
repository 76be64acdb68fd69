"""COCO's captions (captions_*.json), or Karpathy's dataset_coco.json, whose images have splits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
    names = _names_by_id(images)
    if options.split:
        there = {str(image["split"]) for image in images if "split" in image}
        wanted = set(options.split.split(","))
        for name in sorted(wanted - there):
            raise ConfigError(f"{path} has no split {name!r}: {nearest(name, there)}")
        images = [image for image in images if str(image.get("split")) in wanted]
    captions: dict[str | None, list[Any]] = {}
    strays: Entries = []
    for number, note in enumerate(notes):
        if (about := _id(note, "image_id")) in names:
            captions.setdefault(about, []).append(note.get("caption"))
        else:
            strays.append(Fault(f"annotations[{number}]", f"caption of no image: image_id is {str(about)[:80]}"))
    folder = ImageFolder.of(path, options)
    return [_entry(number, image, captions, names, folder) for number, image in enumerate(images)] + strays


def _names_by_id(images: Iterable[Mapping[str, Any]]) -> dict[str | None, str | None]:
    """The name of the image that has an id; None where several images have it."""
    names: dict[str | None, str | None] = {}
    for image in images:
        if (about := _id(image, "id")) is not None:
            names[about] = _name(image) if names.get(about, _name(image)) == _name(image) else None
    return names


def _id(values: Mapping[str, Any], field: str) -> str | None:
    """An id, which some write as a number and some as a text."""
    return None if values.get(field) is None else str(values[field])


def _name(image: Mapping[str, Any]) -> str | None:
    name, inner = image.get("file_name") or image.get("filename"), image.get("filepath")
    if not isinstance(name, str):
        return None
    return files.join(inner, name) if isinstance(inner, str) else name


def _entry(
    number: int,
    image: Mapping[str, Any],
    captions: Mapping[str | None, list[Any]],
    names: Mapping[str | None, str | None],
    folder: ImageFolder,
) -> FolderEntry | Fault:
    name, about = _name(image), _id(image, "id")
    if name is None:
        return Fault(f"images[{number}]", "no file_name")
    found = captions.get(about, [])
    if found and names[about] is None:
        return Fault(name, f"captions of several images: their id is {str(about)[:80]}")
    if isinstance(sentences := image.get("sentences"), list):
        found = [s.get("raw") if isinstance(s, dict) else s for s in sentences]
    return FolderEntry(name, partial(folder.read, name), partial(same, found))


FORMAT = captioned_images(_entries, ("images", "allow_paths", "split"))
