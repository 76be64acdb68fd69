"""Epochs of the stream, on many mixtures: how often documents have been seen at each row, and starting anywhere."""

import dataclasses
import hashlib
import pickle
import shutil
import threading

import numpy as np
import pytest

from data.mixtures import listed, mixture, pairs, random_mixture, room_of, rows_of, texts
from helpers import latents, slots, special, tiny_config, tiny_corpus
from transfusion_jax.config import ConfigError, DataConfig
from transfusion_jax.data.document_rows import make_rows
from transfusion_jax.data.packing import epochs, plan, planner
from transfusion_jax.data.packing.plan import REPLAYED, places_at, plan_rows
from transfusion_jax.data.packing.plan_store import open_sealed

RANDOM = np.random.default_rng(0)
SHORT, LONG = RANDOM.integers(1, 8, 100), np.minimum(RANDOM.geometric(0.08, 200), 50)
TEXTS = RANDOM.integers(1, 200, 60)
WEB = [pairs("p", 1, SHORT[:20]), texts("t", 1, SHORT)]
MIXTURES = {
    "even": [pairs("p", 1, SHORT), texts("t", 1, TEXTS)],
    "images above all": [pairs("p", 100, SHORT), texts("t", 1, TEXTS)],
    "text above all": [pairs("p", 1, SHORT), texts("t", 100, TEXTS)],
    "one image": [pairs("p", 1, [3]), texts("t", 1, TEXTS)],
    "one of each": [pairs("p", 1, [3]), texts("t", 1, [5])],
    "captions nearly as long as a row": [pairs("p", 4, LONG), texts("t", 1, TEXTS)],
    "a few long ones among many short": [
        pairs("p", 1, [50] * 3 + [1] * 50),
        pairs("q", 1, SHORT),
        texts("t", 1, [9]),
    ],
    "two sources of long ones": [pairs("p", 1, [50] * 7), pairs("q", 2, [49] * 31), texts("t", 1, [9])],
    "three with images": [
        pairs("p", 1, SHORT),
        pairs("q", 2, SHORT[:7]),
        pairs("r", 1, LONG),
        texts("t", 1, TEXTS),
    ],
    "images alone": [pairs("p", 1, SHORT)],
    "images alone, cycled": [pairs("p", 1, SHORT), pairs("q", 1, SHORT[:9]), pairs("r", 0.1, LONG)],
    "images alone, passes of many rows": [pairs("p", 1, np.tile(LONG, 4)), pairs("q", 1, LONG)],
    "texts alone": [texts("t", 1, TEXTS)],
    "texts alone, cycled": [texts("t", 1, TEXTS), texts("u", 3, TEXTS[:5]), texts("v", 1, [700])],
    "texts among images": [
        listed("w", 1, [d for s, _ in WEB for d in s.documents.documents]),
        texts("t", 1, TEXTS),
    ],
    "texts among images alone": [listed("w", 1, [d for s, _ in WEB for d in s.documents.documents])],
}
DATA = DataConfig(context_length=64, max_images=12)
PHASES = {"30": {"p": 1.0, "t": 3.0}, "200": {"t": 1.0}, "317": {"p": 5.0, "t": 1.0}}
BLOCK = 40  # rows, where blocks are to be short


@pytest.fixture
def short_blocks(monkeypatch):
    """Blocks, and so epochs, of few rows."""
    for module in (planner, plan, epochs):
        monkeypatch.setattr(module, "BLOCK_ROWS", BLOCK)


@pytest.fixture(params=[False, True])
def blocks(request):
    """Blocks of all rows, and of few."""
    if request.param:
        request.getfixturevalue("short_blocks")


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("name", MIXTURES)
def test_at_any_row_all_documents_of_a_source_have_been_seen_equally_often(name, tmp_path):
    check_times(rows_of(tmp_path, *mixture(MIXTURES[name]), DATA), 500)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 12))])
