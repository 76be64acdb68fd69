import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from helpers import random_text, special, tiny_config, tiny_corpus
from transfusion_jax.data.batch import stack
from transfusion_jax.data.document_rows import DocumentRows, make_rows
from transfusion_jax.data.documents import Corpus, Document, DocumentList, Source
from transfusion_jax.data.packing.plan import REPLAYED, VERSION
from transfusion_jax.data.stream import batches
from transfusion_jax.kernels.spans import check_spans


def test_a_row_is_the_same_whatever_batch_it_is_in():
    rows = tiny_rows()
    expected = [rows[r] for r in range(24)]
    for batch_rows in (1, 3, 8):
        for first, batch in zip(
            range(0, 24, batch_rows), read(rows, 0, batch_rows, count=24 // batch_rows), strict=True
        ):
            assert_same(batch, stack(expected[first : first + batch_rows]))


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_slices_of_processes_put_together_are_the_batch(parts):
    rows, size = tiny_rows(), 4 // parts
    whole = read(rows, 5, 4, count=6)
    own = [read(rows, 5, 4, count=6, local=slice(p * size, (p + 1) * size)) for p in range(parts)]
    for step, batch in enumerate(whole):
        assert_same(batch, jax.tree.map(lambda *leaves: np.concatenate(leaves), *(part[step] for part in own)))


@pytest.mark.parametrize("stop", [0, 1, 3, 7])
def test_stopping_anywhere_and_restarting_continues_the_stream(stop):
    rows = tiny_rows()
    whole = read(rows, 0, 4, count=8)
    parts = read(rows, 0, 4, count=stop) + read(rows, 4 * stop, 4, count=8 - stop)
    for one, other in zip(whole, parts, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("workers", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_the_stream_is_the_same_for_any_number_of_workers(workers):
    rows = tiny_rows()
    for one, other in zip(read(rows, 3, 4, count=12), read(rows, 3, 4, count=12, workers=workers), strict=True):
        assert_same(one, other)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_go_on_from_epoch_to_epoch_for_any_workers_and_with_rows_left_out(workers):
    rows = tiny_rows(10)
    skipped = dataclasses.replace(rows, skipped=((rows.epoch - 2, rows.epoch + 3),))
    first = rows.epoch - 10
    numbers = [r for r in range(first, rows.epoch + 100) if not -2 <= r - rows.epoch < 3][:40]
    assert {rows.planner.find(r).plan.folder for r in numbers} == {
        rows.planner.find(r).plan.folder for r in (0, rows.epoch)
    }
    for step, batch in enumerate(read(skipped, first, 4, count=10, workers=workers)):
        assert_same(batch, stack([rows[r] for r in numbers[4 * step : 4 * step + 4]]))


def test_seeds_read_in_different_orders():
    streams = [tiny_rows(seed=seed) for seed in range(5)]
    for begin in (0, 2 * streams[0].epoch):
        assert len({str([rows.pieces(r) for r in range(begin, begin + 20)]) for rows in streams}) == 5


def test_a_row_holds_the_documents_that_were_planned_for_it():
    rows = tiny_rows(image_first=0.0, caption_dropout=0.0)
    patches = rows.config.model.patches
    for number in range(2 * rows.epoch):
        row, at = rows[number], 0
        for document_number, start, length in rows.pieces(number):
            document = rows.corpus[document_number]
            here = slice(at, at + length)
            assert set(row.source[here]) == {rows.corpus.find(document_number)[0]}
            words = row.tokens[here][(row.patch[here] < 0) & (row.tokens[here] < 20)]
            begin = max(start - 1, 0)  # BOS stands before the text
            np.testing.assert_array_equal(words, document.segments[0].tokens[begin : begin + len(words)])
            assert np.sum(row.patch[here] >= 0) == document.images * patches
            at += length
        assert row.row == number
        assert np.all(row.source[at:] == -1)


def test_rows_far_into_the_stream_can_be_read():
    rows = tiny_rows(version=REPLAYED)  # later plans hang on those before
    assert rows[2**31 - 2].row == 2**31 - 2
    (batch,) = read(rows, 2**31 - 9, 4, count=1)
    assert batch.row.tolist() == list(range(2**31 - 9, 2**31 - 5))
    check_spans(batch.spans)


def test_a_row_belongs_to_the_last_phase_that_has_begun():
    rows = phased({"7": EVEN, "300": TEXTS})
    found = [rows.planner.find(r) for r in range(700)]
    assert [one.phase for one in found] == [0] * 7 + [1] * 293 + [2] * 400
    assert [found[r].row for r in (0, 6, 7, 8, 300, 301)] == [0, 6, 0, 1, 0, 1]
    assert found[7].plan.rows < 200
    for r in (0, 6, 7, 50, 299, 300, 500):
        assert set(rows[r].source.tolist()) - {-1} == {rows.corpus.find(d)[0] for d, _, _ in rows.pieces(r)}
        assert r < 300 or set(rows[r].source.tolist()) == {1}


def test_a_later_phase_and_its_source_leave_earlier_rows_as_they_were():
    extra = Source("a new one", DocumentList(tiny_corpus(5).sources[1].documents.documents))
    before = phased({"7": EVEN})
    after = phased({"7": EVEN, "90": {"a new one": 1.0}}, extra)
    for r in range(90):
        assert_same(before[r], after[r])
    assert {s for r in range(90, 110) for s in after[r].source.tolist()} == {2}


@pytest.mark.parametrize("start", [1, 7, 40, 200])
def test_a_phase_reads_what_the_phases_before_have_not(start):
    rows = phased({str(start): EVEN})
    times = np.zeros(len(rows.corpus), int)
    for row in range(start + rows.planner.find(start).plan.rows):
        for document, begin, _ in rows.pieces(row):
            times[document] += begin == 0
        assert np.ptp(times[: rows.corpus.offsets[1]]) <= 1
        assert np.ptp(times[rows.corpus.offsets[1] :]) <= 1


def test_one_text_is_read_again_and_again():
    text = random_text(np.random.default_rng(0), 20, 21)
    config = tiny_config(data__sources={"texts": {"path": "synthetic:text"}})
    rows = make_rows(Corpus((Source("texts", DocumentList([Document((text,))])),)), config, special())
    assert rows.epoch == 1
    np.testing.assert_array_equal(rows[0].tokens[1:21], text.tokens)
    once = [special().bos, *text.tokens]
    read = np.concatenate([rows[r].tokens for r in range(50)])
    np.testing.assert_array_equal(np.sort(read), np.sort(np.resize(once, len(read))))  # a row's pieces are shuffled


def test_rows_that_are_left_out_are_passed_over_and_the_others_are_as_they_were():
    rows = tiny_rows()
    skipped = dataclasses.replace(rows, skipped=((3, 5), (8, 9), (12, 20)))
    numbers = [r for r in range(40) if r not in (3, 4, 8, *range(12, 20))]
    for first in range(24):
        left = [r for r in numbers if r >= first]
        assert [skipped.after(first, n) for n in range(8)] == left[:8]
    for size in (1, 3, 4):
        row, read_rows = 0, []
        for batch in read(skipped, 0, size, count=6):
            read_rows += batch.row.tolist()
            assert_same(batch, stack([rows[r] for r in batch.row]))
            row = skipped.after(row, size)
        assert read_rows == numbers[: 6 * size]
        assert read(skipped, row, size, count=1)[0].row.tolist() == numbers[6 * size : 7 * size]


def test_a_worker_that_dies_is_replaced_and_the_stream_goes_on():
    rows, said = tiny_rows(), []
    with batches(rows, 3, 4, slice(0, 4), workers=1, log=said.append) as iterator:
        got = [jax.tree.map(np.array, next(iterator)) for _ in range(2)]
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)
        got += [jax.tree.map(np.array, next(iterator)) for _ in range(40)]
    for batch, expected in zip(got, read(rows, 3, 4, count=42), strict=True):
        assert_same(batch, expected)
    assert len(said) == 1
    assert "Reading goes on from row" in said[0]


@pytest.mark.slow
def test_workers_leave_no_shared_memory_behind():
    """In a process of its own: Python says at its end what is left."""
    script = """
if __name__ == "__main__":
    from test_stream import batches, tiny_rows
    with batches(tiny_rows(), 0, 4, slice(0, 4), workers=2) as iterator:
        kept = [next(iterator) for _ in range(5)]
"""
    path = os.pathsep.join([*sys.path, str(Path(__file__).parent)])
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "leaked" not in ended.stderr
    assert "Exception ignored" not in ended.stderr


def test_a_row_that_cannot_be_made_is_an_error_and_not_tried_again():
    rows = tiny_rows()
    broken = dataclasses.replace(rows, special=None)
    with pytest.raises(AttributeError):
        read(broken, 0, 4, count=1, workers=1)


EVEN, TEXTS = {"pairs": 1.0, "texts": 1.0}, {"texts": 1.0}


def phased(phases, *more: Source) -> DocumentRows:
    sources = {
        "pairs": {"path": "synthetic:pairs", "weight": 2.0},
        "texts": {"path": "synthetic:text", "weight": 1.0},
        **{source.name: {"path": "synthetic:text", "weight": 0.0} for source in more},
    }
    config = tiny_config(data__sources=sources, data__phases=phases)
    found = {source.name: source for source in (*tiny_corpus().sources, *more)}
    return make_rows(Corpus(tuple(found[name] for name in config.data.source_names)), config, special())


def tiny_rows(documents=40, seed=0, version=VERSION, **data) -> DocumentRows:
    config = tiny_config(seed=seed, **{f"data__{name}": value for name, value in data.items()})
    return make_rows(tiny_corpus(0, documents), config, special(), version=version)


def read(rows, first_row, batch_rows, count, local=None, workers=0):
    with batches(rows, first_row, batch_rows, local or slice(0, batch_rows), workers) as iterator:
        return [jax.tree.map(np.array, next(iterator)) for _ in range(count)]


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert jax.tree.map(lambda a: a.dtype, one) == jax.tree.map(lambda a: a.dtype, other)
