"""docs/serving.md says of every bound what the code has."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from transfusion_jax.commands.serve import TOKEN
from transfusion_jax.data.readers import effort
from transfusion_jax.data.readers.effort import LARGEST, PACKETS, PASSES
from transfusion_jax.serving.limits import MIB, ServerLimits
from transfusion_jax.serving.reading import LARGE
from transfusion_jax.serving.schema import MOST_IMAGE, MOST_TEXT, Answer, Caption, DrawnShapes, Generate

PAGE = (Path(__file__).parents[2] / "docs/serving.md").read_text()
TABLE = PAGE.partition("| bound | number |")[2].partition("\n\n")[0]
ROWS = dict(re.findall(r"^\| (.+) \| (.+) \|$", TABLE, re.MULTILINE))
LIMITS = ServerLimits()
SCHEMA = Generate.model_json_schema()["properties"]
BOUNDS = {  # by field: the beginning of its row, and what stands there
    "body": ("a request's body", f"{LIMITS.body // MIB} MiB (413)"),
    "bodies": ("all bodies", f"{LIMITS.bodies // MIB} MiB (503)"),
    "chunks": ("chunks that a body", f"{LIMITS.chunks} (413)"),
    "marks": ("characters of a body's JSON", f"{LIMITS.marks} (413)"),
    "depth": ("depth of", f"{LIMITS.depth} (413)"),
    "escapes": ("backslashes", f"{LIMITS.escapes} (413)"),
    "pixels": ("pixels of one image", f"{LARGEST}, {LIMITS.pixels} (400)"),
    "scans": ("scans of a JPEG", f"{PASSES * LARGEST} (400)"),
    "large": (f"images of more than {LARGE} pixels", "1"),
    "packets": ("packets of a JPEG 2000", f"{PACKETS} (400)"),
    "around": ("parts of an image's file", f"{effort.PARTS} (400)"),
    "exif": ("bytes of an image's EXIF", f"{effort.EXIF // MIB} MiB, {effort.EXIFS} (400)"),
    "packed": ("profiles of a PNG", f"{effort.PROFILES}, {effort.PACKED} (400)"),
    "values": ("numbers in the tags", f"{effort.VALUES} (400)"),
    "comments": ("comments of a PPM", f"{effort.COMMENTS} (400)"),
    "readers": ("threads", f"{LIMITS.readers}"),
    "faults": ("faults", f"{LIMITS.faults}, {LIMITS.words}, {LIMITS.name}"),
    "words": ("faults", f"{LIMITS.faults}, {LIMITS.words}, {LIMITS.name}"),
    "name": ("faults", f"{LIMITS.faults}, {LIMITS.words}, {LIMITS.name}"),
    "head": ("a request's line", f"{LIMITS.head // 1024} KiB (400), {LIMITS.head_seconds} s (408)"),
    "head_seconds": ("a request's line", f"{LIMITS.head // 1024} KiB (400), {LIMITS.head_seconds} s (408)"),
    "body_seconds": ("a body", f"{LIMITS.body_seconds} s (408)"),
    "client_seconds": ("a client that reads nothing", f"{LIMITS.client_seconds} s"),
    "connections": ("connections", f"{LIMITS.connections} (503)"),
    "parts": ("texts of a prompt", f"{SCHEMA['parts']['maxItems']} parts, {MOST_TEXT} (422)"),
    "image": ("an image's file", f"{MOST_IMAGE * 3 // 4 // MIB + 1} MiB (422)"),
    "makes": (
        "what a request makes",
        f"{SCHEMA['max_tokens']['maximum']} tokens, {SCHEMA['max_images']['maximum']} images",
    ),
}


def test_every_bound_is_told():
    assert {field.name for field in fields(ServerLimits)} <= set(BOUNDS)
    assert TOKEN in PAGE


@pytest.mark.parametrize("name", BOUNDS)
def test_the_page_has_the_numbers_of_the_code(name):
    begins, number = BOUNDS[name]
    assert [value for bound, value in ROWS.items() if bound.startswith(begins)] == [number]


def test_every_field_of_requests_and_answers_is_told():
    requests = PAGE.partition("## Requests")[2].partition("\n## ")[0]
    models = Generate, Caption, Answer, DrawnShapes
    for field in {name for model in models for name in model.model_fields}:
        assert re.search(rf"`{field}`|\b{field}:", requests), field
    for reason in Answer.model_json_schema()["properties"]["reason"]["enum"]:
        assert f"`{reason}`" in requests


def test_the_bodies_of_the_page_are_requests():
    bodies = re.findall(r"-d '(\{.*\})'", PAGE)
    assert len(bodies) == 2
    for body in bodies:
        Generate.model_validate(json.loads(body))
