"""Where the training step's time goes on CPU: its parts, each timed alone, beside the whole.

    python benchmarks/parts.py

The parts are those of the step that benchmarks/step.py times. Together they are a floor: the same library's time
for the same products, attention and update, with nothing in between. What the whole takes beyond it is spent on
norms, activations, rotary embeddings, residuals that go to memory and come back, and on cores that wait.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

import harness
from training import config_of, make_batch, our_step, shape_flags, title_of
from transfusion_jax.config import Config
from transfusion_jax.data.batch import Batch
from transfusion_jax.kernels.cross_entropy import cross_entropy
from transfusion_jax.model.attention import attention
from transfusion_jax.parallel.mesh import make_mesh
from transfusion_jax.tasks.transfusion import TransfusionTask
from transfusion_jax.training.step.state import RunContext, create_state, optimizer_of

WHOLE = "the step"


def main() -> None:
    """Measures and prints."""
    flags = harness.parser(__doc__, plot=True)
    shape_flags(flags)
    args = flags.parse_args()
    config = config_of(args)
    batch = make_batch(config)
    whole, work = our_step(config, batch)
    parts = {"products": products(config), "attention": attentions(config, batch)}
    parts |= {"text head": text_head(config), "update": update(config)}
    report = harness.compare(
        title_of(config),
        {WHOLE: whole, **parts},
        reference=WHOLE,
        rounds=args.rounds,
        work={WHOLE: work},
        peak=harness.matmul_peak({}),
    )
    result = dataclasses.asdict(report) | {"floor": floor(report)}
    harness.deliver(result, table(report), args.json, args.plot, [report])


def products(config: Config) -> Callable[[], None]:
    """Every product of the trunk, with both of its gradients, in the shapes that the step has."""
    model, elements = config.model, config.batch_rows * config.data.context_length
    queries, keys, wide = ((model.width, n) for n in (model.query_width, model.key_width, model.mlp_width))
    shapes = [queries, keys, keys, queries[::-1], wide, wide, wide[::-1]]

    @jax.jit
    def product(x: jax.Array, weight: jax.Array, d_out: jax.Array) -> tuple[jax.Array, ...]:
        return x @ weight, d_out @ weight.T, x.T @ d_out

    arguments = [(normal(elements, i), normal(i, o), normal(elements, o)) for i, o in shapes]

    def run() -> None:
        for _ in range(model.layers):
            jax.block_until_ready([product(*matrices) for matrices in arguments])

    return run


def attentions(config: Config, batch: Batch) -> Callable[[], None]:
    """Attention of every layer with its gradients."""
    model = config.model
    rows, few = (config.batch_rows, config.data.context_length), model.key_value_heads
    q, k, v, weight = (normal(*rows, n, model.head_channels) for n in (model.heads, few, few, model.heads))

    @jax.jit
    def gradients(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, ...]:
        return jax.grad(lambda q, k, v: jnp.sum(attention(q, k, v, batch.spans) * weight), (0, 1, 2))(q, k, v)

    def run() -> None:
        for _ in range(model.layers):
            jax.block_until_ready(gradients(q, k, v))

    return run


def text_head(config: Config) -> Callable[[], None]:
    """The text head's cross-entropy on as many elements as bear it, with its gradients."""
    model, rows = config.model, config.batch_rows
    hidden = normal(rows, config.data.text_capacity, model.width)
    head = normal(model.width, model.padded_vocabulary)
    targets = jnp.zeros(hidden.shape[:2], jnp.int32)

    @jax.jit
    def gradients(hidden: jax.Array, head: jax.Array) -> tuple[jax.Array, ...]:
        return jax.grad(lambda h, w: jnp.sum(cross_entropy(h, w, targets, model.vocabulary)[0]), (0, 1))(
            hidden, head
        )

    def run() -> None:
        jax.block_until_ready(gradients(hidden, head))

    return run


def update(config: Config) -> Callable[[], None]:
    """Clipping and AdamW on all parameters, in place."""
    task, mesh = TransfusionTask(config), make_mesh(config.mesh, jax.devices()[:1])
    optimizer, state = optimizer_of(task, config), create_state(RunContext(task, config, mesh))
    params, moments = state.params, state.optimizer
    gradients = jax.tree.map(jnp.ones_like, params)

    def new(params, moments, gradients):  # type: ignore[no-untyped-def]
        updates, moments = optimizer.update(gradients, moments, params)
        return jax.tree.map(lambda p, u: p - 1e-4 * u, params, updates), moments

    compiled = jax.jit(new, donate_argnums=(0, 1))

    def run() -> None:
        nonlocal params, moments
        params, moments = jax.block_until_ready(compiled(params, moments, gradients))

    return run


def normal(*shape: int) -> jax.Array:
    """Random content; which does not matter."""
    return jax.random.normal(jax.random.key(math.prod(shape)), shape)


def floor(report: harness.Report) -> float:
    """Seconds of all parts."""
    return sum(timing.median for name, timing in report.timings.items() if name != WHOLE)


def table(report: harness.Report) -> str:
    """The parts for reading."""
    whole, parts = report.timings[WHOLE], floor(report)
    assert whole.rate is not None
    assert report.peak is not None
    rows = [["", "seconds", "of the step"]]
    for name, seconds in [(n, t.median) for n, t in report.timings.items()] + [("all parts: the floor", parts)]:
        rows.append([name, f"{seconds:.3f}", f"{seconds / whole.median:.0%}"])
    reached = whole.rate * whole.median / parts / report.peak.flops
    return "\n".join(
        [
            f"{report.title} ({report.rounds} rounds)",
            *harness.align(rows),
            f"of the peak, the step reaches {whole.peak_share:.0%}, the floor {reached:.0%}",
            *harness.footer(report),
        ]
    )


if __name__ == "__main__":
    main()
