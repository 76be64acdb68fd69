"""Tux Paint's stamps in a small folder of the form that Debian's has."""

import json
import os

import numpy as np
import pytest

from data.readers.samples import draw, read
from helpers import prepare
from transfusion_jax.cli import main
from transfusion_jax.config import ConfigError
from transfusion_jax.data.datasets import plain_statistics
from transfusion_jax.data.prepare import PrepareJob
from transfusion_jax.data.readers import Fault, RawDocument, ReadOptions
from transfusion_jax.data.readers.pictures import decode
from transfusion_jax.data.readers.stamps import captions_by_language
from transfusion_jax.data.store.dataset import PreparedDocuments

CROW = "A crow.\nfr.utf8=Une corneille.\nen_GB.utf8=A crow.\npt_BR.utf8= Uma gralha. \nca@valencia.utf8=\nde=Alt\n"


@pytest.fixture
def folder(tmp_path):
    """What the package is unpacked to, with two stamps of unlike proportions, and what lies beside them."""
    root = tmp_path / "package/usr/share/tuxpaint/stamps"
    draw(root / "animals/crow.png", (8, 4), (200, 0, 0, 128))
    draw(root / "animals/crow_mirror.png", (8, 4), "green")
    draw(root / "town/tower.png", (2, 12), "navy")
    (root / "animals/crow.txt").write_text(CROW)
    (root / "town/tower.txt").write_text("A tower. 6x7=42")
    for ending in (".dat", ".ogg", "_desc_fr.ogg", ".svg"):
        (root / f"animals/crow{ending}").write_text("noflip")
    return tmp_path / "package"


def captions(records):
    """By key; faults are left out."""
    return {r.key: r.segments[0].text for r in records if isinstance(r, RawDocument)}


def faults(records):
    """The reasons by key."""
    return {r.key: r.reason for r in records if isinstance(r, Fault)}


def test_a_stamp_has_its_english_caption(folder):
    records = read(f"stamps:{folder}")
    assert captions(records) == {"animals/crow.png:en": "A crow.", "town/tower.png:en": "A tower. 6x7=42"}
    assert records[1].meta == {"file": "animals/crow.png", "language": "en"}


def test_mirror_images_have_one_line_and_what_tux_paint_needs_has_none(folder):
    draw(folder / "usr/share/tuxpaint/stamps/town/tower_mirror_flip.png", (2, 12), "green")
    assert faults(read(f"stamps:{folder}")) == {
        "folder": "mirror images of other stamps are not used: animals/crow_mirror.png, town/tower_mirror_flip.png"
    }


def test_the_inner_folder_is_the_same_set(folder):
    assert read(f"stamps:{folder}") == read(f"stamps:{folder}/usr/share/tuxpaint/stamps")


def test_what_is_clear_is_white(folder):
    crow = read(f"stamps:{folder}")[1].segments[1]
    pixels = decode(crow.data, 4, 3)
    np.testing.assert_array_equal(pixels, np.broadcast_to([227, 127, 127], (4, 4, 3)))


@pytest.mark.parametrize(
    ("languages", "found"),
    [
        ("fr", {"fr": "Une corneille."}),
        ("fr,en", {"fr": "Une corneille.", "en": "A crow."}),
        ("en_GB,en", {"en_GB": "A crow."}),
        ("all", {"en": "A crow.", "fr": "Une corneille.", "pt_BR": "Uma gralha."}),
    ],
)
def test_each_language_is_a_document_and_equal_captions_are_one(folder, languages, found):
    said = captions(read(f"stamps:{folder}", languages=languages))
    of_crow = [(key, caption) for key, caption in said.items() if key.startswith("animals/crow.png")]
    assert of_crow == [(f"animals/crow.png:{language}", caption) for language, caption in found.items()]


def test_the_command_takes_languages(tmp_path, folder, capsys):
    words = ["prepare", f"stamps:{folder}", "--output", str(tmp_path / "out"), "--languages", "fr", "--dry-run"]
    assert main(words) == 0
    assert "animals/crow.png:fr: text 'Une corneille.', image" in capsys.readouterr().out


def test_a_stamp_without_a_caption_in_the_language_is_a_fault(folder):
    found = faults(read(f"stamps:{folder}", languages="fr"))
    assert found["town/tower.png"] == "no caption in a language that is asked for: it has en"


