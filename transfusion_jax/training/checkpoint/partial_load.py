"""Weights of one model put into another: leaf by leaf, and by the user's word where shapes differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transfusion_jax import config as configs
from transfusion_jax.config import PATCHES, SPECIAL_TOKENS, ModelConfig, one_of, require
from transfusion_jax.errors import CheckpointError
from transfusion_jax.parallel.processes import each
from transfusion_jax.parallel.sharding import AxisNames, replicated, to_host
from transfusion_jax.parallel.tree import leaf_names, leaf_shapes, shape_text
from transfusion_jax.training.checkpoint.reader import PARTS, CheckpointReader

ACTIONS = ("grow", "fresh", "drop", "text")
Mapping = Sequence[tuple[str, str]]  # (pattern of leaf names, action): the first that fits decides
FUNCTION = (  # fields that say what a model computes with its weights, and are in the shape of none
    *("norm", "norm_epsilon", "rope_theta", "rope_sections", "rope_scaling", "rope_factor"),
    *("rope_frequency_factors", "rope_original_context"),
)


def text_twin(name: str) -> str:
    """The weight of text that a weight of patches alone stands beside, by their leaves' names."""
    return name.replace(f"/{PATCHES}/", "/")


def other_functions(old_model: ModelConfig, model: ModelConfig) -> Iterator[str]:
    """A line for each field by which a model computes something else with the weights of another one."""
    for name in FUNCTION:
        before, after = getattr(old_model, name), getattr(model, name)
        if before != after:
            yield f"these weights are of a model with model.{name} {before!r}; here it is {after!r}"


def parse_mapping(entries: Sequence[str]) -> Mapping:
    """`PATTERN=grow|fresh|drop|text` as pairs.

    Raises:
        ConfigError: it is not of this form.
    """
    pairs = [(pattern, action) for pattern, _, action in (entry.rpartition("=") for entry in entries)]
    for entry, (pattern, action) in zip(entries, pairs, strict=True):
        require(bool(pattern), f"--init-map {entry} must be PATTERN=ACTION, such as 'embedding=grow'")
        one_of(f"--init-map {pattern}", action, ACTIONS)
    return pairs


def transplant(
    checkpoints: CheckpointReader,
    step: int,
    which: str,
    params: Any,
    axes: AxisNames,
    model: ModelConfig,
    mapping: Mapping,
) -> tuple[Any, list[str]]:
    """Parameters with the weights of a checkpoint.

    A leaf that is the same in both, in its shape and in how heads or patches lie in it, is taken. Of the others
    the mapping says what becomes of them: `grow` puts the old values into the corner of the new ones (tokens keep
    their meaning where the vocabulary grew), `fresh` keeps the new initialisation, `drop` leaves an old leaf out,
    and `text` begins a weight of patches alone as the old one of text (the start of LMFusion, arXiv 2412.15188).

    Args:
        checkpoints: where the weights are.
        step: of which step.
        which: "raw" or "ema".
        params: the new model's, freshly initialised.
        axes: see `Task.axes`.
        model: the new model.
        mapping: see `parse_mapping`.

    Returns:
        the parameters, and a line for each leaf that was not simply taken.

    Raises:
        CheckpointError: a leaf fits nowhere and the mapping does not say what to do, or cannot be grown.
    """
    manifest = each(lambda: checkpoints.manifest(step))[0]
    old_model = configs.parse(manifest["config"]).model
    prefix = f"{PARTS[which]}/"
    old = {
        name.removeprefix(prefix): shape for name, shape in manifest["leaves"].items() if name.startswith(prefix)
    }
    new = leaf_shapes(params)
    leaves = dict(zip(new, jax.tree.leaves(params), strict=True))
    actions: dict[str, str] = {}
    layouts: dict[str, str] = {}
    for name in sorted(old.keys() | new.keys()):
        if name in new and (layout := _other_layout(name, axes[name], old_model, model)):
            layouts[name] = layout
        same = old.get(name) == new.get(name) and name not in layouts
        if same and not _tokens_moved(axes[name], old_model, model):
            actions[name] = "take"
        else:
            actions[name] = next((a for pattern, a in mapping if fnmatchcase(name, pattern)), "")
    changes = {
        name: f"{name}: {shape_text(old.get(name))} -> {shape_text(new.get(name))}"
        + (f" ({layouts[name]})" if name in layouts and name in old else "")
        for name, action in actions.items()
        if action != "take"
    }
    for pattern, action in mapping:
        require(
            any(fnmatchcase(name, pattern) for name in actions),
            f"--init-map {pattern}={action} fits no leaf of the models",
        )
    _check(actions, changes, old, new, layouts)

    wanted: dict[str, Any] = {}
    for name, action in actions.items():
        if action in ("take", "grow", "text"):
            leaf, source = leaves[name], text_twin(name) if action == "text" else name
            abstract = jax.ShapeDtypeStruct(old[source][1], leaf.dtype, sharding=leaf.sharding)
            whole = jax.ShapeDtypeStruct(abstract.shape, abstract.dtype, sharding=replicated(leaf.sharding))
            _put(wanted, source, whole if action == "grow" else abstract)
    loaded = checkpoints.weights(step, which, wanted) if wanted else {}
    taken = dict(zip(leaf_names(loaded), jax.tree.leaves(loaded), strict=True))
    result = []
    for name, leaf in leaves.items():
        if actions[name] == "grow":
            grown = _grow(name, axes[name], np.asarray(taken[name]), np.array(to_host(leaf)), old_model, model)
            result.append(jax.device_put(grown, leaf.sharding))
        elif actions[name] == "text":
            result.append(jnp.copy(taken[text_twin(name)]))
        else:
            result.append(taken.get(name, leaf))
    notes = [f"{change}, {actions[name]}" for name, change in changes.items()]
    return jax.tree.unflatten(jax.tree.structure(params), result), notes


