import jax.numpy as jnp
import numpy as np
import pytest

from transfusion_jax.config import GuardConfig
from transfusion_jax.errors import StorageError
from transfusion_jax.training.checkpoint import chunks
from transfusion_jax.training.checkpoint.checksums import checksums, part_checksum
from transfusion_jax.training.checkpoint.chunks import Leaf, boxes, opened
from transfusion_jax.training.checkpoint.errors import DamagedCheckpoint
from transfusion_jax.training.checkpoint.manager import Checkpoints
from transfusion_jax.training.checkpoint.reader import to_devices
from transfusion_jax.training.step.bad_step_guard import new_guard
from transfusion_jax.training.step.state import State

SHAPES = [(), (5,), (40,), (6, 10), (50, 6), (6, 50), (3, 4, 5), (3, 20, 5), (2, 3, 4, 5)]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 30)


def values(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_pieces_are_the_whole_leaf_once_and_so_are_their_checksums(shape):
    seen, value, total = np.zeros(shape, int), values(shape), 0
    for box in boxes(shape):
        seen[box] += 1
        total += part_checksum(value[box], box, shape)
    assert np.all(seen == 1)
    assert total % 2**32 == checksums([value])["0"] == checksums([jnp.asarray(value)])["0"]


@pytest.mark.parametrize("kind", ["disk", "bucket"])
def test_weights_saved_in_pieces_are_an_ordinary_checkpoint(kind, tmp_path, request):
    place = tmp_path if kind == "disk" else request.getfixturevalue("remote")
    params = {"zeros": np.zeros((40, 2), np.float32), "layers": {str(n): values(s) for n, s in enumerate(SHAPES)}}
    leaves = {f"layers/{n}": Leaf.of(value) for n, value in params["layers"].items()}
    with Checkpoints(place / "c") as checkpoints:
        checkpoints.save_weights({"zeros": Leaf.of(params["zeros"]), **leaves})
        assert checkpoints.steps == [0]
        loaded = checkpoints.weights(0, "raw", to_devices(params))
        np.testing.assert_array_equal(loaded["zeros"], params["zeros"])
        for n, value in params["layers"].items():
            np.testing.assert_array_equal(loaded["layers"][n], value)
            for box, part in checkpoints.read_pieces(0, f"params/layers/{n}"):
                np.testing.assert_array_equal(part, value[box])


def test_what_training_saves_is_stored_in_chunks_that_no_piece_cuts(tmp_path):
    value = values((3, 4, 5))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state(value), next_row=0)
    assert opened(tmp_path / "1", "params/w").chunk_layout.read_chunk.shape == (1, 4, 5)
    for box, part in checkpoints.read_pieces(1, "params/w"):
        np.testing.assert_array_equal(part, value[box])


def test_a_damaged_piece_is_found(tmp_path):
    leaf = Leaf.of(values((3, 4, 5)))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_weights({"w": leaf})
        opened(tmp_path / "0", "params/w")[1, 2, 3].write(7.0).result()
        (tmp_path / "0/sizes.json").unlink()
        with pytest.raises(DamagedCheckpoint, match="wrong checksum of params/w"):
            list(checkpoints.read_pieces(0, "params/w"))


def test_weights_that_cannot_be_made_leave_no_checkpoint(tmp_path):
    passes = []

    def failing():
        passes.append(None)
        if len(passes) > 1:
            raise OSError("gone")
        yield from Leaf.of(values((3,))).pieces()

    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(StorageError, match="gone"):
            checkpoints.save_weights({"w": Leaf("float32", (3,), failing)})
        assert checkpoints.steps == []
        checkpoints.save_weights({"w": Leaf.of(values((3,)))})
        assert checkpoints.steps == [0]


def state(weights):
    return State(jnp.int32(1), {"w": jnp.asarray(weights)}, {}, None, new_guard(GuardConfig()))
