"""The row plan: which pieces of which documents make up each row of one epoch.

Documents with images are never split: they are dealt over the rows so that each row holds nearly an equal share.
What is left of a row is filled exactly with pieces of the plain texts, cut where a row ends. So every row mixes
all sources, and the mixture's weights hold in elements over any stretch of rows.

Each source is an endless sequence of documents, pass after pass, each pass in an order of its own. Rows are planned
in blocks that go on in the sequences where the block before ended, so memory does not grow with the corpus. An
epoch is as long as it takes to read every source at least once; the others come round again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from transfusion_jax.config import Config, DataConfig
from transfusion_jax.data.documents import Corpus
from transfusion_jax.data.packing import ELEMENTS
from transfusion_jax.data.plan_blocks import BLOCK_ROWS, Mixture, plan_blocks
from transfusion_jax.data.plan_files import Columns, RowPlan, in_memory, open_plan, store
from transfusion_jax.data.sequences import Place, Reader

VERSION = 2  # of the plans: where planning changes this does, and plans of another version are left alone
SAY_AFTER, SAY_EVERY = 2.0, 10.0  # seconds


def plan_phases(
    corpus: Corpus, config: Config, cache: Path | None = None, say: Callable[[str], None] = print
) -> tuple[RowPlan, ...]:
    """One plan per phase of the config; each reads on where the phase before stops, and depends on no later one.

    Args:
        corpus: the documents, by sources in the order of `config.data.source_names`.
        config: names the mixtures, the row's sizes and the seed.
        cache: see `plan_rows`.
        say: prints a line for the user.

    Raises:
        ConfigError: many documents of a source do not fit a row, or a source is empty.
    """
    data, patches = config.data, config.model.patches
    plans: list[RowPlan] = []
    places: dict[str, Place] = {}
    starts = [phase.start for phase in data.mixtures]
    for phase, end in zip(data.mixtures, [*starts[1:], None], strict=True):
        plans.append(plan_rows(corpus, phase.weights, data, patches, config.seed, places, cache, say))
        if end is not None:
            places = places | places_at(
                plans[-1], end - phase.start, corpus, phase.weights, data, patches, config.seed
            )
    return tuple(plans)


def plan_rows(
    corpus: Corpus,
    weights: Mapping[str, float],
    data: DataConfig,
    patches: int,
    seed: int,
    begin: Mapping[str, Place] | None = None,
    cache: Path | None = None,
    say: Callable[[str], None] = print,
) -> RowPlan:
    """Plans one epoch, or opens its plan where it has been planned before.

    Args:
        corpus: the documents; each source holds either documents with images or plain texts.
        weights: shares of the elements, relative to each other, by source; the other sources are not read.
        data: the context length and the caps per row.
        patches: elements per image.
        seed: of the order in which documents are taken.
        begin: where to begin to read each source; at its beginning if it is not named.
        cache: a folder of plans; None plans in memory.
        say: prints a line for the user, where planning takes seconds.

    Raises:
        ConfigError: many documents of a source do not fit a row, or a source is empty.
    """
    total = sum(weights.values())
    shares = {source.name: weights[source.name] / total for source in corpus.sources if source.name in weights}
    places = {name: (begin or {}).get(name, Place()) for name in shares}
    capacity = row_capacity(data)
    folder = cache and cache / _key(corpus, shares, capacity, patches, seed, places)
    if folder and (found := open_plan(folder)):
        _say_left_out(found, say)
        return found
    readers = [Reader.of(corpus, name, patches, seed, capacity) for name in shares]
    mixture = Mixture(readers, np.array(list(shares.values())), capacity, seed)
    blocks = _progress(plan_blocks(mixture, list(places.values())), say)

    def describe(columns: Columns) -> dict[str, Any]:
        return _report(columns, mixture)

    plan = store(folder, blocks, describe) if folder else in_memory(blocks, describe)
    _say_left_out(plan, say)
    return plan


def row_capacity(data: DataConfig) -> np.ndarray:
    """What a row holds, `[3]`: elements, images, and elements that may bear a text loss."""
    return np.array([data.context_length, data.max_images, data.text_capacity])


def places_at(
    plan: RowPlan, row: int, corpus: Corpus, names: Mapping[str, Any], data: DataConfig, patches: int, seed: int
) -> dict[str, Place]:
    """How far each source has been read before a row: what rows from it on hold has not been, nor what was carried.

    Args:
        plan: of the corpus.
        row: counted from the plan's beginning; from the plan's last row on, all has been read.
        names: the sources that the plan reads.
        data: the row's capacity.
        patches: elements per image.
        seed: the plan's.
    """
    row = min(row, plan.rows)
    before = int(np.searchsorted(plan.block_row, row, side="right")) - 1
    after = min(before + (row > plan.block_row[before]), len(plan.block_row) - 1)
    read, unread = (
        slice(*plan.row_offset[[first, last]])
        for first, last in ((plan.block_row[before], row), (row, plan.block_row[after]))
    )
    places = {}
    for index, source in enumerate(s for s in corpus.sources if s.name in names):
        reader = Reader.of(corpus, source.name, patches, seed, row_capacity(data))
        if source.pictured:
            place, documents = _stored_place(plan, after, index), plan.piece_document[unread]
            ahead = documents[reader.owns(documents)] - reader.offset
            places[source.name] = replace(place, carried=np.append(place.carried, ahead))
        else:
            elements = plan.piece_length[read][reader.owns(plan.piece_document[read])].sum()
            places[source.name] = reader.take_text(_stored_place(plan, before, index), int(elements))[-1]
    return places


def _stored_place(plan: RowPlan, block: int, source: int) -> Place:
    ends = np.concatenate([[0], plan.block_place[:, :, 2].reshape(-1)])
    number = block * plan.block_place.shape[1] + source
    taken, offset, _ = plan.block_place[block, source].tolist()
    return Place(taken, offset, plan.carried[ends[number] : ends[number + 1]])


def _key(
    corpus: Corpus,
    shares: dict[str, float],
    capacity: np.ndarray,
    patches: int,
    seed: int,
    places: dict[str, Place],
) -> str:
    """A hash of all that a plan depends on."""
    sources = [
        [s.name, s.documents.hash, len(s), int(offset), shares[s.name], places[s.name].taken, places[s.name].offset]
        for s, offset in zip(corpus.sources, corpus.offsets[:-1], strict=True)
        if s.name in shares
    ]
    values = [VERSION, BLOCK_ROWS, capacity.tolist(), patches, seed, sources]
    digest = hashlib.sha256(json.dumps(values).encode())
    for place in places.values():
        digest.update(np.array([len(place.carried), *place.carried], "<i8").tobytes())
    return digest.hexdigest()[:24]


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


def _say_left_out(plan: RowPlan, say: Callable[[str], None]) -> None:
    for name, about in plan.about["sources"].items():
        if about["left_out"]:
            say(
                f"{about['left_out']:,} of {about['documents']:,} documents of source {name!r} fit no row: left out"
            )


def _progress(blocks: Iterator[tuple[Columns, float]], say: Callable[[str], None]) -> Iterator[Columns]:
    due = time.monotonic() + SAY_AFTER
    for columns, progress in blocks:
        if time.monotonic() > due:
            say(f"planning rows: {progress:.0%} ({columns['block_row'][-1]:,} rows)")
            due = time.monotonic() + SAY_EVERY
        yield columns
