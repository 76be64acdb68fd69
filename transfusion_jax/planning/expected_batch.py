"""What rows are expected to hold, so that attention and text head can be counted before there is data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from transfusion_jax import config as configs
from transfusion_jax.config import Config
from transfusion_jax.data.datasets import load_data
from transfusion_jax.data.document_rows import make_rows
from transfusion_jax.kernels.attention.tpu import Blocks
from transfusion_jax.planning.estimate import Contents

ROWS = 64  # that are looked at


def expected(config: Config) -> Contents:
    """Of the first rows of the synthetic mixture: half of the elements in captioned images, half in texts.

    Where the config names synthetic sources itself, of those.
    """
    own = config.data.sources
    if not own or not all(source.path.startswith("synthetic:") for source in own.values()):
        values = configs.to_dict(replace(config, data=replace(config.data, sources={}, phases={})))
        config = configs.parse({**values, "data": {**values["data"], "sources": "synthetic"}})
    data = load_data(config, None)
    rows = make_rows(data.train, config, data.codec.special)
    block = min(Blocks().query, config.data.context_length)
    seen = []
    for number in range(ROWS):
        row = rows[number]
        used = row.source >= 0
        area = np.where(used, row.span_end - row.span_start, 0).sum()
        first = np.minimum.reduceat(row.span_start, range(0, len(used), block)) // block
        last = -(-np.maximum.reduceat(row.span_end, range(0, len(used), block)) // block)
        visited = np.sum(last - first) * block**2
        sizes = [media.grid.prod(-1) for media in row.media.values()]
        images, patches, pairs = (sum(np.sum(f(n)) for n in sizes) for f in (np.sign, np.abs, np.square))
        seen.append((used.sum(), np.sum(row.token_weight > 0), images, area, float(visited), patches, pairs))
    return Contents(*(float(n) for n in np.mean(seen, axis=0)))
