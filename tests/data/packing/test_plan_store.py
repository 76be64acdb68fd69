import dataclasses
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.mixtures import mixture, pairs, room_of, rows_of, texts
from helpers import tiny_config, tiny_corpus
from transfusion_jax.data.documents import Corpus, DocumentList, Source
from transfusion_jax.data.packing import plan as planning
from transfusion_jax.data.packing import plan_store, planner
from transfusion_jax.data.packing.plan import REPLAYED, VERSION, plan_rows
from transfusion_jax.data.packing.plan_store import COLUMNS, damaged_plans, default_cache, open_plan
from transfusion_jax.data.packing.sequences import Place
from transfusion_jax.errors import StorageError

DATA = tiny_config().data
WEIGHTS = {"pairs": 2.0, "texts": 1.0}
FILES = [*(f"{name}.npy" for name in COLUMNS), "plan.json"]


def test_a_plan_on_disk_is_the_plan_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(planner, "BLOCK_ROWS", 16)
    stored, memory = planned(tmp_path), planned(None)
    assert_same(stored, memory)
    assert stored.rows > 32
    assert stored.about.items() < json.loads((stored.folder / "plan.json").read_text()).items()
    assert {name: getattr(stored, name).dtype for name in COLUMNS} == {
        name: np.int32 if name == "piece_length" else np.int64 for name in COLUMNS
    }


def test_a_plan_is_made_once(tmp_path, monkeypatch):
    first = planned(tmp_path)
    monkeypatch.setattr(planning, "plan_blocks", None)
    assert_same(planned(tmp_path), first)
    assert_same(planned(tmp_path, weights={name: 8 * weight for name, weight in WEIGHTS.items()}), first)
    assert [path.name for path in tmp_path.iterdir()] == [first.folder.name]


def test_whatever_a_plan_depends_on_makes_another_one(tmp_path, monkeypatch):
    def named(name):
        corpus = tiny_corpus()
        return {"corpus": Corpus((dataclasses.replace(corpus.sources[0], name=name), corpus.sources[1]))}

    changes = [
        {},
        {"seed": 1},
        {"patches": 5},
        {"weights": {"pairs": 2.5, "texts": 1.0}},
        {"weights": {"texts": 1.0}},
        {"data": dataclasses.replace(DATA, context_length=50)},
        {"data": dataclasses.replace(DATA, max_images=5)},
        {"data": dataclasses.replace(DATA, max_text=40)},
        {"corpus": tiny_corpus(seed=1)},
        {"corpus": Corpus(tiny_corpus().sources[::-1])},
        named("pictures") | {"weights": {"pictures": 2.0, "texts": 1.0}},
        {"begin": {"texts": Place(1)}},
        {"begin": {"texts": Place(1, 2)}},
        {"begin": {"pairs": Place(1, 0, np.array([3]))}},
        {"begin": {"pairs": Place(1, 0, np.array([4]))}},
    ]
    folders = {planned(tmp_path, **change).folder.name for change in changes}
    monkeypatch.setattr(planner, "BLOCK_ROWS", 16)
    monkeypatch.setattr(planning, "BLOCK_ROWS", 16)
    folders.add(planned(tmp_path).folder.name)
    folders.add(plan_rows(tiny_corpus(), WEIGHTS, room_of(DATA), 0, None, tmp_path, version=2).folder.name)
    folders.add(plan_rows(tiny_corpus(), WEIGHTS, room_of(DATA), 0, None, tmp_path, least=99).folder.name)
    assert len(folders) == len(changes) + 3


def test_what_does_not_shape_a_plan_makes_no_other_one(tmp_path):
    first = planned(tmp_path)
    other = Source("unread", DocumentList(tiny_corpus(3).sources[1].documents.documents))
    corpus = Corpus((*tiny_corpus().sources, other))
    assert planned(tmp_path, corpus=corpus, data=dataclasses.replace(DATA, workers=3)).folder == first.folder


DAMAGES = {
    "deleted": Path.unlink,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-2]),
    "emptied": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "something else": lambda path: path.write_bytes(b"{}"),
    "of another plan": lambda path: path.write_bytes(other_plan(path).read_bytes()),
    "first bit": lambda path: flip(path, 0.0),
    "a bit in the middle": lambda path: flip(path, 0.5),
    "last bit": lambda path: flip(path, 1.0),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_plan_is_found_and_made_again_and_never_used(tmp_path, name, damage):
    rows = stream(tmp_path)
    expected = [rows.pieces(row) for row in range(rows.epoch)]
    path = rows.planner.find(0).plan.folder / name
    whole = path.read_bytes()
    DAMAGES[damage](path)
    assert len(damaged_plans(tmp_path)) == (whole != (path.read_bytes() if path.exists() else b""))
    again = stream(tmp_path)
    assert [again.pieces(row) for row in range(again.epoch)] == expected
    assert again.pieces(again.epoch + 1) == rows.pieces(rows.epoch + 1)
    assert path.read_bytes() == whole
    assert damaged_plans(tmp_path) == []