def test_a_language_that_no_stamp_has_is_refused(folder):
    with pytest.raises(ConfigError, match="no caption is in 'pt'; did you mean 'pt_BR'"):
        read(f"stamps:{folder}", languages="en,pt")


def test_languages_mean_nothing_to_other_sets():
    with pytest.raises(ConfigError, match="--languages means nothing to digits"):
        read("digits", languages="fr")


@pytest.mark.parametrize(("languages", "kept"), [("en", False), ("fr", True)])
def test_a_job_in_english_is_as_jobs_were_before_there_were_languages(languages, kept):
    assert ("languages" in PrepareJob((), ReadOptions(languages=languages)).to_dict()["reading"]) == kept


def test_an_english_caption_may_be_missing():
    assert captions_by_language("\nfr.utf8=Un œuf\r\n") == {"fr": "Un œuf"}


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_shards_cover_every_stamp_once(folder, size):
    assert read(f"stamps:{folder}", shard_size=size, languages="all") == read(f"stamps:{folder}", languages="all")


def harm_picture(animals):
    (animals / "crow.png").write_bytes((animals / "crow.png").read_bytes()[:50])


def harm_caption(animals):
    (animals / "crow.txt").write_bytes(b"\xff\xfe")


def lose_caption(animals):
    (animals / "crow.txt").unlink()


def empty_caption(animals):
    (animals / "crow.txt").write_text(" \n")


def misname_caption(animals):
    (animals / "crow.txt").write_text("\nfr=Une corneille.")


def lengthen_caption(animals):
    (animals / "crow.txt").write_text("\n" * 70_000)


def lose_pictures(animals):
    for ending in (".png", "_mirror.png", ".svg"):
        (animals / f"crow{ending}").unlink()


def lose_png(animals):
    for ending in (".png", "_mirror.png"):
        (animals / f"crow{ending}").unlink()


def put_a_pipe(animals):
    (animals / "crow.png").unlink()
    os.mkfifo(animals / "crow.png")


@pytest.mark.parametrize(
    ("harm", "key", "reason"),
    [
        (harm_picture, "animals/crow.png:en", "damaged image"),
        (harm_caption, "animals/crow.png", "caption is not UTF-8"),
        (lose_caption, "animals/crow.png", "caption cannot be read: No such file"),
        (empty_caption, "animals/crow.png", "empty caption"),
        (misname_caption, "animals/crow.png", "no caption in a language that is asked for: it has none"),
        (lengthen_caption, "animals/crow.png", "too many captions"),
        (lose_pictures, "animals/crow.txt", "captions of no image"),
        (lose_png, "folder", "stamps in SVG alone are not read: animals/crow"),
        (put_a_pipe, "animals/crow.png", "image cannot be read"),
    ],
)
def test_what_is_damaged_has_a_line_and_the_rest_is_used(tmp_path, folder, harm, key, reason):
    harm(folder / "usr/share/tuxpaint/stamps/animals")
    prepared = prepare(tmp_path / "out", [f"stamps:{folder}"])
    lines = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    assert any(line["key"] == key and line["reason"].startswith(reason) for line in lines), lines
    assert prepared.manifest["splits"]["train"]["documents"] == 1


def test_a_foreign_file_has_a_line(folder):
    (folder / "usr/share/tuxpaint/stamps/read.me").write_text("?")
    assert faults(read(f"stamps:{folder}"))["read.me"] == "not a stamp's file, by its ending"


def test_all_captions_of_a_picture_are_on_one_side(tmp_path, folder):
    for number in range(12):
        draw(folder / f"usr/share/tuxpaint/stamps/{number}.png", (4, 4), (20 * number, 0, 0, 255))
        text = f"Number {number}.\nfr.utf8=Numéro {number}."
        (folder / f"usr/share/tuxpaint/stamps/{number}.txt").write_text(text)
    prepared = prepare(tmp_path / "out", [f"stamps:{folder}"], held_out=0.5, languages="en,fr")
    sides = []
    for split in ("train", "held_out"):
        documents = PreparedDocuments(prepared, split, "pixels", plain_statistics(3))
        about = [documents.record(documents.first_record(n)).meta for n in range(len(documents.images))]
        assert {meta["language"] for meta in about} == {"en", "fr"}
        sides.append({meta["file"] for meta in about})
    assert sides[0].isdisjoint(sides[1])
    assert len(sides[0] | sides[1]) == 14
