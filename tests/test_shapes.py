"""Arrays of another shape or dtype than a signature names are refused in tests, and every signature can be read."""

import ast
import importlib
import inspect
import pkgutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, TypeCheckError, jaxtyped

import shapes
from helpers import tiny_batch, tiny_config
from transfusion_jax.data.batch import bytes_of_batch
from transfusion_jax.diffusion.objective import image_keys
from transfusion_jax.generation.guidance import combine_branches
from transfusion_jax.kernels.cross_entropy import cross_entropy
from transfusion_jax.kernels.spans import Spans, check_spans
from transfusion_jax.model.layers import rotate, take_elements
from transfusion_jax.tasks.transfusion import patches_seen


def heads(channels):
    return jnp.zeros((2, 3, 4, channels))


WRONG = {
    "model": (lambda: rotate(heads(6), (heads(3)[:, :, :1], heads(3)[:, :1, :1])), "rotation"),
    "kernels": (lambda: cross_entropy(heads(5)[0], jnp.zeros((6, 7)), np.zeros((3, 4), int), 7), "head"),
    "diffusion": (lambda: image_keys(jax.random.key(0), np.zeros((2, 3), int), 1), "rows"),
    "tasks": (lambda: patches_seen(of_a_batch(span_start=np.zeros((4, 5), np.int32))), "batch"),
    "generation": (lambda: combine_branches(heads(5), jnp.zeros(2, int), 0.0), "weights"),
    "data": (lambda: bytes_of_batch(of_a_batch(tokens=np.zeros((4, 48)))), "batch"),
    "a field of a named tuple": (lambda: check_spans(Spans(np.zeros((2, 3), int), np.zeros((2, 4), int))), "spans"),
    "a dtype": (lambda: take_elements(jnp.zeros((2, 3, 1)), jnp.zeros((2, 3))), "places"),
}


def of_a_batch(**changes):
    return replace(tiny_batch(tiny_config()), **changes)


@pytest.mark.parametrize("where", WRONG)
def test_a_wrong_array_is_refused(where):
    call, name = WRONG[where]
    with pytest.raises(TypeCheckError, match=f"parameter '{name}'"):
        call()


def test_a_wrong_result_is_refused():
    @jaxtyped(typechecker=shapes.checked)
    def turned(x: Float[Array, "rows columns"]) -> Float[Array, "columns rows"]:
        return x

    turned(jnp.zeros((2, 2)))
    with pytest.raises(TypeCheckError, match="return value"):
        turned(jnp.zeros((2, 3)))


@pytest.mark.parametrize("name", shapes.MODULES)
def test_every_annotation_can_be_read_and_names_shapes(name):
    """One that cannot be read is not checked, and nothing says so."""
    root = importlib.import_module(name)
    below = pkgutil.walk_packages(getattr(root, "__path__", []), f"{name}.")
    for module in [root, *(importlib.import_module(found.name) for found in below)]:
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            found = getattr(node, "annotation", None) or getattr(node, "returns", None)
            if found is not None:
                eval(ast.unparse(found), vars(module))
                assert ast.unparse(found) not in ("jax.Array", "np.ndarray"), (module.__name__, node.lineno)
