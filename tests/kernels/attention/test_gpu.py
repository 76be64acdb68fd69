"""What is the GPU kernel's own: where it runs, its limits, and programs for GPUs that are not here."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attending import abstract_mesh, assert_close, gradients, lowered
from layouts import LENGTH, layout_spans, random_arrays
from transfusion_jax.kernels import platform
from transfusion_jax.kernels.attention import gpu
from transfusion_jax.kernels.attention.reference import attention as reference
from transfusion_jax.kernels.spans import Spans
from transfusion_jax.model.attention import attention

HOPPER = "NVIDIA H100 80GB HBM3"
SPANS = Spans(jnp.zeros((1, 256), jnp.int32), jnp.arange(1, 257)[None])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(("heads", "shared", "channels"), [(2, 2, 64), (2, 2, 128), (2, 1, 128), (9, 3, 64)])
def test_it_lowers_to_triton_forward_and_backward(heads, shared, channels, dtype):
    with jax.sharding.use_abstract_mesh(abstract_mesh("gpu", HOPPER)):
        assert kernels_in(lowered("cuda", 4096, heads, channels, dtype, "gpu", shared)) == [
            "span_attention_forward",
            "span_attention_d_query",
            "span_attention_d_key",
        ]


def test_auto_takes_it_on_an_nvidia_gpu_unless_queries_are_few():
    with jax.sharding.use_abstract_mesh(abstract_mesh("gpu", HOPPER)):
        assert len(kernels_in(lowered("cuda", 256, 1, 64, "bfloat16", "auto"))) == 3
        assert kernels_in(lowered("cuda", 8, 1, 64, "bfloat16", "auto")) == []


@pytest.mark.parametrize(
    ("version", "capability", "message"),
    [
        ("cuda 13000", "7.5", r"compute capability 8.0 \(Ampere\) and later, not on 7.5"),
        ("rocm 70000", "gfx942", "runs on NVIDIA GPUs, not on rocm"),
    ],
)
def test_other_gpus_get_blocked_and_naming_it_there_is_refused(version, capability, message, monkeypatch):
    device = types.SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(platform, "get_backend", lambda: types.SimpleNamespace(platform_version=version))
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    q = jnp.zeros((1, 256, 1, 64))
    with jax.sharding.use_abstract_mesh(abstract_mesh("gpu", "an old one")):
        assert attention(q, q, q, SPANS, implementation="auto").shape == q.shape  # by "blocked"
        with pytest.raises(ValueError, match=f"{message}; model.attention='blocked' runs anywhere"):
            attention(q, q, q, SPANS, implementation="gpu")


def test_naming_it_on_a_cpu_is_refused():
    q = jnp.zeros((1, 256, 1, 64))
    with pytest.raises(ValueError, match=r"runs on NVIDIA GPUs, not on cpu; model.attention='blocked' runs any"):
        attention(q, q, q, SPANS, implementation="gpu")


@pytest.mark.parametrize(
    ("channels", "dtypes", "message"),
    [
        (136, ("bfloat16", "bfloat16"), "heads of at most 128 channels, not 136"),
        (64, ("float64", "float64"), "float32, bfloat16, float16, not float64"),
        (64, ("bfloat16", "float32"), "one dtype of .*, not bfloat16, float32 and float32"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_one_that_takes_it(channels, dtypes, message):
    q, k = (np.zeros((1, 256, 1, channels), jnp.dtype(d)) for d in dtypes)
    with pytest.raises(ValueError, match=f"{message}.*model.attention='blocked' takes these"):
        gpu.gpu_span_attention(q, k, k, *SPANS)


def test_channels_that_are_no_power_of_two_change_nothing():
    spans = layout_spans(["ragged packed documents"])
    q, k, v, weight = random_arrays(4, (1, LENGTH, 1, 20))
    expected = gradients(lambda *qkv: reference(*qkv, *spans), q, k, v, weight)
    assert_close(
        gradients(lambda *qkv: gpu.gpu_span_attention(*qkv, *spans, interpret=True), q, k, v, weight), expected
    )


def kernels_in(program):
    """The names of the Triton kernels, in the order of the program."""
    calls = [line for line in program.splitlines() if "@__gpu$xla.gpu.triton" in line]
    return [line.split('name = "')[-1].split('"')[0] for line in calls]
