"""Names and shapes of a pytree's leaves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of leaves by such names."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def leaf_names(tree: Any) -> list[str]:
    """Names such as `params/trunk/layers/query`, in the order of `jax.tree.leaves`."""
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]


def leaf_shapes(tree: Any) -> dict[str, list]:
    """`{leaf name: [dtype, shape]}` in JSON types."""
    leaves = jax.tree.leaves(tree)
    return {name: [str(x.dtype), list(x.shape)] for name, x in zip(leaf_names(tree), leaves, strict=True)}


def shape_text(shape: list | None) -> str:
    """An entry of `leaf_shapes` for the user."""
    return "absent" if shape is None else f"{shape[0]}{shape[1]}"
