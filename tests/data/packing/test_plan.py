"""The row plan, on random corpora. An image takes four elements, six with its marks."""

import dataclasses

import numpy as np
import pytest

from data.mixtures import IMAGE, listed, mixture, pairs, random_mixture, room_of, rows_of, sized, text, texts
from helpers import best_fit_decreasing, tiny_config
from transfusion_jax.config import ConfigError, DataConfig
from transfusion_jax.data.documents import Corpus, Document
from transfusion_jax.data.packing import planner
from transfusion_jax.data.packing.plan import places_at, plan_rows
from transfusion_jax.data.packing.plan_store import COLUMNS, RowPlan
from transfusion_jax.data.packing.sequences import Place

PATCHES = 4
SEEDS = [*range(5), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(5, 13))]


@pytest.fixture(params=[planner.BLOCK_ROWS, 40])
def blocks(request, monkeypatch):
    """Blocks of all rows, and of few."""
    monkeypatch.setattr(planner, "BLOCK_ROWS", request.param)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("seed", SEEDS)
def test_no_row_holds_more_than_it_may(seed):
    corpus, weights, data = random_mixture(seed)
    plan = plan_rows(corpus, weights, room_of(data), seed)
    elements, images, text = used(corpus, plan)
    assert elements.max() <= data.context_length
    assert images.max() <= data.max_images
    assert text.max() <= data.text_capacity
    np.testing.assert_array_equal(plan.elements(), elements)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("seed", SEEDS)
def test_rows_of_mixtures_with_text_are_filled_exactly(seed):
    corpus, weights, data = random_mixture(seed, plain=1)
    elements, _, text = used(corpus, plan_rows(corpus, weights, room_of(data), seed))
    assert np.all((elements == data.context_length) | (text == data.text_capacity))


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("seed", SEEDS)
def test_documents_with_images_are_never_split_and_read_equally_often(seed):
    corpus, weights, data = random_mixture(seed)
    plan = plan_rows(corpus, weights, room_of(data), seed)
    check_whole_documents(corpus, plan)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("seed", SEEDS)
def test_plain_text_runs_on_over_the_seams(seed):
    corpus, weights, data = random_mixture(seed)
    plan = plan_rows(corpus, weights, room_of(data), seed)
    check_texts(corpus, plan)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("seed", SEEDS)
def test_a_plan_reads_on_where_another_was_left(seed):
    corpus, weights, data = random_mixture(seed)
    random = np.random.default_rng(seed)
    first = plan_rows(corpus, weights, room_of(data), seed)
    row = int(random.integers(0, first.rows, endpoint=True))
    places = places_at(first, row, corpus, weights, room_of(data), seed)
    weights = {name: weight * random.uniform(0.3, 3) for name, weight in weights.items()}
    second = plan_rows(corpus, weights, room_of(data), seed, places)
    both = joined(first, row, second)
    check_whole_documents(corpus, both)
    check_texts(corpus, both)


def test_a_source_that_a_plan_does_not_read_stays_where_it_is():
    corpus, weights = mixture([pairs("p", 1.0, range(1, 30)), texts("t", 1.0, range(5, 90))])
    data = DataConfig(context_length=100)
    plan = plan_rows(corpus, {"p": 1.0}, room_of(data), 0)
    assert set(places_at(plan, 3, corpus, {"p": 1.0}, room_of(data), 0)) == {"p"}
    begin = {"t": Place(taken=50, offset=1)}
    plan = plan_rows(corpus, weights, room_of(data), 0, begin)
    taken, offset, _ = plan.block_place[0, 1]
    assert (taken, offset) == (50, 1)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("seed", SEEDS)
def test_an_epoch_reads_every_element_of_every_source(seed):
    corpus, weights, data = random_mixture(seed)
    assert unread(corpus, plan_rows(corpus, weights, room_of(dataclasses.replace(data, max_text=0)), seed)) == 0


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("max_text", [10, 32, 63])
@pytest.mark.parametrize("with_images", [False, True])
def test_an_epoch_reads_every_element_where_the_text_of_a_row_is_capped(max_text, with_images):
    random = np.random.default_rng(max_text)
    sources = [texts("texts", 1.0, random.integers(4, 60, 200))]
    if with_images:
        sources.append(pairs("pairs", 1.0, random.integers(1, 3, 100)))
    corpus, weights = mixture(sources)
    plan = plan_rows(corpus, weights, room_of(DataConfig(context_length=64, max_text=max_text, max_images=8)), 0)
    assert unread(corpus, plan) == 0


