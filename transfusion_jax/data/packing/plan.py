"""The row plan: which pieces of which documents make up each row of a stretch of the stream.

Documents with images are never split: they are dealt over the rows so that each row holds nearly an equal share.
What is left of a row is filled exactly with pieces of the plain texts, cut where a row ends. So every row mixes
all sources, and the mixture's weights hold in elements over any stretch of rows.

Each source is an endless sequence of documents, pass after pass, each pass in an order of its own, and no document
is read again before all of its source have been. Rows are planned in blocks that go on in the sequences where the
block before ended, so memory does not grow with the corpus. A plan is as long as it takes to read every source at
least once; the others come round again. `epochs` strings plans together.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from transfusion_jax.data.documents import Corpus
from transfusion_jax.data.packing.packing import ELEMENTS, Room
from transfusion_jax.data.packing.plan_store import Columns, RowPlan, alone, in_memory, open_plan, store_blocks
from transfusion_jax.data.packing.planner import BLOCK_ROWS, Mixture, plan_blocks
from transfusion_jax.data.packing.sequences import Place, Reader

VERSION = 3  # of the plans: where planning changes this does, and a run keeps the one that it began with
REPLAYED = 2  # the version whose passes mix where they meet
SAY_AFTER, SAY_EVERY = 2.0, 10.0  # seconds


def plan_rows(
    corpus: Corpus,
    weights: Mapping[str, float],
    room: Room,
    seed: int,
    begin: Mapping[str, Place] | None = None,
    cache: Path | None = None,
    log: Callable[[str], None] = print,
    least: int = 0,
    version: int = VERSION,
) -> RowPlan:
    """Plans one epoch, or opens its plan where it has been planned before.

    Args:
        corpus: the documents; each source holds either documents with images or plain texts.
        weights: shares of the elements, relative to each other, by source; the other sources are not read.
        room: of a row.
        seed: of the order in which documents are taken.
        begin: where to begin to read each source; at its beginning if it is not named.
        cache: a folder of plans; None plans in memory.
        log: prints a line for the user, where planning takes seconds.
        least: rows to plan, even where fewer read every source.
        version: of the plans.

    Raises:
        ConfigError: many documents of a source do not fit a row, or a source is empty.
    """
    shares = _shares(corpus, weights)
    places = [(begin or {}).get(name, Place()) for name in shares]

    def make(put: Callable[[Iterator[Columns], Callable[[Columns], dict[str, Any]]], RowPlan]) -> RowPlan:
        mixture = _mixture(corpus, shares, room, seed, version)
        blocks = _progress(plan_blocks(mixture, places, least), log)
        return put(blocks, lambda columns: _report(columns, mixture) | {"version": version})

    if cache is None:
        plan = make(in_memory)
    else:
        folder = plan_folder(cache, corpus, weights, room, seed, begin, least, version)
        found = open_plan(folder)
        if found is None:
            with alone(cache):
                found = open_plan(folder)  # another process may have been at it
                found = make(partial(store_blocks, folder)) if found is None else found
        plan = found
    if not least:
        _say_left_out(plan, log)
    return plan


def plan_folder(
    cache: Path,
    corpus: Corpus,
    weights: Mapping[str, float],
    room: Room,
    seed: int,
    begin: Mapping[str, Place] | None = None,
    least: int = 0,
    version: int = VERSION,
) -> Path:
    """Where a plan is in a cache: its name is a hash of all that it depends on; see `plan_rows`."""
    shares = _shares(corpus, weights)
    places = {name: (begin or {}).get(name, Place()) for name in shares}
    sources = [
        [s.name, s.documents.hash, len(s), int(offset), shares[s.name], places[s.name].taken, places[s.name].offset]
        for s, offset in zip(corpus.sources, corpus.offsets[:-1], strict=True)
        if s.name in shares
    ]
    size = room.one_size or {"patch_area": room.patch_area} | (
        {"image_marks": room.image_marks} if room.image_marks > 2 else {}  # former plans had none other
    )
    values = [version, BLOCK_ROWS, room.capacity.tolist(), size, seed, sources, least]
    digest = hashlib.sha256(json.dumps(values).encode())
    for place in places.values():
        digest.update(np.array([len(place.carried), *place.carried], "<i8").tobytes())
    return cache / digest.hexdigest()[:24]


def try_mixture(corpus: Corpus, weights: Mapping[str, float], room: Room, seed: int) -> None:
    """Raises ConfigError where no rows can be planned; see `plan_rows`."""
    mixture = _mixture(corpus, _shares(corpus, weights), room, seed, VERSION)
    for _ in islice(plan_blocks(mixture, [Place()] * len(mixture.readers)), 2):  # the first holds no rows
        pass


def places_at(
    plan: RowPlan, row: int, corpus: Corpus, names: Mapping[str, Any], room: Room, seed: int
) -> dict[str, Place]:
    """How far each source has been read before a row: what rows from it on hold has not been, nor what was carried.

    Args:
        plan: of the corpus.
        row: counted from the plan's beginning; from the plan's last row on, all has been read.
        names: the sources that the plan reads.
        room: of a row.
        seed: the plan's.

    Raises:
        DamagedPlan: the plan's files do not hold what was written.
    """
    sources = [source for source in corpus.sources if source.name in names]
    if row >= plan.rows:
        last_block = len(plan.block_row) - 1
        return {source.name: _stored_place(plan, last_block, index) for index, source in enumerate(sources)}
    ends = plan.read("block_row")
    before = int(np.searchsorted(ends, row, side="right")) - 1
    after = before + int(row > ends[before])
    first, here, last = (int(plan.read("row_offset", r, r + 1)[0]) for r in (ends[before], row, ends[after]))
    document, length = (plan.read(name, first, last) for name in ("piece_document", "piece_length"))
    before_row, after_row = slice(0, here - first), slice(here - first, None)
    places = {}
    for index, source in enumerate(sources):
        reader = Reader.of(corpus, source.name, room, seed)
        begin, end = (_stored_place(plan, block, index) for block in (before, after))
        owned = reader.owns(document)
        if source.pictured:
            read, unread = (document[part][owned[part]] - reader.offset for part in (before_row, after_row))
            mixed = plan.about["version"] == REPLAYED  # there, a carried document may be of any pass
            of_one = mixed or reader.pass_of(begin) == (end.taken - 1) // reader.count
            carried = Place(end.taken, 0, np.append(end.carried, unread))
            places[source.name] = carried if of_one else reader.rewound(begin, end, read)
        else:
            places[source.name] = reader.take_text(begin, int(length[before_row][owned[before_row]].sum()))[-1]
    return places


def _stored_place(plan: RowPlan, block: int, source: int) -> Place:
    stored = plan.read("block_place")
    ends = np.concatenate([[0], stored[:, :, 2].reshape(-1)])
    number = block * stored.shape[1] + source
    taken, offset, _ = stored[block, source].tolist()
    return Place(taken, offset, plan.read("carried", int(ends[number]), int(ends[number + 1])))


def _shares(corpus: Corpus, weights: Mapping[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {source.name: weights[source.name] / total for source in corpus.sources if source.name in weights}


def _mixture(corpus: Corpus, shares: dict[str, float], room: Room, seed: int, version: int) -> Mixture:
    readers = [Reader.of(corpus, name, room, seed) for name in shares]
    return Mixture(readers, np.array(list(shares.values())), room.capacity, seed, in_order=version > REPLAYED)


def _report(columns: Columns, mixture: Mixture) -> dict[str, Any]:
    elements, rows = columns["block_elements"].sum(0), int(columns["block_row"][-1])
    first, last = columns["block_place"][[0, -1], :, 0]
    carried = np.diff(columns["block_place"][:, :, 2].reshape(-1), prepend=0).reshape(-1, len(elements)).sum(0)
    return {
        "rows": rows,
        "pieces": len(columns["piece_length"]),
        "padding": 1 - int(elements.sum()) / (rows * int(mixture.capacity[ELEMENTS])),
        "sources": {
            reader.source.name: {
                "documents": len(reader.source),
                "left_out": len(reader.left_out),  # they are not split, and fit no row
                "elements": int(elements[s]),
                "share_asked": float(mixture.shares[s]),
                "share": int(elements[s]) / int(elements.sum()),
                "passes": int(last[s] - first[s]) / reader.count,
                "carried": int(carried[s]),  # documents that waited for the next block, added up
            }
            for s, reader in enumerate(mixture.readers)
        },
    }


def _say_left_out(plan: RowPlan, log: Callable[[str], None]) -> None:
    for name, about in plan.about["sources"].items():
        if about["left_out"]:
            log(
                f"{about['left_out']:,} of {about['documents']:,} documents of source {name!r} fit no row: left out"
            )


def _progress(blocks: Iterator[tuple[Columns, float]], log: Callable[[str], None]) -> Iterator[Columns]:
    due = time.monotonic() + SAY_AFTER
    for columns, progress in blocks:
        if time.monotonic() > due:
            log(f"planning rows: {progress:.0%} ({columns['block_row'][-1]:,} rows)")
            due = time.monotonic() + SAY_EVERY
        yield columns
