"""A plan for reading."""

from __future__ import annotations

from transfusion_jax.parallel.mesh import unsplit_heads
from transfusion_jax.planning.plan import DEVICE_TO_HOST, TEMPORARY, Plan, overrides
from transfusion_jax.planning.search import MARGIN, SearchResult


def plan_table(plan: Plan) -> str:
    """Everything of a plan, in lines."""
    return "\n".join(
        [*_head(plan), *_memory(plan), *_operations(plan), *_exchanges(plan), *_time(plan), *_run(plan)]
    )


def ranking(found: SearchResult, most: int = 10) -> str:
    """What a search found: the best, those that do not fit, and the plan of the fastest."""
    lines = [f"by formulas, {len(found.ranked)} ways to run it fit; the fastest:"]
    for c in found.ranked[:most]:
        lines.append(f"  {c.label:<58} {_si(c.seconds, 's'):>9}  {_bytes(c.bytes):>10}")
    if found.rejected:
        lines.append(f"{len(found.rejected)} need more than {MARGIN:.0%} of a chip's memory; the fastest of them:")
        lines += [f"  {c.label:<58} {_si(c.seconds, 's'):>9}  {c.why_not}" for c in found.rejected[:most]]
    if found.uneven:
        lines.append(f"{sum(found.uneven.values())} split something unevenly:")
        lines += [f"  {n}x {why}" for why, n in sorted(found.uneven.items(), key=lambda e: -e[1])[:3]]
    lines.append("planned:")
    for plan in found.plans:
        mesh = " ".join(f"{axis}={n}" for axis, n in plan.mesh.items() if n > 1)
        result = plan.too_large or f"{plan.step:.3f} s, {sum(plan.memory.values()) / 2**30:.1f} GiB"
        policy = f"{plan.config.accumulation} part(s), remat {plan.config.model.remat}"
        lines.append(f"  {mesh or 'one chip'}, {policy}: {result} ({plan.method})")
    if found.plans and found.plans[0].fits:
        lines += ["", plan_table(found.plans[0])]
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
        *unsplit_heads(plan.mesh["tensor"], config),
        how,
        f"a row of synthetic captions and texts: {c.elements:,.0f} elements, {c.text_losses:,.0f} text losses, "
        f"{c.images:.1f} images",
        "",
    ]


def _memory(plan: Plan) -> list[str]:
    has, total = plan.topology.chip.memory, sum(plan.memory.values())
    lines = ["memory of a chip"]
    for kind, size in plan.memory.items():
        lines += [_line(kind, _bytes(size))] if size else []
        if kind == TEMPORARY and plan.evaluation:
            lines.append(_line("  in an evaluation", _bytes(plan.evaluation)))
    if plan.too_large:
        return [*lines, _line("together", _bytes(total)), f"DOES NOT FIT: {plan.too_large}", ""]
    return [*lines, _line("together", _bytes(total), f"{total / has:.0%} of {_bytes(has)}"), ""]


def _operations(plan: Plan) -> list[str]:
    f = plan.formula
    again = f"remat {plan.config.model.remat}, text head, attention"
    lines = ["operations of a step, over all chips"]
    lines += [_line("of the model", _si(f.model, "FLOP"), "what MFU counts")]
    lines += [_line("on padding of static shapes", _si(f.padding, "FLOP"))]
    lines += [_line("computed again", _si(f.recomputed, "FLOP"), again)]
    lines += [_line("together, by formula", _si(f.total, "FLOP"))]
    if plan.counted:
        ratio = f"{plan.counted / f.total:.1%} of the formula; attention in whole blocks"
        lines.append(_line("counted in the program", _si(plan.counted, "FLOP"), ratio))
    return [*lines, ""]


def _exchanges(plan: Plan) -> list[str]:
    """What is less than a thousandth of the most is left out."""
    if not plan.collectives:
        return ["a chip sends nothing", ""]
    lines = ["a chip sends in a step"]
    for c in plan.collectives:
        if c.bytes >= plan.collectives[0].bytes / 1000:
            about = f"{c.dtype}, {c.times:,} among {c.group}" + (", beside other work" if c.overlaps else "")
            lines.append(_line(f"{'×'.join(c.axes)}: {c.kind}", _si(c.bytes, "B"), about))
    return [*lines, ""]


def _time(plan: Plan) -> list[str]:
    t = plan.terms
    named = [
        ("compute", t.compute, ""),
        ("HBM", t.memory, ""),
        ("core: each instruction's longer", t.core, ""),
        ("interconnect, overlapping", t.overlapped, "beside the core"),
        ("interconnect, waited for", t.exposed, ""),
        ("network of slices or nodes", t.network, "waited for"),
    ]
    lines = ["time of a step, each term at its peak rate"]
    lines += [_line(name, _si(seconds, "s"), about) for name, seconds, about in named if seconds]
    lines.append(_line("the least step", _si(plan.step, "s"), f"most of it: {t.bound}"))
    lines.append(_line("MFU, at most", f"{plan.mfu:.1%}"))
    lines.append(_line("elements per second, at most", f"{plan.elements_per_second:,.0f}"))
    if plan.open_loops:
        lines.append(f"{len(plan.open_loops)} loops whose length only a run knows are counted once")
    return [*lines, ""]


def _run(plan: Plan) -> list[str]:
    run, saved = plan.to_dict()["run"], plan.checkpoint
    rate = f"{_si(saved.bytes_per_host / saved.write_seconds, 'B/s')} per host"
    return [
        "the run",
        _line("checkpoint", _si(saved.bytes, "B"), f"{_si(saved.bytes_per_host, 'B')} per host"),
        _line("saving: the step waits", _si(saved.stall_seconds, "s"), f"{_si(DEVICE_TO_HOST, 'B/s')} per chip"),
        _line("saving: until it is written", _si(saved.write_seconds, "s"), rate),
        _line(f"{plan.config.steps:,} steps, at least", f"{run['days']:,.2f} days"),
        _line("", f"{run['chip_hours']:,.0f} chip-hours"),
        "",
        "to run it: " + " ".join(overrides(plan.config, plan.mesh)),
    ]


def _line(name: str, value: str, about: str = "") -> str:
    return f"  {name:<34} {value:>18}  {about}".rstrip()


def _si(value: float, unit: str) -> str:
    """Three digits and a prefix."""
    steps = {18: "E", 15: "P", 12: "T", 9: "G", 6: "M", 3: "k", 0: "", -3: "m", -6: "µ", -9: "n"}
    power = next((p for p in steps if value >= 10.0**p), 0)
    return f"{value / 10.0**power:.3g} {steps[power]}{unit}"


def _bytes(value: float) -> str:
    """In units of 1,024, as memories are counted."""
    power = next((p for p in (3, 2, 1) if value >= 1024**p), 0)
    return f"{value / 1024**power:,.2f} {('B', 'KiB', 'MiB', 'GiB')[power]}"