def test_so_they_have_in_random_mixtures(seed, tmp_path):
    check_times(rows_of(tmp_path, *random_mixture(seed)), 400)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("name", ["even", "images above all", "one of each"])
def test_so_they_have_in_phases(name, tmp_path):
    check_times(rows_of(tmp_path, *mixture(MIXTURES[name]), DATA, phases=PHASES), 500)


def test_they_have_not_in_plans_of_version_2(tmp_path):
    rows = rows_of(tmp_path, *mixture(MIXTURES["images alone, cycled"]), DATA, version=REPLAYED)
    with pytest.raises(AssertionError):
        check_times(rows, 500)


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("name", MIXTURES)
def test_shares_of_elements_hold_over_many_epochs(name, tmp_path):
    corpus, weights = mixture(MIXTURES[name])
    rows = rows_of(tmp_path, corpus, weights, DATA)
    pieces = [piece for row in range(500) for piece in rows.pieces(row)]
    sources = [rows.corpus.find(document)[0] for document, _, _ in pieces]
    shares = np.bincount(sources, [length for _, _, length in pieces]) / sum(length for _, _, length in pieces)
    expected = np.array([weights[source.name] for source in rows.corpus.sources]) / sum(weights.values())
    np.testing.assert_allclose(shares, expected, atol=0.04)


@pytest.mark.parametrize("name", ["images alone", "images alone, cycled"])
def test_rows_of_images_alone_have_less_padding_than_by_the_best_fit(name, tmp_path):
    def filled(version):
        rows = rows_of(tmp_path, *mixture(MIXTURES[name]), DATA, version=version)
        return sum(length for row in range(300) for _, _, length in rows.pieces(row)) / 300 / DATA.context_length

    assert filled(plan.VERSION) > max(0.985, filled(REPLAYED))


@pytest.mark.parametrize("name", ["even", "three with images", "images alone", "texts alone"])
def test_no_epoch_holds_the_rows_of_another(name, tmp_path):
    rows = rows_of(tmp_path, *mixture(MIXTURES[name]), DATA)
    found = [str(sorted(rows.pieces(r))) for r in range(2 * rows.epoch)]
    assert len(set(found)) > 0.99 * len(found)  # rows of a few short documents may meet by chance


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("phases", [{}, PHASES])
@pytest.mark.parametrize("kept", ["all", "where epochs end", "plans", "nothing"])
def test_a_restart_anywhere_gives_the_same_rows_whatever_the_cache_still_holds(kept, phases, tmp_path):
    corpus, weights = mixture(MIXTURES["three with images"])
    expected = stretch(rows_of(tmp_path / "whole", corpus, weights, DATA, phases=phases), 0, 420)
    await_planning()
    for begin in (400, 100):
        cache = tmp_path / str(begin)
        if kept != "nothing":
            shutil.copytree(tmp_path / "whole", cache)
        for path in cache.iterdir() if cache.exists() else ():
            if kept == "where epochs end" and path.is_dir():
                shutil.rmtree(path)
            if kept == "plans" and path.is_file():
                path.unlink()
        rows = rows_of(cache, corpus, weights, DATA, phases=phases)
        assert stretch(rows, begin, begin + 20) == expected[begin : begin + 20]


@pytest.mark.usefixtures("short_blocks")
def test_a_restart_plans_no_epoch_but_the_one_that_is_read(tmp_path, monkeypatch):
    corpus, weights = mixture(MIXTURES["even"])
    rows = rows_of(tmp_path, corpus, weights, DATA)
    expected = stretch(rows, 590, 600)
    await_planning()
    for path in tmp_path.iterdir():
        if path.is_dir() and path != rows.planner.find(0).plan.folder:
            shutil.rmtree(path)
    planned = []

    def counted(*arguments):
        planned.append(arguments)
        return planner.plan_blocks(*arguments)

    monkeypatch.setattr(plan, "plan_blocks", counted)
    assert stretch(rows_of(tmp_path, corpus, weights, DATA), 590, 600) == expected
    assert len(planned) == 1 + (rows.planner.find(590).plan is not rows.planner.find(599).plan)


