"""Attention and the training step on one NVIDIA GPU: `transfusion_jax` beside PyTorch's FlexAttention and cuDNN.

    pip install -r requirements/cuda.txt && pip install --no-deps -e .
    pip install torch --index-url https://download.pytorch.org/whl/cu130
    python benchmarks/gpu.py

It prints, in this order: how far the kernel's results in bfloat16 are from the reference's in float32; the time of
attention alone, forward and with its gradients, on rows of the paper's mixture; and the training step of the
paper's 0.76B model on rows of captioned images and text. PyTorch gets the same spans as a mask of blocks, and cuDNN
as a dense mask. With --tiny it runs on a CPU, in seconds, without FlexAttention's gradients, which a CPU does not
have; that shows that it runs, and nothing more.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

import harness
from blocks import CONFIG, kinds, of_length, row_spans
from harness import Peak, Report
from training import make_batch, make_config, our_step
from transfusion_jax.config import ModelConfig
from transfusion_jax.config import load as load_config
from transfusion_jax.kernels.attention.gpu import gpu_span_attention
from transfusion_jax.kernels.attention.reference import attention as dense_attention
from transfusion_jax.kernels.spans import dense_mask
from transfusion_jax.parallel.devices import describe_devices, peak_flops

FORWARD_AND_BACKWARD = 3.5  # products of attention: two forward, and five backward, which computes the scores again
DENSE: dict[str, Literal["cudnn", "xla"]] = {"cuda": "cudnn", "cpu": "xla"}
NAMES = {"cudnn": "cuDNN, dense mask", "xla": "XLA, dense mask", "flex": "FlexAttention", "sdpa": "PyTorch SDPA"}
MOST_ERROR = 0.03  # of the largest value; bfloat16 keeps eight bits

Span = tuple[jax.Array, jax.Array]  # starts and ends, [B, T]


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    device: str  # as PyTorch calls it
    pytorch: str  # its attention
    parity: tuple[int, int]  # rows and elements
    shapes: tuple[tuple[int, int], ...]  # rows and elements per row
    heads: tuple[tuple[int, int, int], ...]  # heads of queries, heads of keys, channels
    calls: int  # of attention in one timed iteration, so that starting it does not count
    model: ModelConfig
    step: tuple[int, int]  # rows and elements per row of the training step


@dataclass(frozen=True)
class Error:
    """The distance of a bfloat16 result from the float32 reference."""

    group: int  # heads of queries that share one of keys
    channels: int
    array: str
    largest: float  # difference
    relative: float  # to the largest value


def full() -> Setting:
    """For a GPU of 80 GB."""
    model = load_config(f"{CONFIG}:0.76b").model
    return Setting(
        device="cuda",
        pytorch="flex",
        parity=(1, 4096),
        shapes=((4, 4096), (1, 16384)),
        heads=((24, 24, 64), (16, 16, 128), (32, 8, 128)),
        calls=10,
        model=dataclasses.replace(model, compute_dtype="bfloat16", remat="none"),
        step=(2, 4096),
    )


def tiny() -> Setting:
    """For a test on a CPU."""
    model = dataclasses.replace(full().model, layers=1, width=32, heads=2, mlp_width=64, vocabulary=96)
    return Setting("cpu", "sdpa", (1, 512), ((1, 512),), ((1, 1, 64), (2, 1, 64)), 1, model, (1, 384))


def main(arguments: list[str] | None = None) -> None:
    """Checks, measures, and prints each part when it is known."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory, too
    options = parse(arguments)
    setting = tiny() if options.tiny else full()
    if options.rows:
        setting = dataclasses.replace(setting, step=(options.rows, setting.step[1]))
    if options.remat:
        setting = dataclasses.replace(setting, model=dataclasses.replace(setting.model, remat=options.remat))

    def show(text: str) -> None:
        if options.json != "-":
            print(text, end="\n\n", flush=True)

    errors = parity(setting)
    show(table(errors))
    if max(error.relative for error in errors) > MOST_ERROR:
        raise SystemExit(f"the kernel is wrong: an error above {MOST_ERROR:.0%} of the largest value")
    reports = []
    for report in measure(setting, options):
        show(harness.table(report))
        reports.append(report)
    result = {
        "errors": [dataclasses.asdict(e) for e in errors],
        "reports": [dataclasses.asdict(r) for r in reports],
    }
    harness.deliver(result, describe_devices(), options.json, options.plot, reports)


