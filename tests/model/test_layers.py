import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers import tiny_config
from transfusion_jax.model.layers import RMSNorm, declared_axes, frequencies, head_norm, param


def test_a_parameter_names_each_of_its_axes():
    assert declared_axes(nnx.state(RMSNorm(4, 1e-5))) == {"scale": ("norm",)}
    with pytest.raises(ValueError, match=r"shape \(2, 3\) needs as many names of axes .* \('width',\)"):
        param(jnp.zeros((2, 3)), "width")
    with pytest.raises(ValueError, match="bogus"):
        param(jnp.zeros(2), "bogus")


def test_a_parameter_without_axes_is_named():
    class Bare(nnx.Module):
        def __init__(self):
            self.norm = RMSNorm(4, 1e-5)
            self.bias = nnx.Param(jnp.zeros(4))

    with pytest.raises(ValueError, match="without named axes: bias; make them by `param`"):
        declared_axes(nnx.state(Bare()))


@pytest.mark.parametrize(
    ("theta", "head", "factor", "low", "high", "context"), [(5e5, 128, 8, 1, 4, 8192), (1e4, 6, 32, 2, 3, 64)]
)
def test_llama3_divides_slow_frequencies_and_blends_those_between(theta, head, factor, low, high, context):
    """Wavelength by wavelength, as the recipe has it."""
    config = tiny_config(
        model__head_dim=head,
        model__rope_theta=theta,
        model__rope_scaling="llama3",
        model__rope_factor=factor,
        model__rope_frequency_factors=(low, high),
        model__rope_original_context=context,
    )
    expected = []
    for pair in range(head // 2):
        frequency = theta ** (-2 * pair / head)
        wavelength = 2 * math.pi / frequency
        if wavelength > context / low:
            frequency /= factor
        elif wavelength >= context / high:
            smooth = (context / wavelength - low) / (high - low)
            frequency = (1 - smooth) * frequency / factor + smooth * frequency
        expected.append(frequency)
    np.testing.assert_allclose(frequencies(config.model), expected, rtol=2e-5)
    plain = theta ** (-np.arange(0, head, 2) / head)
    assert expected[0] == plain[0]
    assert expected[-1] == pytest.approx(plain[-1] / factor)


def test_linear_divides_every_frequency():
    plain, scaled = (
        frequencies(tiny_config(**changes).model)
        for changes in ({}, dict(model__rope_scaling="linear", model__rope_factor=4.0))
    )
    np.testing.assert_allclose(plain, 10_000.0 ** (-np.arange(0, 8, 2) / 8), rtol=1e-5)
    np.testing.assert_allclose(scaled, plain / 4)


def test_the_norms_of_heads_by_hand():
    """One scale for all heads, or a scale and a bias for each, with the mean taken off."""
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 6))
    for kind, weights in (("rms", (6,)), ("layer", (4, 6))):
        config = tiny_config(
            model__head_dim=6, model__query_key_norm=True, model__query_key_norm_kind=kind, model__norm_epsilon=0.1
        )
        norm = head_norm(config.model, 4)
        scale, bias = np.random.default_rng(1).standard_normal((2, *weights))
        if kind == "rms":
            norm.scale[...], centred, bias = jnp.asarray(scale), x, 0.0
        else:
            norm.head_scale[...], norm.head_bias[...] = jnp.asarray(scale), jnp.asarray(bias)
            centred = x - x.mean(-1, keepdims=True)
        expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 0.1) * scale + bias
        np.testing.assert_allclose(norm(jnp.asarray(x, jnp.float32)), expected, rtol=1e-4, atol=1e-5)
