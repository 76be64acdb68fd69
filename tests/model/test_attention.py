import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attending import assert_close, grouped_arrays, repeated
from attending import gradients as gradients_of
from helpers import stand_in
from layouts import LAYOUTS, LENGTH, layout_spans, random_arrays
from transfusion_jax.config import ATTENTION, MeshConfig
from transfusion_jax.kernels.attention import blocked as blocked_kernel
from transfusion_jax.kernels.spans import Spans, check_spans
from transfusion_jax.model.attention import attention, check_shapes
from transfusion_jax.parallel.mesh import make_mesh

FAST = ["blocked"]  # tests/kernels tests those of an accelerator
PORTABLE = ["reference", *FAST]


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("blocks", [(16, 16), (20, 12), (64, 32)])
def test_matches_the_reference_forward_and_backward(implementation, layout, blocks, monkeypatch):
    monkeypatch.setattr(blocked_kernel, "QUERY_BLOCK", blocks[0])
    monkeypatch.setattr(blocked_kernel, "KEY_BLOCK", blocks[1])
    spans = layout_spans([layout, "ragged packed documents"])
    q, k, v, weight = random_arrays(4, (2, LENGTH, 3, 8))

    expected = gradients(q, k, v, weight, spans, "reference", ())
    actual = gradients(q, k, v, weight, spans, implementation, blocks)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), actual, expected)


