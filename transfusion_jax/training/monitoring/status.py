"""How a run is, told from its workdir alone, while it trains or afterwards; `transfusion doctor` says it."""

from __future__ import annotations

import dataclasses
import math
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from transfusion_jax.config import Run
from transfusion_jax.storage.lock import has_ended, this_machine
from transfusion_jax.training.checkpoint.errors import DamagedCheckpoint
from transfusion_jax.training.checkpoint.reader import SIZES, CheckpointReader
from transfusion_jax.training.monitoring import bad_steps, goodput
from transfusion_jax.training.monitoring.goodput import Attempt
from transfusion_jax.training.monitoring.heartbeat import Heartbeat, read_heartbeat
from transfusion_jax.training.monitoring.metrics import duration
from transfusion_jax.training.monitoring.telemetry import DOING
from transfusion_jax.training.run_dir import DAMAGED, Workdir

LOCKS = Path("/proc/locks")
SILENT = 300.0  # seconds without a heartbeat of another machine's run: file systems of networks may show it late
SLOWER = 20  # times the pace so far, after which a step that has not ended is remarked on,
NOTICED = 60.0  # seconds, at the least
UNITS = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
ENOUGH = 300.0  # seconds of training, before which shares of its time say little
SHOWN = 5  # of the newest restarts, bad steps and damaged checkpoints


def examine(workdir: Workdir, now: float | None = None) -> dict[str, Any]:
    """The state of a run, as JSON values; `wrong` is what hinders it, `advice` what would make it faster.

    Raises:
        ConfigError: there is no run here.
    """
    now = now or time.time()
    config, attempts = workdir.run(), goodput.read_attempts(workdir.attempts)
    last = attempts[-1] if attempts else None
    heart = _alive(workdir, last)
    trains = is_training(workdir, last, heart, now)
    step = (heart.step if heart else 0) or (last.step if last else 0)
    pace = heart.pace if heart else _pace(last) if last else None
    account = goodput.account(attempts)
    bad = bad_steps.read_diagnoses(workdir.bad_steps)
    history = workdir.manifest()["history"]
    report: dict[str, Any] = {
        "run": str(workdir.path),
        "name": config.name,
        "state": _state(last, heart, trains, now),
        "step": step,
        "steps": config.steps,
        "seconds_left": pace * (config.steps - step) if pace and step < config.steps else None,
        "seconds_per_step": last.about.get("seconds_per_step") if last else None,
        "last_heard_seconds": now - heart.written if heart else now - last.updated if last else None,
        "heartbeat": dataclasses.asdict(heart) if heart else None,
        "checkpoint": _newest_checkpoint(workdir, now),
        "free_bytes": shutil.disk_usage(workdir.path).free if isinstance(workdir.path, Path) else None,
        "attempts": len(attempts),
        "restarts": [_restart(*pair) for pair in pairwise(attempts)][-SHOWN:],
        "goodput": account.fractions if attempts else None,
        "lost_steps": account.lost_steps,
        "hosts": last.about.get("hosts", []) if last else [heart.process["host"]] if heart else [],
        "devices": last.about.get("devices") if last else None,
        "memory": last.about.get("memory") if last else None,
        "slow_host": last.about.get("slow") if last else None,
        "bad_steps": {"count": len(bad), "newest": [bad_steps.describe_bad_step(one) for one in bad[-SHOWN:]]},
        "damaged_checkpoints": [entry for entry in history if entry["event"] == DAMAGED][-SHOWN:],
        "flags": workdir.manifest().get("flags", {}),
    }
    report["wrong"] = list(_wrong(report, config, attempts, heart, trains, now))
    report["advice"] = list(_advice(report, config, last)) + list(_slow_step(heart, trains, now))
    return report


def is_training(workdir: Workdir, last: Attempt | None, heart: Heartbeat | None, now: float) -> bool | None:
    """Whether a process trains here; None where that cannot be told: a machine shows its own processes alone.

    Args:
        workdir: of the run.
        last: its newest attempt.
        heart: its heartbeat, unless that is of a process which is known to be gone.
        now: in seconds since the epoch.
    """
    holder = _holder(workdir.path / "lock") if isinstance(workdir.path, Path) else None
    if holder is not None or (heart and heart.process["machine"] == this_machine() is not None):
        return True
    if heart:
        return True if now - heart.written < SILENT else None
    if last is None or last.ended is not None:
        return False
    here = last.about.get("hosts", [])[:1] == [socket.gethostname()]
    if (here and LOCKS.exists() and isinstance(workdir.path, Path)) or workdir.heartbeat.exists():
        return False
    return True if now - last.updated < SILENT else None


