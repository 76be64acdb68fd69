"""The stream of prepared data, cut into the slices of any number of hosts and read by any number of workers."""

import hashlib

import jax
import numpy as np
import pytest

from helpers import digits_config, prepare
from transfusion_jax.data.datasets import load_data
from transfusion_jax.data.document_rows import make_rows
from transfusion_jax.data.stream import batches

BATCHES, ROWS = 200, 4


@pytest.fixture(scope="module")
def rows(digits_folder, tmp_path_factory):
    """Digits mixed with prose, the mixture changing in mid-stream."""
    prose = tmp_path_factory.mktemp("data") / "prose"
    prepare(prose, ["prose"])
    config = digits_config(
        digits_folder,
        data__sources={"digits": {"path": str(digits_folder)}, "prose": {"path": str(prose)}},
        data__phases={"300": {"prose": 3.0, "digits": 1.0}},
        data__max_images=8,
        data__context_length=96,
    )
    data = load_data(config)
    return make_rows(data.train, config, data.codec.special)


@pytest.fixture(scope="module")
def alone(rows):
    """The batches that one process reads in threads of its own."""
    return read(rows, hosts=1, workers=0)


@pytest.mark.slow
@pytest.mark.parametrize(("hosts", "workers"), [(1, 1), (1, 4), (2, 0), (2, 4), (4, 1)])
def test_any_hosts_and_workers_read_the_same_batches(rows, alone, hosts, workers):
    assert read(rows, hosts, workers) == alone


@pytest.mark.parametrize(("stop", "hosts", "workers"), [(1, 2, 0), (77, 4, 0), (123, 2, 1)])
def test_stopping_anywhere_and_going_on_with_other_hosts_continues_the_sequence(rows, alone, stop, hosts, workers):
    assert read(rows, hosts, workers, first=stop) == alone[stop:]


def read(rows, hosts, workers, first=0):
    """A hash of each global batch, put together of the slices of its hosts."""
    size, parts = ROWS // hosts, []
    for host in range(hosts):
        local = slice(host * size, (host + 1) * size)
        with batches(rows, first * ROWS, ROWS, local, workers) as iterator:
            parts.append([jax.tree.map(np.array, next(iterator)) for _ in range(first, BATCHES)])
    whole = [jax.tree.map(lambda *leaves: np.concatenate(leaves), *slices) for slices in zip(*parts, strict=True)]
    return [
        hashlib.sha256(b"".join(leaf.tobytes() for leaf in jax.tree.leaves(batch))).hexdigest() for batch in whole
    ]
