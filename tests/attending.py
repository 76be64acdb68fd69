"""Gradients of attention, and attention as a program for devices that are not here."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from transfusion_jax.kernels.spans import Spans
from transfusion_jax.model.attention import attention


def gradients(function, q, k, v, weight):
    """The sum of `function(q, k, v) · weight`, and its gradients."""
    return jax.jit(jax.value_and_grad(lambda *qkv: jnp.sum(function(*qkv) * weight), (0, 1, 2)))(q, k, v)


def assert_close(actual, expected, **tolerance):
    tolerance = tolerance or dict(rtol=1e-4, atol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), actual, expected)


def repeated(function):
    """Attention with keys and values repeated by hand: head h of the queries has those of head h // group."""

    def over_all_heads(q, k, v):
        own = np.arange(q.shape[2]) // (q.shape[2] // k.shape[2])
        return function(q, k[:, :, own], v[:, :, own])

    return over_all_heads


def grouped_arrays(rows, length, heads, shared, channels):
    """Queries, `shared` heads of keys and of values, and weights of the output."""
    shapes = [(rows, length, n, channels) for n in (heads, shared, shared, heads)]
    keys = jax.random.split(jax.random.key(1), len(shapes))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def abstract_mesh(platform, kind, **axes):
    """A mesh of devices that are only named; of one device where no axes are given."""
    device = AbstractDevice(device_kind=kind, num_cores=1, platform=platform)
    sizes, names = tuple(axes.values()) or (1,), tuple(axes) or ("data",)
    return AbstractMesh(sizes, names, axis_types=(AxisType.Auto,) * len(sizes), abstract_device=device)


def lowered(platform, length, heads, channels, dtype, implementation, shared=None):
    """The gradient of attention over two rows as a program for a platform; `shared` heads are of keys."""
    q, k = (jax.ShapeDtypeStruct((2, length, n, channels), dtype) for n in (heads, shared or heads))
    span = jax.ShapeDtypeStruct((2, length), "int32")

    def loss(q, k, v, start, end):
        return attention(q, k, v, Spans(start, end), implementation=implementation).astype(jnp.float32).sum()

    step = jax.jit(jax.grad(loss, (0, 1, 2)))
    return step.trace(q, k, k, span, span).lower(lowering_platforms=(platform,)).as_text()