@pytest.mark.usefixtures("short_blocks")
def test_the_run_tells_a_machine_with_an_empty_cache_where_epochs_end(tmp_path, monkeypatch):
    run, new, (corpus, weights) = tmp_path / "run", tmp_path / "new", mixture(MIXTURES["even"])
    rows = rows_of(tmp_path / "cache", corpus, weights, DATA, phases=PHASES, run=run)
    assert not run.exists()  # a run that has not begun is left alone
    run.mkdir()
    expected = stretch(rows, 390, 395)
    await_planning()
    begun = []
    monkeypatch.setattr(epochs, "plan_rows", lambda *arguments: begun.append(arguments) or plan_rows(*arguments))
    sent = pickle.loads(pickle.dumps(rows_of(new, corpus, weights, DATA, phases=PHASES, run=run).planner))
    begun.clear()  # the first rows, with which a stream opens
    assert [sent.pieces(row) for row in range(390, 395)] == expected
    await_planning()
    assert len(begun) <= 2
    damaged = min((run / epochs.NOTES).iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-1])
    shutil.rmtree(new)
    assert stretch(rows_of(new, corpus, weights, DATA, phases=PHASES, run=run), 390, 395) == expected
    await_planning()


def test_a_stream_is_sent_without_its_plans_and_reads_the_same(tmp_path):
    corpus, weights = mixture(MIXTURES["even"])
    rows = rows_of(tmp_path, corpus, weights, DATA)
    stretch(rows, 300, 301)
    sent = pickle.loads(pickle.dumps(rows.planner))
    assert [sent.pieces(r) for r in range(290, 310)] == stretch(rows, 290, 310)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("name", MIXTURES)
def test_what_waits_at_a_place_within_a_plan_has_been_read_least(name):
    corpus, weights = mixture(MIXTURES[name])
    whole = plan_rows(corpus, weights, room_of(DATA), 0, least=150)
    for row in (1, 33, BLOCK, 77, 150):
        places = places_at(whole, row, corpus, weights, room_of(DATA), 0)
        for source, begin in zip(corpus.sources, corpus.offsets, strict=False):
            place = places[source.name]
            if not source.pictured:
                continue
            document = whole.piece_document[: whole.row_offset[row]] - begin
            times = np.bincount(document[(document >= 0) & (document < len(source))], minlength=len(source))
            passes, more = divmod(place.taken - len(place.carried), len(source))
            assert times.sum() == passes * len(source) + more
            assert set(times[place.carried]) <= {times.min()}
            assert len(set(place.carried)) == len(place.carried)


def test_tiny_corpora_are_planned_in_few_and_growing_epochs(tmp_path):
    rows = rows_of(tmp_path, *mixture(MIXTURES["one of each"]), DATA)
    stretch(rows, 3000, 3001)
    lengths = [open_sealed(path, path.stem)["rows"] for path in tmp_path.glob("*.json")]
    assert rows.epoch == 1
    assert len(lengths) < 8
    assert max(lengths) < 4200


@pytest.mark.usefixtures("short_blocks")
def test_plans_that_have_been_read_are_deleted(tmp_path):
    rows = rows_of(tmp_path, *mixture(MIXTURES["even"]), DATA)
    expected = stretch(rows, 0, 10)
    stretch(rows, 0, 600)
    await_planning()
    assert sum(path.is_dir() for path in tmp_path.iterdir()) <= epochs.KEPT + 1
    assert stretch(rows, 0, 10) == expected


