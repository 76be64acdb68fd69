"""Whether JSON values are what a reader of them expects: a form says what they are made of.

| form | fits |
|---|---|
| `str`, `bool`, `dict` | values of that type |
| `int` | whole numbers of 64 bits; True is none |
| `float` | finite numbers, and whole ones of 64 bits |
| `None` | null |
| `[form]` | lists whose entries all fit |
| `[form, form]` | lists of that length, whose entries fit in order |
| `{"name": form, "other?": form, ...: form}` | objects with a name, perhaps another, and any others; each fits |
| `(form, form)` | what fits one of them |
"""

from __future__ import annotations

import math
from typing import Any

LARGEST = 2**63  # JSON's whole numbers have any number of digits; what computes with them takes no more


def misfit(value: Any, form: Any, name: str = "") -> str:
    """What does not fit, for a message; empty where all does."""
    if isinstance(form, tuple):
        found = [misfit(value, one, name) for one in form]
        return "" if "" in found else found[-1]
    if isinstance(form, dict):
        return _misfit_within(value, form, f"{name}." if name else "")
    if isinstance(form, list):
        if not isinstance(value, list):
            return f"{name} is no list"
        if len(form) > 1 and len(value) != len(form):
            return f"{name} has {len(value)} entries"
        forms = form if len(form) > 1 else form * len(value)
        return next(filter(None, (misfit(one, forms[n], f"{name}[{n}]") for n, one in enumerate(value))), "")
    return "" if _fits(value, form) else f"{name} is {str(value)[:40]!r}"


def _misfit_within(value: Any, form: dict[Any, Any], prefix: str) -> str:
    if not isinstance(value, dict):
        return f"{prefix.rstrip('.')} is no object"
    known = {name.removesuffix("?"): name for name in form if name is not ...}
    for name, asked in known.items():
        if name in value:
            found = misfit(value[name], form[asked], f"{prefix}{name}")
        else:
            found = f"{prefix}{name} missing" if name == asked else ""
        if found:
            return found
    others = (misfit(value[name], form[...], f"{prefix}{name}") for name in value.keys() - known if ... in form)
    return next(filter(None, others), "")


def _fits(value: Any, form: Any) -> bool:
    if form is None:
        return value is None
    if form in (int, float) and isinstance(value, int):
        return not isinstance(value, bool) and -LARGEST <= value < LARGEST
    return isinstance(value, form) and (form is not float or math.isfinite(value))
