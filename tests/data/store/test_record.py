import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfusion_jax.data.store.record import pack_images, unpack_images

SIDES = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=5)


@settings(max_examples=40, deadline=None)
@given(SIDES, st.sampled_from([(), (1,), (3,)]), st.sampled_from(["|u1", "<f2", "<i4"]), st.integers(0, 99))
def test_images_of_any_shapes_are_read_back(sides, rest, dtype, seed):
    random = np.random.default_rng(seed)
    images = [random.integers(0, 99, (*side, *rest)).astype(dtype) for side in sides]
    data = pack_images(images, of_one_shape=False)
    assert np.frombuffer(data, "<u2", 1 + 2 * len(sides)).tolist() == [
        len(sides),
        *(s for two in sides for s in two),
    ]
    found = unpack_images(data, np.dtype(dtype), (0, 0, *rest))
    assert [(image.shape, image.dtype) for image in found] == [(image.shape, image.dtype) for image in images]
    assert all(map(np.array_equal, found, images))


def test_images_of_one_shape_are_their_values_alone():
    images = [np.full((2, 3, 1), value, np.uint8) for value in (7, 9)]
    data = pack_images(images, of_one_shape=True)
    assert data == bytes([7] * 6 + [9] * 6)
    assert all(map(np.array_equal, unpack_images(data, np.dtype("u1"), (2, 3, 1)), images))


@pytest.mark.parametrize(
    "change", [lambda data: data[:-1], lambda data: data + b"\0", lambda data: data[:4], lambda _: b""]
)
def test_images_whose_bytes_are_too_few_or_too_many_are_refused(change):
    data = pack_images([np.zeros((2, 3, 1), np.uint8), np.zeros((1, 5, 1), np.uint8)], of_one_shape=False)
    with pytest.raises(ValueError, match=r"buffer|images take"):
        unpack_images(change(data), np.dtype("u1"), (0, 0, 1))