@pytest.mark.usefixtures("short_blocks")
def test_a_long_epoch_is_planned_ahead(tmp_path):
    corpus, weights = mixture([pairs("p", 1, np.tile(SHORT, 10)), texts("t", 1, TEXTS)])
    rows = rows_of(tmp_path, corpus, weights, DATA)
    assert rows.epoch > 2 * BLOCK
    rows.pieces(rows.epoch // 2 - 1)
    assert sum(path.is_dir() for path in tmp_path.iterdir()) == 1
    rows.pieces(rows.epoch // 2 + 2)
    await_planning()
    assert sum(path.is_dir() for path in tmp_path.iterdir()) == 2


def test_a_phase_that_cannot_be_planned_is_named_at_the_start(tmp_path):
    corpus, weights = mixture([pairs("p", 1, [1] * 50), texts("t", 1, [30] * 50)])
    data = dataclasses.replace(DATA, max_images=4)
    with pytest.raises(ConfigError, match=r"holds 8\.\d images on average"):
        rows_of(tmp_path, corpus, weights, data, phases={"100000": {"p": 1.0}})


GOLDEN = {  # of version 2: weights, phases, epochs' rows, and the digests with blocks of 8,192 rows and of 16
    "mixed": ((2.0, 1.0), {}, 384, "f7cc5e182e516ce6", "eb9eb43daa2474b9"),
    "images alone": ((1.0, 0.0), {}, 33, "4aab1169474ef334", "4aab1169474ef334"),
    "texts alone": ((0.0, 1.0), {}, 129, "cfe663033b6303df", "fe2721ca6eb95dc6"),
    "phases": (
        (2.0, 1.0),
        {"7": {"pairs": 1.0, "texts": 1.0}, "90": {"pairs": 1.0}},
        123,
        "",
        "4a6c918ed2dc9576",
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_rows_of_version_2_are_what_they_were(name, tmp_path, monkeypatch):
    (images, text), phases, count, *digests = GOLDEN[name]
    sources = {
        "pairs": {"path": "synthetic:pairs", "weight": images},
        "texts": {"path": "synthetic:text", "weight": text},
    }
    config = tiny_config(data__max_images=12, data__sources=sources, data__phases=phases)
    for size, expected in zip((planner.BLOCK_ROWS, 16), digests, strict=True):
        monkeypatch.setattr(planner, "BLOCK_ROWS", size)
        rows = make_rows(tiny_corpus(), config, special(), cache=tmp_path / str(size), version=REPLAYED)
        digest = hashlib.sha256()
        for row in map(rows.__getitem__, range(count) if expected else ()):
            of_images = latents(row, config), row.media["images"].source
            for array in (row.tokens, row.span_start, slots(row), row.source, *of_images):
                digest.update(np.ascontiguousarray(array).tobytes())
        assert not expected or digest.hexdigest()[:16] == expected


@pytest.mark.parametrize("documents", [1, 2, 3, 40])
def test_later_epochs_of_version_2_are_permutations_of_the_first(documents):
    rows = make_rows(tiny_corpus(0, documents), tiny_config(), special(), version=REPLAYED)
    found = [[rows.planner.find(e * rows.epoch + r).row for r in range(rows.epoch)] for e in range(6)]
    assert found[0] == list(range(rows.epoch))
    assert all(sorted(epoch) == found[0] for epoch in found)
    assert rows.epoch < 20 or len({tuple(epoch) for epoch in found}) == 6


def check_times(rows, count):
    """Goes through the stream; a text has been seen once its first element has."""
    offsets = rows.corpus.offsets
    times = np.zeros(len(rows.corpus), int)
    for row in range(count):
        for document, start, _ in rows.pieces(row):
            times[document] += start == 0
        most, least = np.maximum.reduceat(times, offsets[:-1]), np.minimum.reduceat(times, offsets[:-1])
        assert np.all(most - least <= 1), f"after row {row}"


def await_planning():
    """Lets the threads end that plan ahead."""
    for thread in threading.enumerate():
        if thread.name == epochs.AHEAD_OF_NEED:
            thread.join()


def stretch(rows, begin, end):
    """The pieces of some rows."""
    return [rows.pieces(row) for row in range(begin, end)]
