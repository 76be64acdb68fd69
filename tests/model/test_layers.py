import jax.numpy as jnp
import pytest
from flax import nnx

from transfusion_jax.model.layers import RMSNorm, declared_axes, param


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
