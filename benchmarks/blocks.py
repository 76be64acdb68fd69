"""How many pairs of blocks attention visits on rows of the paper's mixture, beside a triangle's and all.

    python benchmarks/blocks.py

The rows are those that `--config.data.sources=synthetic` trains on: captions of about twenty tokens with an image
of 256 patches each, and texts of about six hundred tokens; then rows of either kind alone, and the mixture with
images of proportions from 1:2 to 2:1.
"""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import harness
from transfusion_jax.config import Config
from transfusion_jax.config import load as load_config
from transfusion_jax.data.datasets import load_data
from transfusion_jax.data.document_rows import make_rows
from transfusion_jax.kernels.attention.schedule import count_blocks
from transfusion_jax.kernels.spans import Spans

CONFIG = Path(__file__).parents[1] / "configs" / "paper.py"
BLOCKS = (128, 256, 512)


@dataclass(frozen=True)
class Count:
    """Pairs of a query block and a key block per row, the mean over rows."""

    rows: str  # their kind
    block: int  # elements
    visited: float
    touched: float
    causal: float
    dense: float
    full: float  # touched pairs of elements over the elements of the pairs visited


def main() -> None:
    """Counts and prints."""
    parser = harness.parser(__doc__, timed=False)
    parser.add_argument("--rows", type=int, default=64, help="of each kind (default: %(default)s)")
    arguments = parser.parse_args()
    counts = [
        count(kind, spans, block)
        for kind, config in kinds().items()
        for spans in [row_spans(config, arguments.rows)]
        for block in BLOCKS
    ]
    result = {"rows": arguments.rows, "counts": [dataclasses.asdict(c) for c in counts]}
    harness.deliver(result, table(counts), arguments.json)


def kinds() -> dict[str, Config]:
    """A config for each kind of rows."""
    mixture = load_config(f"{CONFIG}:0.16b", ["data.sources=synthetic"])

    def alone(source: str, images: int) -> Config:
        data = dataclasses.replace(mixture.data, sources={source: mixture.data.sources[source]}, max_images=images)
        return dataclasses.replace(mixture, data=data)

    most = mixture.data.context_length // mixture.model.patches
    native = load_config(f"{CONFIG}:0.16b,native", ["data.sources=synthetic"])
    plain = alone("text", mixture.data.max_images)
    return {"mixture": mixture, "captions": alone("pairs", most), "text": plain, "any shape": native}


def of_length(config: Config, length: int) -> Config:
    """The same with rows of another length, and as many images for it."""
    images = max(1, config.data.max_images * length // config.data.context_length)
    data = dataclasses.replace(config.data, context_length=length, max_images=images, max_text=0)
    return dataclasses.replace(config, data=data)


def row_spans(config: Config, rows: int) -> Spans:
    """The spans of the stream's first rows, `[rows, T]`."""
    data = load_data(config)
    with tempfile.TemporaryDirectory() as folder:
        stream = make_rows(data.train, config, data.codec.special, log=lambda line: None, cache=Path(folder))
        spans = [stream[row].spans for row in range(rows)]
    return Spans(*(np.stack(part) for part in zip(*spans, strict=True)))


def count(kind: str, spans: Spans, block: int) -> Count:
    """The pairs of one size of block."""
    rows, length = np.shape(spans.start)
    start, end = np.asarray(spans.start), np.asarray(spans.end)
    counts = count_blocks(start, end, block, block, keys=length)
    return Count(
        rows=kind,
        block=block,
        visited=counts.visited / rows,
        touched=counts.touched / rows,
        causal=counts.causal / rows,
        dense=counts.dense / rows,
        full=float((end - start).sum()) / (counts.visited * block**2),
    )


def table(counts: list[Count]) -> str:
    """The counts for reading."""
    head = ["rows", "block", "visited", "touched", "causal", "dense", "causal/visited", "dense/visited", "full"]
    lines = [head]
    for c in counts:
        per_row = [f"{n:.1f}" for n in (c.visited, c.touched, c.causal, c.dense)]
        ratios = [f"{c.causal / c.visited:.2f}", f"{c.dense / c.visited:.2f}", f"{c.full:.0%}"]
        lines.append([c.rows, str(c.block), *per_row, *ratios])
    return "\n".join(harness.align(lines))


if __name__ == "__main__":
    main()
