"""How long the training step takes to trace and compile, and how large its program is, by the number of layers.

python benchmarks/compile.py
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import jax

import harness
from training import compile_step, make_config, of_size

LAYERS = (2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Program:
    """One compiled step."""

    layers: int
    seconds: float
    instructions: int  # lines of the compiled program's text


def main() -> None:
    """Compiles and prints."""
    flags = harness.parser(__doc__, timed=False, plot=True)
    flags.add_argument("--width", type=int, default=256, help="a multiple of 64 (default: %(default)s)")
    arguments = flags.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    compile_step(make_config(of_size(64, 1), 1, 384))  # the first of a process takes longer
    programs = [measure(layers, arguments.width) for layers in LAYERS]
    rows = [["layers", "seconds", "instructions"]]
    rows += [[str(p.layers), f"{p.seconds:.1f}", f"{p.instructions:,}"] for p in programs]
    result = {"width": arguments.width, "programs": [dataclasses.asdict(p) for p in programs]}
    harness.deliver(result, "\n".join(harness.align(rows)), arguments.json, arguments.plot, lines(programs))


def measure(layers: int, width: int) -> Program:
    """The step of so many layers."""
    seconds, compiled = compile_step(make_config(of_size(width, layers), 2, 768))
    return Program(layers, seconds, len((compiled.as_text() or "").splitlines()))


def lines(programs: list[Program]) -> list[harness.Lines]:
    """The programs for looking at."""
    seconds = {"training step": [(p.layers, p.seconds) for p in programs]}
    instructions = {"training step": [(p.layers, p.instructions) for p in programs]}
    return [
        harness.Lines("time to trace and compile", "layers", "seconds", seconds, linear=True),
        harness.Lines("size of the program", "layers", "instructions", instructions, linear=True),
    ]


if __name__ == "__main__":
    main()
