"""Clip art in a small folder of the form that Debian's has."""

import pytest

from data.readers.samples import draw, outcomes, read
from helpers import prepare
from transfusion_jax.data.readers.clipart import clipart_caption


@pytest.fixture
def folder(tmp_path):
    """What the package is unpacked to, with a drawing that is filed twice."""
    root = tmp_path / "art/usr/share/openclipart/png"
    draw(root / "animals/jays/blue_jay_ann_ot_01.png", (6, 3), "gray", Title="Blue Jay", Author="Zoé")
    draw(root / "shapes/star_7pt03step.png", (3, 3), "navy", Title="gramastar")
    draw(root / "plain.png", (3, 3), "green")
    (root / "seasons").mkdir()
    (root / "seasons/blue_jay_ann_ot_02.png").symlink_to("../animals/jays/blue_jay_ann_ot_01.png")
    return tmp_path / "art"


def test_a_drawing_is_named_by_its_folders_and_title_or_file(folder):
    found = {document.key: document for document in read(f"clipart:{folder}")}
    assert {key: document.segments[0].text for key, document in found.items()} == {
        "animals/jays/blue_jay_ann_ot_01.png": "animals, jays: Blue Jay",
        "plain.png": "plain",
        "seasons/blue_jay_ann_ot_02.png": "seasons: Blue Jay",
        "shapes/star_7pt03step.png": "shapes: star 7pt03step",
    }
    assert found["animals/jays/blue_jay_ann_ot_01.png"].meta == {
        "file": "animals/jays/blue_jay_ann_ot_01.png",
        "title": "Blue Jay",
        "author": "Zoé",
    }


def test_the_inner_folder_is_the_same_set(folder):
    assert read(f"clipart:{folder}") == read(f"clipart:{folder}/usr/share/openclipart/png")


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_shards_cover_every_drawing_once(folder, size):
    assert read(f"clipart:{folder}", shard_size=size) == read(f"clipart:{folder}")


@pytest.mark.parametrize(
    ("file", "title", "subject"),
    [
        ("ice_cream_benji_park_01.png", " Ice-Cream ", "Ice Cream"),
        ("parchment_paper_landsca_.png", "Parchment Paper Landscape", "Parchment Paper Landscape"),
        ("horse_1.png", "horse#2", "horse#2"),
        ("jigsaw_green_10.png", "Clipart by Nicu - jigsaw_red_10", "jigsaw green 10"),
        ("aiga_cashier_.png", "AIGA_Symbol_Signs", "aiga cashier"),
        ("iran.png", "", "iran"),
        ("07.png", "007", "07"),
    ],
)
def test_a_title_is_used_where_the_file_is_named_after_it(file, title, subject):
    assert clipart_caption(f"signs_and_symbols/{file}", title) == f"signs and symbols: {subject}"


def test_what_cannot_be_used_has_a_line(tmp_path, folder):
    root = folder / "usr/share/openclipart/png"
    (root / "plain.png").write_bytes(b"no picture")
    (root / "leads_out.png").symlink_to(tmp_path / "elsewhere.png")
    draw(tmp_path / "elsewhere.png", (2, 2), "red")
    (root / "notes.txt").write_text("by hand")
    prepared = prepare(tmp_path / "out", [f"clipart:{folder}"])
    assert prepared.manifest["splits"]["train"]["documents"] == 3
    assert prepared.manifest["quarantine"] == {
        "image lies outside the folder of the input": 1,
        "not a drawing, by its ending": 1,
        "not an image": 1,
    }
    faults = [key for key, outcome in outcomes(read(f"clipart:{folder}")).items() if isinstance(outcome, str)]
    assert faults == ["leads_out.png", "notes.txt"]
