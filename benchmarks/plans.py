"""Plans of the paper's sizes, compiled for TPUs that are not there: writes docs/plans.md.

    python benchmarks/plans.py --output docs/plans.md

Each plan takes libtpu about a minute on two cores. Those that are done are kept in a folder (--keep), so that
a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZES = ("0.16b", "0.37b", "0.76b", "1.4b", "7b")
TOPOLOGIES = ("v5e:16x16", "v5p:4x4x4", "v6e:16x16")
CONFIG = Path(__file__).parents[1] / "configs/paper.py"
GIB = 2**30
HEAD = """# Plans

What the paper's five sizes take at 2M elements per step, on machines that nobody has run them on. Written by

```
{command}
```

`transfusion plan --config configs/paper.py:7b --topology v5e:16x16` prints one of these in full; [plan.md](plan.md)
says what the numbers mean. The step is compiled by libtpu; times are rooflines: no step is faster, real ones are
slower. "formulas" is what `--analytic` says of the same.
"""


def main() -> None:
    """Plans and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the page")
    parser.add_argument("--keep", type=Path, default=Path("runs/plans"), help="(default: %(default)s)")
    arguments = parser.parse_args()
    arguments.keep.mkdir(parents=True, exist_ok=True)
    sections = []
    for topology in TOPOLOGIES:
        pairs = []
        for size in SIZES:
            print(f"{size} on {topology}", flush=True)
            pairs.append((plan(size, topology, arguments.keep), plan(size, topology, arguments.keep, "--analytic")))
        sections.append(section(topology, pairs))
    command = f"python benchmarks/plans.py --output {arguments.output}"
    arguments.output.write_text("\n".join([HEAD.format(command=command), *sections]))


def plan(size: str, topology: str, keep: Path, *options: str) -> dict[str, Any]:
    """One plan, by the command that a user would type."""
    name = "-".join(["paper", size, topology.replace(":", "-"), *(o.strip("-") for o in options)])
    kept = keep / f"{name}.json"
    if not kept.exists():
        command = [sys.executable, "-m", "transfusion_jax.cli", "plan", "--config", f"{CONFIG}:{size}"]
        command += ["--topology", topology, "--json", *options]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        kept.write_text(done.stdout)
    result: dict[str, Any] = json.loads(kept.read_text())
    return result


def section(topology: str, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    """One machine's table."""
    first = pairs[0][0]["topology"]
    has = first["chip"]["memory"] / GIB
    lines = [f"## {topology}", "", f"{first['chips']} chips of {has:.2f} GiB on {first['hosts']} hosts.", ""]
    columns = ["size", "mesh", "GiB per chip (formulas)", "PFLOP per step, of the formula", "sent per chip"]
    columns += ["least step (formulas)", "bound by", "MFU at most", "elements/s at most", "checkpoint, written in"]
    columns += ["whole run at least"]
    lines += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(row(compiled, formulas)) + " |" for compiled, formulas in pairs]
    lines += [
        "",
        f"The formulas are off by {errors(pairs, memory)} in memory and by {errors(pairs, step)} in time.",
    ]
    return "\n".join([*lines, ""])


def errors(pairs: list[tuple[dict[str, Any], dict[str, Any]]], of: Callable[[dict[str, Any]], float]) -> str:
    """The range of a quantity's errors by formulas, over the plans that fit."""
    found = [of(formulas) / of(compiled) - 1 for compiled, formulas in pairs if compiled["fits"]]
    return f"{min(found):+.0%} to {max(found):+.0%}"


def memory(plan: dict[str, Any]) -> float:
    """Bytes of a chip."""
    return float(plan["bytes_per_chip"]["total"])


def step(plan: dict[str, Any]) -> float:
    """The least seconds of a step."""
    return float(plan["seconds_per_step"]["roofline"])


def row(compiled: dict[str, Any], formulas: dict[str, Any]) -> list[str]:
    """One size."""
    flops, seconds = compiled["flops_per_step"], compiled["seconds_per_step"]
    saved, run = compiled["checkpoint"], compiled["run"]
    used, said = memory(compiled) / GIB, memory(formulas) / GIB
    mesh = " × ".join(f"{axis} {n}" for axis, n in compiled["mesh"].items() if n > 1)
    room = f"{used:.2f} ({said:.2f})" if compiled["fits"] else f"does not fit ({said:.2f})"
    return [
        compiled["config"].removeprefix("paper-"),
        mesh,
        room,
        f"{flops['counted'] / 1e15:.1f}, {flops['counted_over_formula']:.1%}" if compiled["fits"] else "",
        f"{sum(c['bytes'] for c in compiled['collectives']) / 1e9:.1f} GB",
        f"{step(compiled):.3f} s ({step(formulas):.3f})",
        seconds["bound"],
        f"{compiled['mfu']:.0%}",
        f"{compiled['elements_per_second'] / 1e6:.2f}M",
        f"{saved['bytes'] / 1e9:.1f} GB, {saved['write_seconds']:.1f} s",
        f"{run['days']:.2f} days, {run['chip_hours']:,.0f} chip-hours",
    ]


if __name__ == "__main__":
    main()