def test_captions_that_use_up_the_text_of_every_row_are_no_crash():
    corpus, weights = mixture([pairs("pairs", 4.0, [20] * 30), texts("texts", 1.0, range(5, 25))])
    data = DataConfig(context_length=64, max_text=22, max_images=4)
    try:
        plan = plan_rows(corpus, weights, room_of(data), 0)
    except ConfigError:
        return  # to refuse the mixture is as good
    assert unread(corpus, plan) == 0


@pytest.mark.parametrize(
    "shares",
    [(1, 0, 1, 0), (3, 1, 0.5, 0.2), (0.2, 0.5, 1, 3), (9, 0, 1, 0), (1, 0, 0, 9), (0, 0, 5, 1), (4, 4, 1, 0)],
)
def test_shares_of_elements_hold_over_any_hundred_rows_of_the_stream(shares, tmp_path):
    random = np.random.default_rng(0)
    sources = [
        pairs("short captions", shares[0], random.integers(1, 8, 300)),
        pairs("long captions", shares[1], np.minimum(random.geometric(0.1, 300), 40)),
        texts("short texts", shares[2], random.integers(0, 20, 300)),
        texts("long texts", shares[3], random.geometric(0.002, 40)),
    ]
    corpus, weights = mixture([entry for entry in sources if entry[1]])
    rows = rows_of(tmp_path, corpus, weights, DataConfig(context_length=200, max_images=30))
    table = np.zeros((len(corpus.sources), 1000))
    for row in range(1000):
        for document, _, length in rows.pieces(row):
            table[rows.corpus.find(document)[0], row] += length
    running = np.pad(np.cumsum(table, axis=1), ((0, 0), (1, 0)))
    stretches = running[:, 100:] - running[:, :-100]
    expected = np.array([weights[source.name] for source in rows.corpus.sources])
    expected = np.broadcast_to((expected / expected.sum())[:, None], stretches.shape)
    np.testing.assert_allclose(stretches / stretches.sum(0), expected, atol=0.02)


@pytest.mark.parametrize(
    ("shares", "tolerance"),
    [
        (dict(short=1, texts=1), 0.002),
        (dict(short=1, long=2, albums=1, texts=1), 0.01),
        (dict(short=1, texts=3, books=6), 0.002),
        (dict(short=1, long=1), 0.02),
        (dict(texts=1, books=1), 0.001),
    ],
)
def test_shares_of_elements_hold_over_any_thousand_rows_of_many(shares, tolerance):
    random = np.random.default_rng(0)
    sources = [
        sized("short", np.minimum(random.geometric(1 / 20, 40_000), 500), 1),
        sized("long", np.minimum(random.geometric(1 / 90, 15_000), 900), 1),
        sized("albums", random.integers(0, 300, 6000), 3),
        sized("texts", random.lognormal(6, 1, 9000).astype(int), 0),
        sized("books", random.lognormal(8, 2, 400).astype(int), 0),
    ]
    corpus = Corpus(tuple(source for source in sources if source.name in shares))
    plan = plan_rows(corpus, shares, room_of(DataConfig(context_length=1024, max_images=64), 100), 0)
    source = np.searchsorted(corpus.offsets, plan.piece_document, side="right") - 1
    table = np.zeros((len(shares), plan.rows))
    np.add.at(table, (source, plan.piece_row), plan.piece_length)
    running = np.pad(np.cumsum(table, axis=1), ((0, 0), (1, 0)))
    stretches = running[:, 1000:] - running[:, :-1000]
    expected = np.array(list(shares.values())) / sum(shares.values())
    assert stretches.shape[1] > 2000
    np.testing.assert_allclose(
        stretches / stretches.sum(0), np.tile(expected[:, None], stretches.shape[1]), atol=tolerance
    )