def measure(setting: Setting, options: argparse.Namespace) -> Iterator[Report]:
    """Attention in each shape, then the training step."""
    device = jax.devices()[0]
    value, source = peak_flops(device)
    peak = Peak(value, f"{source} for {device.device_kind}")
    for shape in setting.shapes:
        for heads in setting.heads:
            for backward in (False, True):
                yield time_attention(setting, shape, heads, backward, options, peak)
    yield time_step(setting, options, peak)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line, refused where this machine cannot do what it asks for."""
    parser = harness.parser(__doc__, plot=True)
    parser.add_argument("--rows", type=int, help="of the training step (default: 2, for 80 GB)")
    parser.add_argument("--remat", choices=("none", "dots", "full"), help="of our training step (default: none)")
    parser.add_argument("--without-torch", action="store_true", help="leave PyTorch out")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, on any machine")
    options = parser.parse_args(arguments)
    if not options.without_torch and importlib.util.find_spec("torch") is None:
        parser.error("PyTorch is not installed: install it as shown above, or pass --without-torch")
    if not options.tiny and jax.default_backend() != "gpu":
        parser.error(f"this machine has no GPU that JAX sees ({describe_devices()}): pass --tiny")
    return options


def parity(setting: Setting) -> list[Error]:
    """Our kernel in bfloat16 against the reference in float32, on the same values."""
    return [error for heads, keys, channels in setting.heads for error in _errors(setting, heads // keys, channels)]


def _errors(setting: Setting, group: int, channels: int) -> Iterator[Error]:
    spans, coarse = make_arrays(*setting.parity, 2 * group, 2, channels)
    exact = [x.astype(jnp.float32) for x in coarse]
    with jax.default_matmul_precision("highest"):
        expected = differentiated(lambda q, k, v: dense_attention(q, k, v, *spans))(*exact)
    actual = differentiated(ours(setting, spans))(*coarse)
    for array, a, b in zip(("out", "d_q", "d_k", "d_v"), actual, expected, strict=True):
        largest = float(jnp.max(jnp.abs(a.astype(jnp.float32) - b)))
        yield Error(group, channels, array, largest, largest / float(jnp.max(jnp.abs(b))))


def time_attention(
    setting: Setting,
    shape: tuple[int, int],
    heads: tuple[int, int, int],
    backward: bool,
    options: argparse.Namespace,
    peak: Peak,
) -> Report:
    """Attention alone, forward or with its gradients."""
    spans, arrays = make_arrays(*shape, *heads)
    reference = NAMES[DENSE[setting.device]]
    contestants = {
        "transfusion_jax": repeated(setting, ours(setting, spans), arrays, backward),
        reference: repeated(setting, dense(setting, spans), arrays, backward),
    }
    if not options.without_torch:
        import pytorch_attention  # not above: PyTorch may be left out

        numbers = [np.asarray(x) for x in spans], [np.asarray(x.astype(jnp.float32)) for x in arrays]
        reference = NAMES[setting.pytorch]
        contestants[reference] = pytorch_attention.repeated(
            setting.pytorch, setting.device, *numbers, setting.calls, backward
        )
    start, end = spans
    products = 4.0 * heads[0] * heads[2] * float((end - start).sum())
    work = products * setting.calls * (FORWARD_AND_BACKWARD if backward else 1)
    passes = "forward and backward" if backward else "forward"
    sizes = f"{shape[0]} × {shape[1]:,} elements, {named(*heads[:2])} × {heads[2]}"
    return harness.compare(
        f"attention, {passes}, {setting.calls} times: {sizes}",
        contestants,
        reference=reference,
        rounds=options.rounds,
        work=dict.fromkeys(contestants, work),
        peak=peak,
        notes=["FLOP/s count what spans hold, and no pair that a mask takes away"],
    )


def time_step(setting: Setting, options: argparse.Namespace, peak: Peak) -> Report:
    """The training step."""
    rows, elements = setting.step
    config = make_config(setting.model, rows, elements)
    batch = make_batch(config)
    ours, work = our_step(config, batch)
    reference = "transfusion_jax"
    contestants: dict[str, Callable[[], object]] = {reference: ours}
    if not options.without_torch:
        import pytorch_step  # not above: PyTorch may be left out

        reference = f"PyTorch, {setting.pytorch}"
        contestants[reference] = pytorch_step.make_step(
            config, batch, setting.pytorch, setting.device, compiled=setting.device == "cuda"
        )
    report = harness.compare(
        f"training step, {rows} × {elements:,} elements, rematerialisation {setting.model.remat!r}",
        contestants,
        reference=reference,
        rounds=options.rounds,
        work=dict.fromkeys(contestants, work),
        peak=peak,
    )
    rates = [f"{name}: {rows * elements / t.median:,.0f} elements/s" for name, t in report.timings.items()]
    return dataclasses.replace(report, notes=[*rates, "of peak is MFU: operations of the model, none recomputed"])


def named(heads: int, keys: int) -> str:
    """Heads of queries, and of keys where these are fewer."""
    return str(heads) if heads == keys else f"{heads} to {keys}"


def make_arrays(rows: int, elements: int, heads: int, shared: int, channels: int) -> tuple[Span, list[jax.Array]]:
    """Spans of rows of the paper's mixture; random q, k, v and the gradient of the output, in bfloat16.

    Of k and v there are `shared` heads.
    """
    start, end = map(jnp.asarray, row_spans(of_length(kinds()["mixture"], elements), rows))
    keys = jax.random.split(jax.random.key(0), 4)
    sizes = zip(keys, (heads, shared, shared, heads), strict=True)
    return (start, end), [jax.random.normal(key, (rows, elements, n, channels), jnp.bfloat16) for key, n in sizes]


def ours(setting: Setting, spans: Span) -> Callable[..., jax.Array]:
    """The kernel, interpreted where there is no GPU."""
    return lambda q, k, v: gpu_span_attention(q, k, v, *spans, interpret=setting.device == "cpu")


def dense(setting: Setting, spans: Span) -> Callable[..., jax.Array]:
    """cuDNN with a dense mask; XLA where there is no GPU."""
    mask = dense_mask(*spans, spans[0].shape[1])[:, None]
    return lambda q, k, v: jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=DENSE[setting.device])


def differentiated(attend: Callable[..., jax.Array]) -> Callable[..., tuple]:
    """The output and the gradients for q, k and v, from these and the output's gradient."""

    @jax.jit
    def run(q: jax.Array, k: jax.Array, v: jax.Array, d_out: jax.Array) -> tuple:
        out, gradient = jax.vjp(attend, q, k, v)
        return out, *gradient(d_out)

    return run


def repeated(
    setting: Setting, attend: Callable[..., jax.Array], arrays: list[jax.Array], backward: bool
) -> Callable[[], None]:
    """One timed iteration in JAX."""
    run = differentiated(attend) if backward else jax.jit(lambda q, k, v, d_out: attend(q, k, v))

    def iterate() -> None:
        for _ in range(setting.calls):
            result = run(*arrays)
        jax.block_until_ready(result)

    return iterate


def table(errors: list[Error]) -> str:
    """The errors for reading."""
    rows = [["group", "channels", "array", "largest error", "of the largest value"]]
    rows += [[str(e.group), str(e.channels), e.array, f"{e.largest:.2e}", f"{e.relative:.2%}"] for e in errors]
    return "\n".join(["the kernel in bfloat16 against the reference in float32", *harness.align(rows)])


if __name__ == "__main__":
    main()