def _alive(workdir: Workdir, last: Attempt | None) -> Heartbeat | None:
    """The run's heartbeat; None if its process recorded its end, or was on this machine and is gone."""
    heart = read_heartbeat(workdir.heartbeat)
    if heart is None or has_ended(heart.process):
        return None
    said = last is not None and last.ended is not None and heart.written < last.updated + heart.every
    return None if said else heart


def report_lines(report: dict[str, Any]) -> Iterator[str]:
    """The report for reading."""
    yield f"{report['run']}: {report['name']}, {report['state']}"
    done = f"step {report['step']:,} of {report['steps']:,}"
    if report["seconds_left"] is not None:
        done += f", {duration(report['seconds_left'])} left at the pace so far"
    yield f"  {done}"
    if report["last_heard_seconds"] is not None:
        yield f"  last heard of {duration(report['last_heard_seconds'])} ago, on {', '.join(report['hosts'][:4])}"
    saved = report["checkpoint"]
    if saved:
        age = f", {duration(saved['age_seconds'])} ago" if saved["age_seconds"] is not None else ""
        size = f", {_size(saved['bytes'])}" if saved["bytes"] else ""
        free = f"; {_size(report['free_bytes'])} are free" if report["free_bytes"] is not None else ""
        yield f"  last save: step {saved['step']:,}{age}{size}{free}"
    else:
        yield "  nothing is saved yet"
    if report["goodput"]:
        parts = sorted(report["goodput"].items(), key=lambda item: -item[1])
        yield "  its time: " + "  ".join(f"{kind.replace('_', ' ')} {s:.0%}" for kind, s in parts if s >= 0.005)
    for restart in report["restarts"]:
        yield f"  attempt {restart['attempt']} began {restart['began']}: the one before {restart['before']}"
    memory = report["memory"] or {}
    if "peak_gib" in memory:
        limit = f" of {memory['limit_gib']:.1f}" if "limit_gib" in memory else ""
        yield f"  memory per device: {memory['peak_gib']:.1f}{limit} GiB at most"
    if report["bad_steps"]["count"]:
        yield f"  {report['bad_steps']['count']} bad steps were skipped, the newest:"
        yield from (f"    {line}" for line in report["bad_steps"]["newest"])
    for entry in report["damaged_checkpoints"]:
        yield f"  checkpoint {entry['step']} was damaged ({entry['reason']}) and is in {entry['moved_to']}"
    yield from (f"WRONG: {line}" for line in report["wrong"])
    yield from (f"advice: {line}" for line in report["advice"])
    if not report["wrong"]:
        yield "nothing is wrong"


def _size(count: int) -> str:
    unit, name = next(((unit, name) for unit, name in UNITS if count >= unit), UNITS[-1])
    return f"{count / unit:,.1f} {name}"


def _state(last: Attempt | None, heart: Heartbeat | None, trains: bool | None, now: float) -> str:
    if trains and heart:
        return f"{heart.doing} for {duration(now - heart.since)}"
    if trains:
        return last.doing if last and last.ended is None else "starting again" if last else "starting"
    if trains is None:
        return f"silent; it was {heart.doing if heart else last.doing if last else 'starting'}"
    return goodput.end_of(last) if last else "begun, and never trained"


def _pace(attempt: Attempt) -> float | None:
    """Seconds per step, with all work between steps; None without a step."""
    made = attempt.step - attempt.first_step
    beside = (goodput.STEP, "data_wait", "checkpoint", "evaluation")
    return sum(attempt.seconds[kind] for kind in beside) / made if made else None


def _newest_checkpoint(workdir: Workdir, now: float) -> dict[str, Any] | None:
    checkpoints = CheckpointReader(workdir.checkpoints)
    if not checkpoints.steps:
        return None
    step = checkpoints.steps[-1]
    path = checkpoints.path(step) / SIZES
    found: dict[str, Any] = {"step": step, "age_seconds": None, "bytes": None}
    with suppress(FileNotFoundError, DamagedCheckpoint):  # not listed yet, deleted since, or told of on resuming
        found["bytes"] = sum(checkpoints.listed(step).values())
        found["age_seconds"] = now - path.stat().st_mtime if isinstance(path, Path) else None
    return found


def _restart(before: Attempt, attempt: Attempt) -> dict[str, Any]:
    began = datetime.fromtimestamp(attempt.began, UTC).isoformat(timespec="seconds")
    return {"attempt": attempt.number, "began": began, "before": goodput.end_of(before)}