@pytest.mark.parametrize(("patches", "published"), [(64, 0.0075), (256, 0.030)])
def test_rows_of_images_are_packed_as_well_as_by_the_best_fit_of_all(patches, published):
    captions = np.minimum(np.random.default_rng(0).geometric(1 / 20, 30_000), 2000)
    corpus = Corpus((sized("p", captions, 1),))
    plan = plan_rows(corpus, {"p": 1.0}, room_of(DataConfig(context_length=4096, max_images=64), patches), 0)
    rows = len(best_fit_decreasing(captions + patches + 3, 4096))
    assert rows <= plan.rows <= rows * 1.002 + 1
    assert plan.about["padding"] == pytest.approx(published, rel=0.1)
    assert np.unique(plan.piece_document).size == len(captions)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
def test_many_plain_sources_share_each_row_exactly(count):
    random = np.random.default_rng(count)
    sources = [texts(f"t{s}", random.choice([0.1, 1, 3]), random.integers(1, 60, 40)) for s in range(count)]
    corpus, weights = mixture([pairs("p", 1.0, random.integers(1, 8, 60)), *sources])
    plan = plan_rows(corpus, weights, room_of(DataConfig(context_length=64)), 0)
    assert set(plan.elements()) == {64}


@pytest.mark.parametrize("share", [0.5, 0.8, 0.9])
def test_shares_hold_where_few_captions_are_nearly_as_long_as_a_row(share):
    random = np.random.default_rng(0)
    captions = np.minimum(random.geometric(0.08, 2000), 90)
    corpus, weights = mixture([pairs("p", share, captions), texts("t", 1 - share, random.integers(5, 300, 300))])
    plan = plan_rows(corpus, weights, room_of(DataConfig(context_length=100, max_images=100)), 0)
    elements = np.bincount(plan.piece_document >= 2000, plan.piece_length)
    assert elements[0] / elements.sum() == pytest.approx(share, abs=0.02)


def test_one_short_text_comes_round_until_its_row_is_full():
    plan = plan_rows(*mixture([texts("t", 1.0, [2])]), room_of(DataConfig(context_length=10)), 0)
    assert plan.rows == 1
    assert sorted(plan.piece_length) == [1, 3, 3, 3]  # BOS and two tokens, and the last is cut
    assert set(plan.piece_document) == {0}


def test_one_long_text_is_cut_at_every_row():
    plan = plan_rows(*mixture([texts("t", 1.0, [25])]), room_of(DataConfig(context_length=10)), 0)
    assert plan.row_offset.tolist()[:3] == [0, 1, 2]
    assert plan.piece_start.tolist()[:2] == [0, 10]
    assert plan.piece_length.tolist()[:2] == [10, 10]
    assert sorted(zip(plan.piece_start[2:], plan.piece_length[2:], strict=True)) == [(0, 4), (20, 6)]


@pytest.mark.parametrize(
    ("lengths", "padding"),
    [
        (np.full(500, 8), 0.11),  # six documents of fifteen and a tenth of the row left
        (np.random.default_rng(0).integers(1, 12, 2000), 0.08),
        (np.random.default_rng(1).integers(1, 40, 2000), 0.15),
        (np.minimum(np.random.default_rng(2).geometric(0.08, 2000), 90), 0.1),  # few long captions, many short ones
    ],
)
def test_images_alone_leave_little_padding(lengths, padding):
    plan = plan_rows(
        *mixture([pairs("p", 1.0, lengths)]), room_of(DataConfig(context_length=100, max_images=100)), 0
    )
    assert 1 - plan.elements().mean() / 100 < padding
    assert np.unique(plan.piece_document).size == len(lengths)


def test_sources_stand_in_every_order_within_a_row():
    corpus, weights = mixture([pairs("p", 1.0, range(1, 30)), texts("t", 1.0, range(5, 90))])
    plan = plan_rows(corpus, weights, room_of(DataConfig(context_length=100)), 0)
    is_text = plan.piece_document >= corpus.offsets[1]
    for place in (plan.row_offset[:-1], plan.row_offset[1:] - 1):
        assert 0.2 < is_text[place].mean() < 0.8