@pytest.mark.parametrize("name", ["piece_document.npy", "piece_start.npy", "piece_length.npy", "row_offset.npy"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_plan_that_is_damaged_while_it_is_read_is_made_again(tmp_path, name, damage):
    rows, said = stream(tmp_path), []
    rows.planner.log = said.append
    expected = [rows.pieces(row) for row in range(rows.epoch)]
    opened = stream(tmp_path)
    DAMAGES[damage](rows.planner.find(0).plan.folder / name)
    assert [opened.pieces(row) for row in range(opened.epoch)] == expected  # opened when all was well
    assert [rows.pieces(row) for row in range(rows.epoch)] == expected  # of what had been read before


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "of another plan"])
def test_a_damaged_note_of_where_an_epoch_ends_is_made_again(tmp_path, damage):
    rows = stream(tmp_path)
    expected = [rows.pieces(row) for row in range(rows.epoch - 5, rows.epoch + 5)]
    for path in tmp_path.glob("*.json"):
        DAMAGES[damage](path)
    again = stream(tmp_path)
    assert [again.pieces(row) for row in range(rows.epoch - 5, rows.epoch + 5)] == expected


def test_a_note_of_another_epoch_in_its_place_is_not_believed(tmp_path):
    rows = stream(tmp_path)
    expected = [rows.pieces(row) for row in range(rows.epoch - 5, rows.epoch + 5)]
    first, second = sorted(tmp_path.glob("*.json"))
    first.write_bytes(second.read_bytes())
    again = stream(tmp_path)
    assert [again.pieces(row) for row in range(rows.epoch - 5, rows.epoch + 5)] == expected


@pytest.mark.parametrize("version", [REPLAYED, VERSION])
@pytest.mark.parametrize("name", ["piece_document.npy", "piece_length.npy", "row_offset.npy", "block_place.npy"])
def test_a_damaged_plan_is_made_again_where_a_phase_goes_on_from_it(tmp_path, name, version):
    def phased():
        corpus, weights = mixture([pairs("p", 2, range(1, 9)), texts("t", 1, range(1, 40))])
        return rows_of(tmp_path, corpus, weights, DATA, version, phases={"5": {"p": 1.0, "t": 1.0}})

    expected = [phased().pieces(row) for row in range(12)]
    for note in tmp_path.glob("*.json"):
        note.unlink()
    for folder in tmp_path.iterdir():
        flip(folder / name, 0.9)
    again = phased()
    assert [again.pieces(row) for row in range(12)] == expected


def test_plans_without_checksums_are_made_again(tmp_path):
    """As versions wrote them that had none."""
    first = planned(tmp_path)
    about = json.loads((first.folder / "plan.json").read_text())
    shapes = {name: shape for name, (_, shape, _) in about["files"].items()}
    (first.folder / "plan.json").write_text(json.dumps({"rows": about["rows"], "shapes": shapes}))
    assert open_plan(first.folder) is None
    assert_same(planned(tmp_path), first)


def test_parts_of_columns_are_read_across_checksums(tmp_path, monkeypatch):
    monkeypatch.setattr(plan_store, "CHUNK", 24)
    plan = planned(tmp_path)
    assert plan.folder
    for name in COLUMNS:
        column = getattr(plan, name)
        for begin, end in ((0, len(column)), (1, 2), (2, 9), (3, 3)):
            np.testing.assert_array_equal(plan.read(name, begin, end), column[begin:end])
    plan.verify()


def test_planning_that_is_broken_off_leaves_nothing(tmp_path):
    def blocks():
        yield {name: np.zeros(1, np.int64) for name in COLUMNS}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plan_store.store_blocks(tmp_path / "plan", blocks(), lambda columns: {})
    assert list(tmp_path.iterdir()) == []


def test_of_two_that_plan_at_the_same_time_the_first_to_end_provides_the_plan(tmp_path):
    folder = planned(tmp_path / "other").folder
    first = []

    def blocks():
        first.append(planned(tmp_path))
        yield {name: getattr(first[0], name)[:1] for name in COLUMNS}

    folder = tmp_path / folder.name
    assert_same(plan_store.store_blocks(folder, blocks(), lambda columns: {}), first[0])
    assert first[0].folder == folder
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([folder.name, "other"])


