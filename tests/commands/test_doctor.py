import json

import numpy as np
import pytest
from PIL import Image

from helpers import digits_config, prepare
from transfusion_jax.cli import main
from transfusion_jax.commands import doctor
from transfusion_jax.config import kept_values
from transfusion_jax.data.datasets import load_data, plain_statistics
from transfusion_jax.data.document_rows import make_rows
from transfusion_jax.data.readers.proportions import Proportions
from transfusion_jax.data.store.dataset import Prepared, PreparedDocuments
from transfusion_jax.data.store.inspect import MOST_SHAPES, histogram, shape_histogram
from transfusion_jax.errors import STEERING
from transfusion_jax.generation.contact_sheet import contact_sheet
from transfusion_jax.tasks.base import make_task
from transfusion_jax.training.facts import facts_of
from transfusion_jax.training.run_dir import Workdir


def test_good_data_is_described_and_nothing_is_wrong(digits_folder, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    assert main(["doctor", str(digits_folder), "--verify", "--output", str(sheet)]) == 0
    said = capsys.readouterr().out
    for part in ("6,1", "tokens of captions", "pixels 8×8×1", "nothing is wrong", str(sheet)):
        assert part in said
    assert Image.open(sheet).size[0] > 500
    assert main(["doctor", str(digits_folder), "--json", "--output", str(sheet)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["wrong"] == []
    assert sum(report["lengths"]["captions"].values()) == report["splits"]["train"]["documents"]


def test_the_contact_sheet_shows_captions_under_the_pictures(tmp_path):
    folder, colours = tmp_path / "photos", ("red", "lime", "blue")
    folder.mkdir()
    for colour in colours:
        Image.new("RGB", (64, 64), colour).save(folder / f"{colour}.png")
        (folder / f"{colour}.txt").write_text(f"all of it is {colour}, \u732b\n")
    prepare(tmp_path / "data", [str(folder)], image_size=16, held_out=0.0)
    main(["doctor", str(tmp_path / "data"), "--output", str(tmp_path / "sheet.png")])
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    stored = PreparedDocuments(Prepared.open(tmp_path / "data"), "train", "pixels", plain_statistics(3))
    images = np.stack([stored.latents(number)[0] for number in range(3)])
    shown = [colours[int(image.mean((0, 1)).argmax())] for image in images]
    captions = [rf"all of it is {colour}, \u732b" for colour in shown]
    np.testing.assert_array_equal(sheet, contact_sheet(images, captions, 8))


def test_images_of_their_own_proportions_are_shown_and_counted_by_shape(tmp_path, capsys):
    folder, sides = tmp_path / "photos", [(64, 16), (16, 32), (48, 48), (48, 48)]
    folder.mkdir()
    for number, side in enumerate(sides):
        Image.new("RGB", side, (50 * number, 9, 99)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"photograph {number}\n")
    prepare(tmp_path / "data", [str(folder)], native=Proportions(area=48 * 48), held_out=0.0)
    command = ["doctor", str(tmp_path / "data"), "--verify", "--output", str(tmp_path / "sheet.png")]
    assert main(command) == 1  # nothing is held out, nor anything seen
    said = capsys.readouterr().out
    bars = said[said.index("images of height×width\n") : said.index("tokens of captions")].splitlines()[1:]
    assert [line.split()[:2] for line in bars] == [["32×16", "1"], ["48×48", "2"], ["16×64", "1"]]
    assert "pixels (3 shapes, sides to 64, areas to 2,304, 3 channels): mean" in said
    assert "shapes of pixels in data.json" not in said
    stored = PreparedDocuments(Prepared.open(tmp_path / "data"), "train", "pixels", plain_statistics(3))
    captions = [f"photograph {round(stored.latents(n)[0][0, 0, 0] * 127.5 + 127.5) // 50}" for n in range(4)]
    sheet = contact_sheet([stored.latents(number)[0] for number in range(4)], captions, 8)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "sheet.png")), sheet)
    assert main([*command, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["shapes"] == {"pixels": [[16, 64, 1], [32, 16, 1], [48, 48, 2]]}


def test_rare_shapes_are_counted_together():
    shapes = {(height, 16): height // 16 for height in range(16, 16 * 40, 16)}
    bins = shape_histogram(shapes)
    assert len(bins) == MOST_SHAPES + 1
    assert sum(count for _, count in bins) == sum(shapes.values())
    assert bins[0] == ("624×16", 39)
    assert bins[-2:] == [("320×16", 20), ("19 others", sum(range(20)))]
    assert shape_histogram({(8, 8): 3}) == [("8×8", 3)]


def test_what_is_wrong_is_said_with_what_mends_it(tmp_path, capsys):
    blank = tmp_path / "blank"
    blank.mkdir()
    for number in range(10):
        Image.new("RGB", (64, 64), (number, number, number)).save(blank / f"{number}.png")
        (blank / f"{number}.txt").write_text("nothing\n\n" if number else "")
    prepare(tmp_path / "data", [str(blank)], image_size=64)
    assert examined(tmp_path / "data", capsys, "nothing is held out", "of the images show nothing", "are not used")


def test_large_images_in_pixels_outlast_the_noise(tmp_path, capsys):
    prepare(tmp_path / "data", ["shapes:20"], image_size=256, held_out=0.2)
    assert examined(tmp_path / "data", capsys, "coarse shape is still seen at 90% of the noise")
    prepare(tmp_path / "small", ["shapes:20"], image_size=32, held_out=0.2)
    assert not examined(tmp_path / "small", capsys)


def test_damaged_files_are_found(tmp_path, capsys):
    prepare(tmp_path / "data", ["shapes:20"], image_size=32, held_out=0.2)
    path = tmp_path / "data/pixels-00000.array_record"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    assert examined(tmp_path / "data", capsys, "pixels-00000.array_record is damaged", verify=True)
    path.unlink()
    assert examined(tmp_path / "data", capsys, "pixels-00000.array_record is missing", verify=True)
    assert main(["doctor", str(tmp_path / "data")]) == 2
    assert "pixels-00000.array_record is damaged: delete" in capsys.readouterr().err


def test_damaged_plans_of_rows_are_found(digits_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TRANSFUSION_CACHE", str(tmp_path))
    config = digits_config(digits_folder)
    data = load_data(config)
    rows = make_rows(data.train, config, data.codec.special)
    assert not examined(digits_folder, capsys, verify=True)
    path = rows.planner.find(0).plan.folder / "piece_document.npy"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    assert examined(digits_folder, capsys, f"the row plan in {path.parent} is damaged", verify=True)


def test_a_row_of_a_run_is_looked_up(digits_folder, tmp_path, capsys):
    config = digits_config(digits_folder, data__image_first=0.0, data__caption_dropout=0.0, steps=1000)
    data = load_data(config)
    Workdir(tmp_path).begin(config, facts_of(make_task(config), config, data), data, "start")
    rows = config.steps * config.batch_rows
    assert main(["doctor", "--workdir", str(tmp_path), "--row", str(rows)]) == 2
    assert f"is beyond the run, whose rows are 0 to {rows - 1}" in capsys.readouterr().err
    assert json.loads((tmp_path / "config.json").read_text()) == kept_values(config)
    picture = tmp_path / "row.png"
    command = ["doctor", "--workdir", str(tmp_path), "--row", "1234", "--output", str(picture)]
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    row = make_rows(data.train, config, data.codec.special)[1234]
    assert report["elements"] == np.sum(row.source >= 0)
    assert sum(document["images"] for document in report["documents"]) == np.sum(row.media["images"].source >= 0)
    text = data.codec.tokenizer.decode(row.tokens[row.tokens < 256])
    for document in report["documents"]:
        assert document["text"].removesuffix(" [image]") in text
        assert document["origin"].startswith("digits")
    assert picture.exists()
    assert main(command) == 0
    assert "row 1234, phase from row 0 on" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "doctor needs a folder that prepare or train wrote"),
        (["data", "--workdir", "x"], "or --workdir DIR: one of them"),
        (["--workdir", "x"], "no run in x"),
        (["data", "--row", "3"], "no run in data"),
        (["--workdir", "x", "--row", "-1"], "--row: -1 must be at least 0"),
        (["--workdir", "x", "--row", "1", "--verify"], "--verify reads whole files: leave out --row"),
        (["data", "--output", "sheet.jpg"], "--output must end in .png"),
        (["nowhere"], "nowhere does not exist"),
    ],
)
def test_what_cannot_be_examined_is_one_sentence(arguments, message, capsys):
    assert main(["doctor", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_histograms_count_every_length():
    lengths = np.random.default_rng(0).geometric(0.001, 1000)
    bins = histogram(lengths)
    assert sum(count for _, count in bins) == 1000
    assert bins[0][1] > 0 < bins[-1][1]
    assert dict(histogram(np.array([0, 3, 70_000]))) | {"0": 1, "1-3": 1, "65,536-": 1} == dict(
        histogram(np.array([0, 3, 70_000]))
    )
    assert histogram(np.zeros(0)) == []


def examined(folder, capsys, *parts, verify=False):
    """Whether something is wrong, and that it is said."""
    assert Prepared.open(folder)
    output = ["--output", str(folder.parent / "sheet.png")]
    code = main(["doctor", str(folder), *output, *(["--verify"] if verify else [])])
    said = capsys.readouterr().out
    assert all(part in said for part in parts), said
    assert ("WRONG" in said) == bool(code)
    return bool(code)


def test_what_a_row_is_made_of_steers_no_terminal(capsys):
    piece = {
        "source": "s",
        "document": 3,
        "origin": "a.tar: \x1b[31mred\u202e",
        "elements": [0, 9],
        "text": "\x9b31m",
    }
    report = {"row": 1, "phase": 0, "elements": 9, "padding": 0, "left_out": False, "pictures": None}
    doctor._print_row(report | {"documents": [piece]})
    said = capsys.readouterr().out
    assert not STEERING.search(said)
    assert r"a.tar: \x1b[31mred\u202e" in said