def test_the_plan_is_a_function_of_the_seed():
    corpus, weights, data = random_mixture(5)
    plan, same, other = (plan_rows(corpus, weights, room_of(data), seed) for seed in (1, 1, 2))
    for name in ("piece_document", "piece_start", "piece_length", "row_offset"):
        np.testing.assert_array_equal(getattr(plan, name), getattr(same, name))
    assert plan.rows == other.rows
    assert not np.array_equal(plan.piece_document, other.piece_document)


def test_weights_count_relative_to_each_other():
    small, large = (
        plan_rows(
            *mixture([pairs("p", 3 * scale, range(1, 30)), texts("t", scale, range(5, 90))]),
            room_of(DataConfig(context_length=100)),
            0,
        )
        for scale in (1 / 512, 512)
    )
    np.testing.assert_array_equal(small.piece_document, large.piece_document)


@pytest.mark.parametrize(
    ("sources", "data", "message"),
    [
        (
            lambda: [pairs("p", 1, [2, 60])],
            dict(),
            "document 1 of source 'p' takes 67 elements .* data.context_length is 64",
        ),
        (
            lambda: [listed("many", 1.0, [Document((IMAGE,) * 3)])],
            dict(max_images=2),
            "document 0 of source 'many' takes 3 images .* data.max_images is 2",
        ),
        (
            lambda: [texts("t", 1, [5]), pairs("wordy", 1, [1, 1, 30])],
            dict(max_text=20),
            "document 2 of source 'wordy' takes 32 text elements .* data.max_text is 20",
        ),
        (lambda: [texts("t", 1, [5]), texts("void", 1, [])], dict(), "source 'void' holds no documents"),
        (
            lambda: [pairs("p", 9, [1] * 50), texts("t", 1, [30] * 50)],
            dict(max_images=3),
            r"holds 7\.\d images on average and data.max_images is 3",
        ),
    ],
)
def test_sources_that_no_row_can_hold_are_named(sources, data, message):
    with pytest.raises(ConfigError, match=message):
        plan_rows(*mixture(sources()), room_of(DataConfig(**(dict(context_length=64) | data))), 0)


def test_images_alone_need_no_more_room_than_whole_documents_take():
    """Rows of 64 elements would hold 7.1 of these documents of 9, and hold 7."""
    corpus, weights = mixture([pairs("p", 1, [2] * 700)])
    plan = plan_rows(corpus, weights, room_of(DataConfig(context_length=64, max_images=7)), 0)
    _, images, _ = used(corpus, plan)
    assert set(images) == {7}
    with pytest.raises(ConfigError, match=r"holds 7\.1 images on average and data.max_images is 6"):
        plan_rows(corpus, weights, room_of(DataConfig(context_length=64, max_images=6)), 0)


def test_a_few_documents_that_fit_no_row_are_left_out_and_said():
    lengths = np.random.default_rng(0).integers(1, 20, 1000)
    lengths[[7, 500, 999]] = 60
    said = []
    corpus, weights = mixture([pairs("p", 1, lengths), texts("t", 1, [30] * 50)])
    plan = plan_rows(corpus, weights, room_of(DataConfig(context_length=64)), 0, log=said.append)
    assert said == ["3 of 1,000 documents of source 'p' fit no row: left out"]
    assert plan.about["sources"]["p"]["left_out"] == 3
    read = np.unique(plan.piece_document[plan.piece_document < 1000])
    np.testing.assert_array_equal(read, np.delete(np.arange(1000), [7, 500, 999]))


def test_a_text_among_documents_with_images_is_not_split_either():
    documents = [Document((IMAGE, text(n)[0])) if n % 3 else Document((text(n)[0],)) for n in range(40)]
    corpus, weights = mixture([listed("web pages", 1.0, documents), texts("t", 1, [30] * 50)])
    plan = plan_rows(corpus, weights, room_of(DataConfig(context_length=64)), 0)
    pages = plan.piece_document < 40
    assert set(plan.piece_document[pages]) == set(range(40))
    assert np.all(plan.piece_start[pages] == 0)
    np.testing.assert_array_equal(plan.piece_length[pages], sizes(corpus)[1][plan.piece_document[pages]])


