import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from transfusion_jax.config import MeshConfig
from transfusion_jax.kernels import cross_entropy as module
from transfusion_jax.kernels.cross_entropy import cross_entropy
from transfusion_jax.parallel.mesh import make_mesh

ROWS, LENGTH, WIDTH, ENTRIES, PADDED = 4, 50, 8, 37, 48
Z_LOSS = 0.1


@pytest.mark.parametrize("chunk", [7, 25, 64])
def test_losses_and_gradients_are_those_of_optax(chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    compare(*both(jnp.float32), atol=2e-6)


@pytest.mark.parametrize("axes", [dict(data=2, fsdp=2, tensor=2), dict(tensor=4, data=2), dict(tensor=8)])
def test_every_mesh_gives_the_same(axes, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 8)
    with jax.set_mesh(make_mesh(MeshConfig(**axes))):
        compare(*both(jnp.float32), atol=2e-6)


def test_bfloat16_is_close():
    compare(*both(jnp.bfloat16), atol=0.05)


def test_the_square_of_elements_and_vocabulary_is_never_held(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 8)
    hidden, head, targets, weight = arrays(jnp.float32)
    compiled = jax.jit(jax.grad(ours, (0, 1))).lower(hidden, head, targets, weight).compile()
    shapes = re.findall(r"f32\[([\d,]+)\]", compiled.as_text())
    sizes = [math.prod(map(int, shape.split(","))) for shape in shapes]
    assert ROWS * 8 * PADDED <= max(sizes) < ROWS * LENGTH * PADDED


def both(dtype):
    """Losses and gradients of the function that is tested, and of optax's in float32."""
    values = arrays(dtype)
    exact = [x.astype(jnp.float32) if x.dtype == dtype else x for x in values]
    found = jax.jit(jax.value_and_grad(ours, (0, 1)))(*values)
    return jax.device_get((found, jax.jit(jax.value_and_grad(theirs, (0, 1)))(*exact)))


def ours(hidden, head, targets, weight):
    losses, log_total = cross_entropy(hidden, head, targets, ENTRIES)
    return jnp.sum((losses + Z_LOSS * jnp.square(log_total)) * weight)


def theirs(hidden, head, targets, weight):
    logits = (hidden @ head)[..., :ENTRIES]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.sum((losses + Z_LOSS * jnp.square(jax.nn.logsumexp(logits, -1))) * weight)


def arrays(dtype):
    random = np.random.default_rng(0)
    hidden, head = random.normal(size=(ROWS, LENGTH, WIDTH)), random.normal(size=(WIDTH, PADDED))
    targets, weight = random.integers(0, ENTRIES, (ROWS, LENGTH)), random.uniform(size=(ROWS, LENGTH))
    return jnp.asarray(hidden, dtype), jnp.asarray(head, dtype), jnp.asarray(targets), jnp.asarray(weight / 100)


def compare(found, expected, atol):
    (loss, gradients), (their_loss, their_gradients) = found, expected
    np.testing.assert_allclose(loss, their_loss, rtol=atol)
    for mine, theirs in zip(gradients, their_gradients, strict=True):
        np.testing.assert_allclose(mine.astype(jnp.float32), theirs, atol=atol)
    assert np.all(gradients[1][:, ENTRIES:] == 0)
