"""How long it takes to plan the rows of very many documents, and to start again with the plan.

The documents are sizes alone, in memory-mapped files: captions of about twenty tokens with one image each, and
texts of about six hundred tokens, two pairs to one text, which at equal weights are read up together. With a larger
share, pairs are read several times. With `--any-shape`, images have a quarter of the patches to all of them, evenly
by the logarithm, and rows are filled by patches, too.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import pickle
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import harness
from transfusion_jax.data.documents import Corpus, Document, Source
from transfusion_jax.data.packing.packing import Room
from transfusion_jax.data.packing.plan import plan_rows
from transfusion_jax.data.packing.plan_store import RowPlan
from transfusion_jax.parallel.children import end_with_parent

CHUNK = 1 << 22
SOURCES = ("pairs", "texts")


@dataclass(frozen=True)
class Sizes:
    """`Documents` of which nothing is known but their sizes."""

    text_lengths: np.ndarray
    images: np.ndarray
    patches: np.ndarray
    hash: str

    def areas(self, documents: np.ndarray | slice) -> np.ndarray:
        """One latent place for each patch."""
        return self.patches[documents].astype(np.int64)

    @property
    def shapes(self) -> frozenset[tuple[int, int]]:
        """Planning asks for none."""
        raise AssertionError("planning reads sizes alone, and something asked for shapes")

    def __getitem__(self, number: int) -> Document:
        raise AssertionError("planning reads sizes alone, and something read a document")

    def text(self, number: int, begin: int, end: int) -> np.ndarray:
        """These documents have no text."""
        raise AssertionError("planning reads sizes alone, and something read a text")


@dataclass(frozen=True)
class Result:
    """What one planning cost, and what came of it."""

    documents: int
    context: int
    patches: int
    any_shape: bool
    share: float  # of the elements, of pairs
    seconds: float  # of planning one epoch
    documents_per_second: float
    memory_bytes: int  # the most that planning added to the process, the mapped lengths not counted
    plan_bytes: int  # on disk
    restart_ms: float  # a new process opens the plan and finds the pieces of a row, the best of three
    pickle_bytes: int  # what a worker is sent
    about: dict[str, object]
    machine: dict[str, object]


def main() -> None:
    """Plans, starts again, and prints."""
    parser = harness.parser(__doc__, timed=False)
    parser.add_argument("--documents", type=int, default=1_000_000, help="in all (default: %(default)s)")
    parser.add_argument("--context", type=int, default=4096, help="elements per row (default: %(default)s)")
    parser.add_argument("--patches", type=int, default=256, help="elements per image (default: %(default)s)")
    parser.add_argument("--any-shape", action="store_true", help="images have so many patches at most")
    parser.add_argument(
        "--share", type=float, default=0.5, help="share of the elements that pairs have (default: %(default)s)"
    )
    parser.add_argument("--folder", type=Path, help="where files are kept meanwhile (default: a temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        how = arguments.context, arguments.patches, arguments.any_shape, arguments.share
        result = measure(Path(folder), arguments.documents, *how)
    harness.deliver(dataclasses.asdict(result), table(result), arguments.json)


def measure(folder: Path, documents: int, context: int, patches: int, any_shape: bool, share: float) -> Result:
    """Plans an epoch of synthetic documents under a folder."""
    spawned = multiprocessing.get_context("spawn")
    with spawned.Pool(1, end_with_parent) as pool:  # NumPy's chunks must not count as the planner's memory
        pool.apply(write_lengths, (folder, documents, patches))
    with spawned.Pool(1, end_with_parent) as pool:
        seconds, memory, plan = pool.apply(plan_in, (folder, context, patches, any_shape, share))
    restarts = []
    for row in np.linspace(0, plan.rows - 1, 3).astype(int):
        with spawned.Pool(1, end_with_parent) as pool:
            restarts.append(pool.apply(restart, (folder, context, patches, any_shape, share, int(row))))
    assert plan.folder
    plan_bytes = sum(path.stat().st_size for path in plan.folder.iterdir())
    return Result(
        documents,
        context,
        patches,
        any_shape,
        share,
        seconds,
        documents / seconds,
        memory,
        plan_bytes,
        min(restarts),
        len(pickle.dumps(plan)),
        dict(plan.about),
        harness.machine(),
    )


def write_lengths(folder: Path, documents: int, patches: int) -> None:
    """The sizes of both sources, chunk by chunk."""
    texts = documents // 3
    for name, count in (("pairs", documents - texts), ("texts", texts)):
        file = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.int32, (count,))
        for begin in range(0, count, CHUNK):
            random = np.random.default_rng([begin, texts])
            size = min(CHUNK, count - begin)
            captions, long = random.geometric(1 / 20, size), random.lognormal(np.log(600) - 0.5, 1, size)
            file[begin : begin + size] = np.minimum(captions, 2000) if name == "pairs" else long
        images = np.lib.format.open_memmap(folder / f"{name}.images.npy", "w+", np.uint8, (count,))
        images[:] = name == "pairs"
        areas = np.lib.format.open_memmap(folder / f"{name}.patches.npy", "w+", np.uint16, (count,))
        for begin in range(0, count, CHUNK):
            smaller = np.random.default_rng([begin, 1]).random(min(CHUNK, count - begin), np.float32)
            areas[begin : begin + CHUNK] = patches * 4.0**-smaller * (name == "pairs")


def open_corpus(folder: Path) -> Corpus:
    """The synthetic documents."""
    sources = []
    for name in SOURCES:
        columns = [np.load(folder / f"{name}{part}.npy", mmap_mode="r") for part in ("", ".images", ".patches")]
        lengths, images, patches = columns
        sources.append(Source(name, Sizes(lengths, images, patches, f"{name} {len(lengths)}")))
    return Corpus(tuple(sources))


def open_or_plan(folder: Path, context: int, patches: int, any_shape: bool, share: float) -> RowPlan:
    """The plan of one epoch."""
    images = context // patches
    room = Room(context, images, text=context, one_size=patches)
    if any_shape:
        room = Room(context, 4 * images, text=context, patches=images * patches)
    weights = dict(zip(SOURCES, (share, 1 - share), strict=True))
    return plan_rows(open_corpus(folder), weights, room, 0, cache=folder / "plans")


def plan_in(folder: Path, context: int, patches: int, any_shape: bool, share: float) -> tuple[float, int, RowPlan]:
    """Seconds, bytes and the plan."""
    before, begin = memory(), time.perf_counter()
    plan = open_or_plan(folder, context, patches, any_shape, share)
    seconds = time.perf_counter() - begin
    read = [path for path in folder.glob("*.npy") if any_shape or not path.name.endswith(".patches.npy")]
    mapped = sum(path.stat().st_size for path in read)
    return seconds, memory() - before - mapped, plan


def restart(folder: Path, context: int, patches: int, any_shape: bool, share: float, row: int) -> float:
    """Milliseconds until a row's pieces are known."""
    begin = time.perf_counter()
    plan = open_or_plan(folder, context, patches, any_shape, share)
    assert sum(length for _, _, length in plan.pieces(row)) <= context
    return 1000 * (time.perf_counter() - begin)


def memory() -> int:
    """The most resident memory that this process has had, mapped files with it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def table(result: Result) -> str:
    """The result for reading."""
    about = result.about
    rows = [
        ("documents", f"{result.documents:,}"),
        ("planning", f"{result.seconds:.1f} s"),
        ("documents per second", f"{result.documents_per_second:,.0f}"),
        ("memory beyond mapped lengths", f"{result.memory_bytes / 2**20:,.0f} MiB"),
        ("rows", f"{about['rows']:,}"),
        ("pieces", f"{about['pieces']:,}"),
        ("padding", f"{about['padding']:.4%}"),
        ("plan on disk", f"{result.plan_bytes / 2**20:,.0f} MiB"),
        ("restart", f"{result.restart_ms:.1f} ms"),
        ("sent to a worker", f"{result.pickle_bytes} bytes"),
    ]
    return "\n".join(f"{name:30} {value:>16}" for name, value in rows)


if __name__ == "__main__":
    main()