def _wrong(
    report: dict[str, Any],
    config: Run,
    attempts: Sequence[Attempt],
    heart: Heartbeat | None,
    trains: bool | None,
    now: float,
) -> Iterator[str]:
    last, saved = (attempts[-1] if attempts else None), report["checkpoint"]
    resumes = f"the same command goes on from step {saved['step'] if saved else 0:,}"
    if trains is False and (last is None or last.ended != goodput.DONE):
        yield f"nobody trains here; {_remedy(last)}{resumes}"
    if trains is None:
        yield (
            f"nothing was heard for {duration(report['last_heard_seconds'])}: its machine is gone, or cannot write "
            f"here. Make sure that none of its processes is left; then {resumes}"
        )
    elif trains and heart and heart.patience and now - heart.progress > heart.patience:
        yield (
            f"{heart.doing}, without progress for {duration(now - heart.progress)}, longer than the "
            f"{duration(heart.patience)} of loop.hang_after: it hangs. End its processes; {resumes}"
        )
    same = [attempt.first_step == attempts[-1].first_step for attempt in attempts[-3:]]
    if len(same) == 3 and all(same) and attempts[-1].step < config.steps:
        yield (
            f"the last three attempts all began at step {attempts[-1].first_step}, and ended before their first "
            "save: see why in the log; where preemption is that frequent, lower loop.save_every"
        )
    free = report["free_bytes"]
    if saved and saved["bytes"] and free is not None and free < 2 * saved["bytes"]:
        yield (
            f"{_size(free)} are free, and a checkpoint takes {_size(saved['bytes'])}: make room, or a save ends "
            "the run with exit code 74"
        )


def _remedy(last: Attempt | None) -> str:
    """What to do before a run is started again, as the begin of a sentence."""
    ended = (last.ended if last else None) or ""
    if ended.startswith("TrainingHalted"):
        return "its steps went bad (bad_steps.jsonl): see if --rewind-to with --skip-rows is needed; otherwise "
    if ended.startswith("StorageError"):
        return "make room, or mend the storage: then "
    if ended in ("", goodput.SIGNAL):
        return ""
    return f"mend what ended it ({ended}): then "


def _advice(report: dict[str, Any], config: Run, last: Attempt | None) -> Iterator[str]:
    if last is None:
        return
    kinds = (goodput.STEP, "data_wait", "checkpoint", "evaluation")
    looped = sum(last.seconds[kind] for kind in kinds)
    if looped < ENOUGH:
        return
    shares = {kind: last.seconds[kind] / looped for kind in kinds}
    if shares["data_wait"] > 0.05:
        yield (
            f"the devices wait for data {shares['data_wait']:.0%} of the time: raise data.workers, which is "
            f"{config.workers}, or bring the data nearer"
        )
    if shares["checkpoint"] > 0.05:
        yield f"saves take {shares['checkpoint']:.0%} of the time: raise loop.save_every, {config.loop.save_every}"
    if shares["evaluation"] > 0.1:
        yield (
            f"evaluations and drawings take {shares['evaluation']:.0%} of the time: raise loop.evaluate_every, "
            f"{config.loop.evaluate_every}, or loop.sample_every, or lower evaluation.rows"
        )
    if report["attempts"] > 1 and last.seconds["compile"] > 60:
        yield (
            f"the last attempt compiled for {duration(last.seconds['compile'])}: keep programs in a folder that "
            "outlives the machine, by TRANSFUSION_CACHE"
        )
    memory = report["memory"] or {}
    if memory.get("peak_gib", 0) > 0.95 * memory.get("limit_gib", float("inf")):
        yield "the devices' memory is nearly full: a longer evaluation may not fit"
    if report["slow_host"]:
        yield f"{report['slow_host']}: look at that machine, or leave it out"


def _slow_step(heart: Heartbeat | None, trains: bool | None, now: float) -> Iterator[str]:
    if not trains or heart is None or heart.doing != DOING["step"] or not heart.pace:
        return
    quiet = now - heart.progress
    if max(NOTICED, SLOWER * heart.pace) < quiet <= (heart.patience or math.inf):
        ends = f"it ends itself after {duration(heart.patience)}" if heart.patience else "it never ends itself"
        yield f"no step ended for {duration(quiet)}, where one takes {heart.pace:.2g} s; {ends} (loop.hang_after)"


def _holder(lock: Path) -> int | None:
    """The process of this machine that holds a file's lock. Reading who does takes no lock oneself."""
    if not lock.exists() or not LOCKS.exists():
        return None
    inode = str(lock.stat().st_ino)
    for line in LOCKS.read_text().splitlines():
        words = line.split()  # number, kind, mode, access, process, device:device:inode, …
        if words[1] == "FLOCK" and words[5].rpartition(":")[2] == inode:
            return int(words[4])
    return None
