"""Span attention, forward and backward, on rows of the paper's mixture: time, memory, and how both grow with T.

    python benchmarks/attention.py [--lengths 1024,4096,16384] [--heads 2] [--kv-heads 1] [--kinds captions,text]

"reference" is dense: a `[T, T]` mask and all scores. PyTorch's `scaled_dot_product_attention` gets the same mask.
With fewer heads of keys than of queries each implementation is also given them repeated, repetition included.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import harness
from blocks import kinds, of_length, row_spans
from transfusion_jax.kernels.spans import Spans, dense_mask
from transfusion_jax.model.attention import attention

HEAD_DIM = 64

Points = dict[str, list[tuple[float, float]]]  # length and value, by implementation


@dataclass(frozen=True)
class Heads:
    """How many there are, of keys and values as many or fewer."""

    queries: int
    keys: int

    def __str__(self) -> str:
        return f"{self.queries} heads" + (f" to {self.keys}" if self.keys < self.queries else "")


@dataclass(frozen=True)
class Contestant:
    """One way to compute attention and its gradients."""

    run: Callable[[], object]
    memory: int | None  # bytes beside the arguments and results, where the compiler says


def main() -> None:
    """Measures and prints a table for each kind of rows and length."""
    flags = harness.parser(__doc__, plot=True)
    flags.add_argument("--lengths", default="1024,4096,16384", help="of a row, elements (default: %(default)s)")
    flags.add_argument("--kinds", default="mixture,captions,text", help="of rows (default: %(default)s)")
    flags.add_argument("--heads", type=int, default=2, help=f"of {HEAD_DIM} channels (default: %(default)s)")
    flags.add_argument("--kv-heads", type=int, help="of keys and values, each shared by a group (default: --heads)")
    flags.add_argument(
        "--implementations", default="blocked,reference", help="of model.attention (default: %(default)s)"
    )
    arguments = flags.parse_args()
    heads = Heads(arguments.heads, arguments.kv_heads or arguments.heads)
    if heads.queries % heads.keys:
        flags.error(f"--kv-heads {heads.keys} must divide --heads {heads.queries}")
    reports, texts, panels = {}, [], []
    for kind in arguments.kinds.split(","):
        times: Points = defaultdict(list)
        sizes: Points = defaultdict(list)
        for length in map(int, arguments.lengths.split(",")):
            spans = row_spans(of_length(kinds()[kind], length), rows=1)
            names = arguments.implementations.split(",")
            contestants = {name: ours(name, spans, heads) for name in names}
            if heads.keys < heads.queries:
                contestants |= {f"{name}, keys repeated": ours(name, spans, heads, True) for name in names}
            contestants["PyTorch SDPA"] = theirs(spans, heads)
            memory = {name: c.memory for name, c in contestants.items() if c.memory is not None}
            report = harness.compare(
                f"a row of {length:,} elements, {kind}, {heads} of {HEAD_DIM}",
                {name: c.run for name, c in contestants.items()},
                reference=names[-1],
                rounds=arguments.rounds,
                notes=[f"memory of {name}: {size / 2**20:,.1f} MiB" for name, size in memory.items()],
            )
            reports[f"{kind} {length}"] = {**dataclasses.asdict(report), "memory": memory}
            texts.append(harness.table(report))
            for name, timing in report.timings.items():
                times[name].append((length, timing.median))
            for name, size in memory.items():
                sizes[name].append((length, size / 2**20))
        panels += lines(kind, times, sizes)
    harness.deliver(reports, "\n\n".join(texts), arguments.json, arguments.plot, panels)


def lines(kind: str, times: Points, sizes: Points) -> list[harness.Lines]:
    """Time and memory for looking at; memory only where the compiler says it."""
    panels = [harness.Lines(f"{kind}: time, forward and backward", "T, elements of a row", "seconds", times)]
    if sizes:
        panels.append(harness.Lines(f"{kind}: memory", "T, elements of a row", "temporary memory, MiB", sizes))
    return panels


def ours(name: str, spans: Spans, heads: Heads, repeated: bool = False) -> Contestant:
    """An implementation of `attention`, which may get each head of keys and values once for each query's."""
    group = heads.queries // heads.keys if repeated else 1
    q, k, v, weight = map(jnp.asarray, arrays(spans, heads))
    start, end = (jnp.asarray(x) for x in spans)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
        if group > 1:
            k, v = (jnp.repeat(x, group, 2) for x in (k, v))
        return jnp.sum(attention(q, k, v, Spans(start, end), implementation=name) * weight)

    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, v, start, end).compile()
    memory = compiled.memory_analysis()
    size = memory.temp_size_in_bytes if memory else None
    return Contestant(lambda: jax.block_until_ready(compiled(q, k, v, start, end)), size)


def theirs(spans: Spans, heads: Heads) -> Contestant:
    """PyTorch on the CPU."""
    q, k, v, weight = (torch.tensor(x.swapaxes(1, 2), requires_grad=True) for x in arrays(spans, heads))
    mask = torch.tensor(np.asarray(dense_mask(*spans, np.shape(spans.start)[1])))[:, None]

    def run() -> Any:
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, enable_gqa=heads.keys < heads.queries
        )
        return torch.autograd.grad(out, (q, k, v), weight)

    return Contestant(run, None)


def arrays(spans: Spans, heads: Heads) -> list[np.ndarray]:
    """Queries, keys, values and the output's gradient, `[1, T, heads, HEAD_DIM]` float32."""
    random, length = np.random.default_rng(0), np.shape(spans.start)[1]
    counts = heads.queries, heads.keys, heads.keys, heads.queries
    return [random.standard_normal((1, length, n, HEAD_DIM), dtype=np.float32) for n in counts]


if __name__ == "__main__":
    main()
