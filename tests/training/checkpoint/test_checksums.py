import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from transfusion_jax.config import MeshConfig
from transfusion_jax.parallel.mesh import make_mesh
from transfusion_jax.parallel.tree import leaf_names, leaf_shapes
from transfusion_jax.training.checkpoint.checksums import checksums


def test_leaves_have_readable_names_and_shapes():
    tree = {"params": {"norm": {"scale": jnp.ones(3)}}, "moments": (jnp.int32(1), [jnp.ones((2, 4), jnp.bfloat16)])}
    assert leaf_names(tree) == ["moments/0", "moments/1/0", "params/norm/scale"]
    assert leaf_shapes(tree)["moments/1/0"] == ["bfloat16", [2, 4]]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "uint8", "bool"])
def test_every_flipped_bit_changes_the_checksum(dtype):
    values = (np.arange(15).reshape(5, 3) % 2 if dtype == "bool" else np.arange(15.0).reshape(5, 3)).astype(dtype)
    raw, bits = values.view(np.uint8), 1 if dtype == "bool" else 8
    seen = {checksums([values])["0"], checksums([jnp.asarray(values)])["0"]}  # by NumPy and by the device
    for place in range(raw.size):
        for bit in range(bits):
            flipped = raw.copy()
            flipped.flat[place] ^= 1 << bit
            seen.add(checksums([flipped.view(values.dtype)])["0"])
    assert len(seen) == 1 + bits * raw.size


def test_entries_that_change_places_change_the_checksum():
    values = np.arange(24.0, dtype=np.float32).reshape(2, 3, 4)
    swapped = [values[::-1], values[:, ::-1], values[..., ::-1], values.reshape(2, 4, 3).swapaxes(1, 2)]
    assert len({checksums([v])["0"] for v in [values, *swapped]}) == 5


def test_the_checksum_does_not_depend_on_blocks(monkeypatch):
    values = np.random.default_rng(0).standard_normal((7, 9), np.float32)
    whole = checksums([values])
    monkeypatch.setattr("transfusion_jax.training.checkpoint.checksums.BLOCK", 8)
    assert checksums([values]) == whole


def test_the_checksum_does_not_depend_on_the_sharding():
    values = jax.random.normal(jax.random.key(0), (16, 24))
    mesh = make_mesh(MeshConfig(data=2, fsdp=4), jax.devices())
    sharded = jax.device_put(values, NamedSharding(mesh, P(("fsdp", "data"))))
    assert checksums([sharded]) == checksums([values])