@pytest.mark.parametrize("implementation", PORTABLE)
def test_a_query_sees_its_span_and_nothing_else(implementation):
    spans = layout_spans(["ragged packed documents", "adjacent images"])
    q, k, v = random_arrays(3, (2, LENGTH, 1, 4))
    out = attention(q, k, v, spans, implementation=implementation)
    for row, query in [(0, 0), (0, 9), (0, 12), (0, 47), (1, 3), (1, 10)]:
        begin, end = int(spans.start[row, query]), int(spans.end[row, query])
        scores = q[row, query, 0] @ k[row, begin:end, 0].T / 2
        expected = jax.nn.softmax(scores) @ v[row, begin:end, 0]
        np.testing.assert_allclose(out[row, query, 0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("heads", "shared"), [(6, 3), (4, 1)])
def test_each_head_of_keys_serves_the_consecutive_queries_of_its_group(heads, shared):
    spans = layout_spans(["ragged packed documents", "adjacent images"])
    q, k, v, _ = grouped_arrays(2, LENGTH, heads, shared, 6)
    out = np.asarray(attention(q, k, v, spans, implementation="reference"))
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    for row, query, head in np.ndindex(2, LENGTH, heads):
        seen, own = slice(int(spans.start[row, query]), int(spans.end[row, query])), head * shared // heads
        weights = np.exp(k[row, seen, own] @ q[row, query, head] / np.sqrt(6))
        expected = weights / weights.sum() @ v[row, seen, own]
        np.testing.assert_allclose(out[row, query, head], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", PORTABLE)
@pytest.mark.parametrize(("heads", "shared", "channels"), [(6, 3, 10), (4, 1, 6)])
def test_grouped_queries_equal_repeated_keys_forward_and_backward(
    implementation, heads, shared, channels, monkeypatch
):
    monkeypatch.setattr(blocked_kernel, "QUERY_BLOCK", 20)
    monkeypatch.setattr(blocked_kernel, "KEY_BLOCK", 12)
    spans = layout_spans(list(LAYOUTS))
    arrays = grouped_arrays(len(LAYOUTS), LENGTH, heads, shared, channels)
    expected = gradients_of(repeated(lambda *qkv: attention(*qkv, spans, "reference")), *arrays)
    actual = gradients_of(lambda *qkv: attention(*qkv, spans, implementation), *arrays)
    assert [x.shape for x in actual[1]] == [x.shape for x in arrays[:3]]
    assert_close(actual, expected)


@pytest.mark.parametrize(
    ("heads", "shared", "of_queries", "of_keys"),
    [(8, 4, 2, 1), (8, 2, 2, 1), (4, 1, 1, 1), (12, 3, 12, 3)],
    ids=["keys split", "a head of keys for two devices", "a head of keys for all", "not split"],
)
def test_heads_are_split_over_a_mesh_as_their_numbers_allow(heads, shared, of_queries, of_keys, monkeypatch):
    seen = set()

    def recording(q, k, v, start, end):
        seen.add((q.shape[1:3], k.shape[1:3], v.shape[1:3]))
        return blocked_kernel.attention(q, k, v, start, end)

    stand_in(monkeypatch, ATTENTION, "recording", recording)
    spans = layout_spans(["ragged packed documents", "adjacent images"])
    arrays = grouped_arrays(2, LENGTH, heads, shared, 6)
    expected = gradients_of(repeated(lambda *qkv: attention(*qkv, spans, "reference")), *arrays)
    with jax.set_mesh(make_mesh(MeshConfig(context=2, tensor=4, data=1))):
        actual = gradients_of(lambda *qkv: attention(*qkv, spans, "recording"), *arrays)
    assert seen == {((LENGTH // 2, of_queries), (LENGTH, of_keys), (LENGTH, of_keys))}
    assert_close(actual, expected)


@pytest.mark.parametrize("implementation", PORTABLE)
def test_some_of_the_queries_see_the_keys_that_all_of_them_do(implementation):
    spans = layout_spans(["ragged packed documents", "image at the end"])
    q, k, v = random_arrays(3, (2, LENGTH, 2, 8))
    whole = attention(q, k, v, spans, implementation="reference")
    some = Spans(*(x[:, 30:41] for x in spans))
    part = attention(q[:, 30:41], k, v, some, implementation=implementation)
    np.testing.assert_allclose(part, whole[:, 30:41], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", FAST)
def test_bfloat16_is_close_to_float32(implementation):
    spans = layout_spans(["ragged packed documents", "pure text"])
    q, k, v = random_arrays(3, (2, LENGTH, 2, 8))
    exact = attention(q, k, v, spans, implementation="reference")
    coarse = attention(*(x.astype(jnp.bfloat16) for x in (q, k, v)), spans, implementation=implementation)
    assert coarse.dtype == jnp.bfloat16
    np.testing.assert_allclose(coarse.astype(jnp.float32), exact, atol=0.05)


def test_the_default_never_makes_a_square_of_the_sequence():
    length = 4 * blocked_kernel.QUERY_BLOCK
    shape = jax.ShapeDtypeStruct((2, length, 1, 4), jnp.float32)
    span = jax.ShapeDtypeStruct((2, length), jnp.int32)

    def loss(q, start, end):
        return attention(q, q, q, Spans(start, end)).sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss))(shape, span, span)
    assert largest_array(jaxpr.jaxpr) < length * length


def test_many_batched_gradients_equal_each_alone():
    """XLA on CPU once got these wrong: see YNN in docs/decisions.md."""
    spans = layout_spans(["ragged packed documents"])
    q, k, v = random_arrays(3, (1, LENGTH, 1, 8))
    _, gradient = jax.vjp(lambda *qkv: attention(*qkv, spans), q, k, v)
    cotangents = jnp.zeros((LENGTH, *q.shape)).at[jnp.arange(LENGTH), 0, jnp.arange(LENGTH), 0, 0].set(1.0)
    together = jax.vmap(gradient)(cotangents)
    one_by_one = jax.lax.map(gradient, cotangents)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), together, one_by_one)


def test_wrong_shapes_and_names_are_refused():
    spans = layout_spans(["pure text"])
    q, k, v = random_arrays(3, (1, LENGTH, 2, 8))
    with pytest.raises(ValueError, match="do not agree"):
        check_shapes(q, k[:, :, :1], v, spans)
    with pytest.raises(ValueError, match=r"do not agree: q \(1, 48, 3, 8\), k \(1, 48, 2, 8\)"):
        check_shapes(q[:, :, [0, 1, 1]], k, v, spans)
    with pytest.raises(ValueError, match="do not agree"):
        check_shapes(q[:, :, :1], k, v, spans)
    with pytest.raises(ValueError, match="are not of the queries"):
        check_shapes(q, k, v, Spans(*(s[:, :40] for s in spans)))
    with pytest.raises(ValueError, match="attention is 'flush'; valid: auto, blocked"):
        attention(q, k, v, spans, implementation="flush")


def test_check_spans_names_what_is_broken():
    good = layout_spans(["ragged packed documents"])
    check_spans(good)
    for field, value, message in [
        ("start", good.start + 1, "own element"),
        ("end", np.minimum(good.end, 20), "own element"),
        ("start", np.where(np.arange(LENGTH) == 3, 0, np.minimum(np.arange(LENGTH), 2)), "starts must never"),
        ("end", np.where(np.arange(LENGTH) == 3, 9, np.arange(LENGTH) + 1), "ends must never"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_spans(good._replace(**{field: np.broadcast_to(value, good.start.shape)}))


@functools.partial(jax.jit, static_argnums=(5, 6))
def gradients(q, k, v, weight, spans, implementation, blocks):
    del blocks  # a part of the cache's key: it is read from the module
    return jax.value_and_grad(
        lambda q, k, v: jnp.sum(attention(q, k, v, spans, implementation=implementation) * weight), (0, 1, 2)
    )(q, k, v)


def largest_array(jaxpr):
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [v.aval.size for v in equation.outvars]
        for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                sizes.append(largest_array(inner))
    return max(sizes)