def check_whole_documents(corpus, plan):
    """Documents with images are never split, and none is read twice as long as another has not been read."""
    images, length = sizes(corpus)
    whole = images[plan.piece_document] > 0
    assert np.all(plan.piece_start[whole] == 0)
    np.testing.assert_array_equal(plan.piece_length[whole], length[plan.piece_document[whole]])
    times = np.bincount(plan.piece_document[whole], minlength=len(corpus))
    for begin, end in zip(corpus.offsets[:-1], corpus.offsets[1:], strict=True):
        if images[begin]:
            assert np.ptp(times[begin:end]) <= 1


def check_texts(corpus, plan):
    """Plain texts go on where the row before cut them, and none is read twice before all have been read."""
    images, length = sizes(corpus)
    assert np.all(plan.piece_length > 0)
    for source, (begin, end) in enumerate(zip(corpus.offsets[:-1], corpus.offsets[1:], strict=True)):
        if images[begin]:
            continue
        times = np.zeros(end - begin, int)
        pieces = pieces_in_reading_order(corpus, plan, source)
        reading, at = None, 0
        for document, start, taken in pieces:
            if reading is None:
                assert start == 0
            else:
                assert (document, start) == (reading, at)  # the rest of what the row before cut
            at = start + taken
            assert at <= length[document]
            reading = document if at < length[document] else None
            times[document - begin] += reading is None
        if reading is not None:
            times[reading - begin] += 1  # the end of the epoch cuts one document
        assert np.ptp(times) <= 1


def joined(plan, rows, other):
    """The first rows of a plan, and after them another plan."""
    end = int(plan.row_offset[rows])
    values = {name: getattr(plan, name) for name in COLUMNS}
    for name in ("piece_document", "piece_start", "piece_length"):
        values[name] = np.concatenate([values[name][:end], getattr(other, name)])
    values["row_offset"] = np.concatenate([plan.row_offset[: rows + 1], end + other.row_offset[1:]])
    return RowPlan(**values, about={})


def sizes(corpus):
    """Images and elements of each document."""
    documents = [d for source in corpus.sources for d in source.documents.documents]
    return np.array([d.images for d in documents]), np.array([d.length(tiny_config().model) for d in documents])


def used(corpus, plan: RowPlan):
    """Elements, images, and elements that may bear a text loss, in each row."""
    images = sizes(corpus)[0][plan.piece_document]
    amounts = (plan.piece_length, images, plan.piece_length - images * (PATCHES + 1))
    return [np.bincount(plan.piece_row, amount, plan.rows).astype(int) for amount in amounts]


def pieces_in_reading_order(corpus, plan: RowPlan, source):
    """`(document, start, length)` of one plain source, row by row.

    A row's pieces are shuffled: first the one that ends a document cut by the row before, then whole ones, then
    the one that the row's end cuts.
    """
    table = np.stack([plan.piece_row, plan.piece_document, plan.piece_start, plan.piece_length], 1)
    begin, end = corpus.offsets[source : source + 2]
    table = table[(begin <= table[:, 1]) & (table[:, 1] < end)]
    _, length = sizes(corpus)
    carried: tuple[int, int] | None = None
    for found in np.split(table[:, 1:], np.flatnonzero(np.diff(table[:, 0])) + 1):
        keyed = [((d, s) != carried, s + n < length[d], (d, s, n)) for d, s, n in found.tolist()]
        pieces = [piece for *_, piece in sorted(keyed)]
        document, start, taken = pieces[-1]
        carried = (document, start + taken) if start + taken < length[document] else None
        yield from pieces


def unread(corpus, plan: RowPlan):
    """Elements that no row holds."""
    _, length = sizes(corpus)
    seen = [np.zeros(n, bool) for n in length]
    for document, start, taken in zip(plan.piece_document, plan.piece_start, plan.piece_length, strict=True):
        seen[document][start : start + taken] = True
    return sum(int((~s).sum()) for s in seen)