def _check(
    actions: dict[str, str],
    changes: dict[str, str],
    old: dict[str, list],
    new: dict[str, list],
    layouts: dict[str, str],
) -> None:
    """Every leaf that is not simply taken needs an action that is possible for it."""

    def choices(name: str) -> tuple[str, ...]:
        if name in new and name in old:
            moved = name in layouts and old[name] == new[name]
            return ("fresh",) if moved else ("grow", "fresh")
        if name in old:
            return ("drop",)
        same = old.get(text_twin(name)) == new[name] and name not in layouts
        return ("fresh", "text") if same else ("fresh",)

    possible = {name: choices(name) for name in changes}
    wrong = [name for name in changes if actions[name] not in possible[name]]
    if wrong:
        raise CheckpointError(
            "these weights do not fit the new model; say what becomes of each with --init-map PATTERN=ACTION:\n  "
            + "\n  ".join(f"{changes[name]}: {' or '.join(possible[name])}" for name in wrong)
        )


def _tokens_moved(axes: tuple[str, ...], old_model: ModelConfig, model: ModelConfig) -> bool:
    """Whether an entry of the vocabulary means another token.

    The special ones come after the tokenizer's, those of codes after these, and those of sides of images last.
    """
    before, after = ((m.first_side, m.sides) if m.sides else () for m in (old_model, model))
    return "vocabulary" in axes and (old_model.vocabulary != model.vocabulary or before != after)


def _other_layout(name: str, axes: tuple[str, ...], old_model: ModelConfig, model: ModelConfig) -> str:
    """How heads or patches lie otherwise in a leaf, for the user: its shape may be the same. Else empty."""
    before, after = old_model.head_channels, model.head_channels
    if "heads" in axes and name.startswith("trunk/") and before != after:
        return f"heads of {before} channels -> {after}"
    before, after = old_model.patch_size, model.patch_size
    if "patch" in axes and "unet" not in (old_model.patch_coder, model.patch_coder) and before != after:
        return f"patches of {before}×{before} -> {after}×{after}"
    return ""


def _grow(
    name: str,
    axes: tuple[str, ...],
    old: np.ndarray,
    new: np.ndarray,
    old_model: ModelConfig,
    model: ModelConfig,
) -> Any:
    places: list[tuple[np.ndarray, np.ndarray]] = []
    for axis, before, after in zip(axes, old.shape, new.shape, strict=True):
        if axis == "vocabulary":
            before, after = old_model.vocabulary, model.vocabulary
            behind = np.arange(SPECIAL_TOKENS + min(old_model.codebook, model.codebook))
            sides = np.arange(min(old_model.sides, model.sides))
            here, there = (
                np.concatenate([np.arange(before), m.vocabulary + behind, m.first_side + sides])
                for m in (old_model, model)
            )
        else:
            here = there = np.arange(before)
        regular = axis != "patch" and (axis != "heads" or _head(old_model) == _head(model))
        if before > after or (before != after and not regular):
            raise CheckpointError(f"{name} cannot grow along its axis {axis!r} from {before} to {after}: use fresh")
        places.append((here, there))
    new[np.ix_(*(there for _, there in places))] = old[np.ix_(*(here for here, _ in places))]
    return new


def _head(model: ModelConfig) -> tuple[int, int]:
    """Channels of a head, and how many heads of queries share one of keys."""
    return model.head_channels, model.heads // model.key_value_heads


def _put(tree: dict[str, Any], name: str, value: Any) -> None:
    *parents, leaf = name.split("/")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[leaf] = value
