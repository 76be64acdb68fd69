"""A plan for reading."""

from __future__ import annotations

import math

from transfusion_jax.planning.plan import HOST_RATE, Plan, overrides
from transfusion_jax.planning.search import Found


def table(plan: Plan) -> str:
    """Everything of a plan, in lines."""
    return "\n".join(
        [*_head(plan), *_memory(plan), *_operations(plan), *_exchanges(plan), *_time(plan), *_run(plan)]
    )


def ranking(found: Found, most: int = 10) -> str:
    """What a search found: the best, those that do not fit, and the plan of the fastest."""
    lines = [f"{len(found.ranked)} ways fit and {len(found.rejected)} do not, estimated by formulas; the fastest:"]
    for c in found.ranked[:most]:
        lines.append(f"  {c.label:<58} {c.seconds:>8.3f} s  {c.bytes / 2**30:>6.1f} GiB")
    if found.rejected:
        lines.append("that do not fit, the smallest:")
        lines += [f"  {c.label:<58} {c.why_not}" for c in found.rejected[:most]]
    for plan in found.plans:
        mesh = " ".join(f"{axis}={n}" for axis, n in plan.mesh.items() if n > 1)
        result = plan.too_large or f"{plan.step:.3f} s, {sum(plan.memory.values()) / 2**30:.1f} GiB"
        policy = f"{plan.config.accumulation} part(s), remat {plan.config.model.remat}"
        lines.append(f"{plan.method}: {mesh}, {policy}: {result}")
    if found.plans and found.plans[0].fits:
        lines += ["", table(found.plans[0])]
    return "\n".join(lines)


def _head(plan: Plan) -> list[str]:
    config, c = plan.config, plan.contents
    mesh = " × ".join(f"{axis} {n}" for axis, n in plan.mesh.items() if n > 1) or "one chip"
    rows = config.batch_rows / config.accumulation / (plan.mesh["data"] * plan.mesh["fsdp"])
    parts = f" in {config.accumulation} parts" if config.accumulation > 1 else ""
    how = plan.method + (f" in {plan.seconds:.0f} s" if plan.seconds else "")
    return [
        f"{config.name} on {plan.topology.describe()}",
        f"mesh {mesh}; {config.batch_rows} rows{parts}, {rows:g} per device at a time; remat {config.model.remat}",
        how,
        f"a row of synthetic captions and texts: {c.elements:,.0f} elements, {c.text_losses:,.0f} text losses, "
        f"{c.images:.1f} images",
        "",
    ]


def _memory(plan: Plan) -> list[str]:
    has = plan.topology.chip.memory
    lines = [f"{'bytes per chip':<28}"]
    lines += [_line(kind, size / 2**30, "GiB") for kind, size in plan.memory.items() if size]
    total = sum(plan.memory.values())
    share = f"{total / has:.0%} of {has / 2**30:.2f} GiB"
    if plan.too_large:
        return [*lines, _line("together", total / 2**30, "GiB"), f"DOES NOT FIT: {plan.too_large}", ""]
    return [*lines, _line("together", total / 2**30, "GiB", share), ""]


def _operations(plan: Plan) -> list[str]:
    f = plan.formula
    lines = ["FLOPs per step"]
    lines += [_line("of the model", f.model / 1e15, "PFLOP", "what MFU counts")]
    lines += [_line("on padding of static shapes", f.padding / 1e15, "PFLOP")]
    lines += [_line("computed again", f.recomputed / 1e15, "PFLOP", f"remat {plan.config.model.remat}, text head")]
    lines += [_line("together, by formula", f.total / 1e15, "PFLOP")]
    if plan.counted:
        ratio = f"{plan.counted / f.total:.1%} of the formula; attention in whole blocks"
        lines.append(_line("counted in the program", plan.counted / 1e15, "PFLOP", ratio))
    return [*lines, ""]


def _exchanges(plan: Plan) -> list[str]:
    lines = ["bytes that a chip sends per step"]
    for c in plan.collectives:
        if c.bytes >= 1e6:
            about = f"{c.dtype}, {c.times:,}x among {c.group}" + (", overlapping" if c.overlaps else "")
            lines.append(_line(f"{'×'.join(c.axes)} {c.kind}", c.bytes / 1e9, "GB", about))
    return [*(lines if len(lines) > 1 else [f"{lines[0]}: none"]), ""]


def _time(plan: Plan) -> list[str]:
    t = plan.terms
    named = [
        ("compute", t.compute, ""),
        ("HBM", t.memory, ""),
        ("core: each instruction's longer", t.core, ""),
        ("interconnect, overlapping", t.overlapped, "beside the core"),
        ("interconnect, waited for", t.exposed, ""),
        ("network between slices or nodes", t.network, "waited for"),
    ]
    lines = ["seconds per step, each at its peak rate"]
    lines += [_line(name, seconds, "s", about) for name, seconds, about in named if seconds or name == "compute"]
    lines.append(_line("the least step", plan.step, "s", f"bound by {t.bound}"))
    lines.append(_line("MFU, at most", 100 * plan.mfu, "%"))
    lines.append(_line("elements per second, at most", plan.elements_per_second / 1e6, "M"))
    lines += [f"of {len(plan.open_loops)} loops only a run knows the length: counted once"] * bool(plan.open_loops)
    return [*lines, ""]


def _run(plan: Plan) -> list[str]:
    run, saved = plan.to_dict()["run"], plan.checkpoint
    rate = saved.bytes_per_host / saved.write_seconds if saved.write_seconds else HOST_RATE
    return [
        "the run",
        _line("checkpoint", saved.bytes / 1e9, "GB", f"{saved.bytes_per_host / 1e9:.1f} GB per host"),
        _line("saving: the step waits", saved.stall_seconds, "s", "device to host at 8 GB/s per chip"),
        _line("saving: until it is written", saved.write_seconds, "s", f"{rate / 1e9:g} GB/s per host"),
        _line(
            f"{plan.config.steps:,} steps, at least", run["days"], "days", f"{run['chip_hours']:,.0f} chip-hours"
        ),
        "",
        "to run it: " + " ".join(overrides(plan.config, plan.mesh)),
    ]


def _line(name: str, value: float, unit: str, about: str = "") -> str:
    digits = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"  {name:<34} {value:>12,.{min(digits, 6)}f} {unit:<6} {about}".rstrip()
