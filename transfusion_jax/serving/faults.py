"""What is wrong with a request, in few and short words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transfusion_jax.serving.limits import ServerLimits


def faults_of(errors: Sequence[Mapping[str, Any]], limits: ServerLimits) -> list[dict[str, Any]]:
    """The first of pydantic's errors, and how many more there are; they repeat nothing but names, cut off."""
    told = [
        {
            "loc": [name if isinstance(name, int) else name[: limits.name] for name in error["loc"]],
            "msg": _said(error)[: limits.words],
            "type": error["type"],
        }
        for error in errors[: limits.faults]
    ]
    if more := len(errors) - len(told):
        told.append({"loc": ["body"], "msg": f"and {more} more", "type": "more"})
    return told


def _said(error: Mapping[str, Any]) -> str:
    """Pydantic's words, but for those that repeat a value."""
    if error["type"] == "union_tag_invalid":
        return f"{error['ctx']['discriminator']} must be one of {error['ctx']['expected_tags']}"
    message: str = error["msg"]
    return message
