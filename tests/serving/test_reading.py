"""Images that are decoded for requests at once, by their size."""

import base64
import io
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from served import codec, made
from transfusion_jax.serving import reading
from transfusion_jax.serving.reading import Departed, read_request
from transfusion_jax.serving.schema import Generate, ImagePart

TASK, _ = made()
LARGE, SMALL = (20, 20), (10, 10)


@pytest.fixture
def decoding(monkeypatch):
    """Sizes of images whose decoding began; it ends when the test lets it."""
    began, gate, real = [], threading.Event(), reading.pixels_of_file
    begun = threading.Semaphore(0)

    def pixels_of_file(file, *how):
        began.append(Image.open(io.BytesIO(file)).size)
        begun.release()
        assert gate.wait(60)
        return real(file, *how)

    monkeypatch.setattr(reading, "pixels_of_file", pixels_of_file)
    monkeypatch.setattr(reading, "LARGE", 100)
    yield began, begun, gate
    gate.set()


def asked(size):
    file = io.BytesIO()
    Image.new("L", size).save(file, "PNG")
    return Generate(parts=[ImagePart(image=base64.b64encode(file.getvalue()).decode())])


def read(size, left=lambda: False):
    return read_request(asked(size), TASK, codec(), 10**6, left)


def test_large_images_are_decoded_one_at_a_time_beside_small_ones(decoding):
    began, begun, gate = decoding
    with ThreadPoolExecutor(4) as threads:
        jobs = [threads.submit(read, LARGE)]
        assert begun.acquire(timeout=60)
        jobs += [threads.submit(read, size) for size in (LARGE, SMALL, SMALL)]
        for _ in range(2):
            assert begun.acquire(timeout=60)
        assert began == [LARGE, SMALL, SMALL]
        gate.set()
        for job in jobs:
            job.result(60)
    assert began == [LARGE, SMALL, SMALL, LARGE]


def test_who_left_while_waiting_is_not_decoded(decoding):
    began, begun, gate = decoding
    departed = threading.Event()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(read, LARGE)
        assert begun.acquire(timeout=60)
        second = threads.submit(read, LARGE, departed.is_set)
        departed.set()
        gate.set()
        first.result(60)
        with pytest.raises(Departed):
            second.result(60)
    assert began == [LARGE]