@pytest.mark.slow
def test_processes_that_plan_at_the_same_time_share_one_plan(tmp_path):
    code = (
        "import sys, pathlib; from helpers import *; from data.mixtures import room_of;"
        "from transfusion_jax.data.packing.plan import plan_rows;"
        f"arguments = tiny_corpus(), {WEIGHTS}, room_of(tiny_config().data), 0, None, pathlib.Path(sys.argv[1]);"
        "plan = plan_rows(*arguments);"
        "print(plan.rows, plan.folder.name)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE) for _ in range(3)]
    said = {process.communicate(timeout=600)[0].strip() for process in processes}
    plan = planned(tmp_path)
    assert said == {f"{plan.rows} {plan.folder.name}"}
    assert_same(plan, planned(None))
    assert [path.name for path in tmp_path.iterdir()] == [plan.folder.name]


def test_a_plan_on_disk_is_sent_by_its_path_and_one_in_memory_whole(tmp_path):
    for cache in (tmp_path, None):
        plan = planned(cache)
        sent = pickle.dumps(plan)
        assert_same(pickle.loads(sent), plan)
        assert (len(sent) < 500) == (cache is not None)


def test_a_plan_that_was_deleted_meanwhile_is_an_error(tmp_path):
    plan = planned(tmp_path)
    sent = pickle.dumps(plan)
    (plan.folder / "plan.json").unlink()
    with pytest.raises(StorageError, match="was damaged or deleted while in use"):
        pickle.loads(sent)


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"the row plan cannot be written: .* TRANSFUSION_CACHE"):
        planned(tmp_path / "file")


def test_the_variable_names_the_cache(monkeypatch):
    monkeypatch.setenv("TRANSFUSION_CACHE", "/somewhere")
    assert default_cache() == Path("/somewhere/plans")
    monkeypatch.delenv("TRANSFUSION_CACHE")
    assert default_cache() == Path.home() / ".cache/transfusion_jax/plans"


def test_the_report_adds_up(tmp_path):
    plan, corpus = planned(tmp_path), tiny_corpus()
    about = plan.about
    assert about["rows"] == plan.rows
    assert about["pieces"] == len(plan.piece_length)
    assert about["padding"] == pytest.approx(1 - plan.piece_length.sum() / (plan.rows * DATA.context_length))
    for name, begin, end in (("pairs", 0, 40), ("texts", 40, 80)):
        own = (begin <= plan.piece_document) & (plan.piece_document < end)
        source = about["sources"][name]
        assert source["documents"] == len(corpus.sources[0])
        assert source["elements"] == plan.piece_length[own].sum()
        assert source["share"] == pytest.approx(source["elements"] / plan.piece_length.sum())
        assert source["share_asked"] == pytest.approx(WEIGHTS[name] / 3)
        times = np.bincount(plan.piece_document[own & (plan.piece_start == 0)] - begin, minlength=40)
        assert source["passes"] == pytest.approx(times.mean(), abs=1.5 / 40)


def test_long_planning_says_how_far_it_is(monkeypatch):
    said = []
    planned(None, log=said.append)
    assert said == []
    monkeypatch.setattr(planning, "SAY_AFTER", 0.0)
    monkeypatch.setattr(planning, "SAY_EVERY", 0.0)
    monkeypatch.setattr(planner, "BLOCK_ROWS", 16)
    planned(None, log=said.append)
    assert len(said) > 3
    assert said[-1].startswith("planning rows: 100% (")


def planned(cache, corpus=None, weights=None, data=DATA, patches=4, seed=0, begin=None, log=print):
    return plan_rows(corpus or tiny_corpus(), weights or WEIGHTS, room_of(data, patches), seed, begin, cache, log)


def stream(cache):
    return rows_of(cache, *mixture([pairs("p", 2, range(1, 9)), texts("t", 1, range(1, 40))]), DATA)


def flip(path, place):
    """One bit, so far into the file."""
    data = bytearray(path.read_bytes())
    data[round(place * (len(data) - 1))] ^= 1
    path.write_bytes(data)


def other_plan(path):
    """The same file of a plan with another seed."""
    corpus, weights = mixture([pairs("p", 2, range(1, 9)), texts("t", 1, range(1, 40))])
    return plan_rows(corpus, weights, room_of(DATA), 1, None, path.parents[2] / "other").folder / path.name


def assert_same(one, other):
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.about["sources"] == other.about["sources"]
