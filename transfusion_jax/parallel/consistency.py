"""What all processes of a run must have alike before they compute together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transfusion_jax.config import ConfigError
from transfusion_jax.parallel.processes import each

PACKAGE = Path(__file__).parents[1]


def agree(facts: Mapping[str, Any]) -> None:
    """Returns where every process holds the same facts, nested mappings of plain values.

    Raises:
        ConfigError: on every process, with what differs between the first process and another.
    """
    all_facts = [dict(_flat(other)) for other in each(lambda: facts)]
    for number, other in enumerate(all_facts):
        names = sorted(all_facts[0].keys() | other.keys())
        different = [name for name in names if all_facts[0].get(name) != other.get(name)]
        if different:
            lines = "".join(f"\n  {n}: {all_facts[0].get(n)} -> {other.get(n)}" for n in different[:8])
            raise ConfigError(
                f"process {number} was started with another config, code or data than process 0:{lines}\n"
                "start all of them with the same command and the same versions"
            )


def code_hash() -> str:
    """A short hash of this package's source."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(str(path.relative_to(PACKAGE)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
