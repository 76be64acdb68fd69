"""A tiny model of bytes and grey images to serve."""

import base64
import contextlib
import io
import socket
import threading

import jax
import numpy as np
from PIL import Image

from helpers import tiny_config
from transfusion_jax.autoencoder.kinds.identity import Identity
from transfusion_jax.data.datasets import Codec
from transfusion_jax.data.store.latent_stats import LatentStatistics
from transfusion_jax.data.tokenizer import ByteTokenizer, SpecialTokens
from transfusion_jax.serving.access import access_of
from transfusion_jax.serving.app import Served, make_app
from transfusion_jax.serving.engine import Engine
from transfusion_jax.serving.limits import ServerLimits
from transfusion_jax.serving.measures import Measures
from transfusion_jax.serving.server import web_server
from transfusion_jax.tasks.base import make_task

ANY_SHAPE = dict(  # of `made`: images of at most 16 × 16 pixels in area, 32 on a side, in multiples of 2
    model__latent_shape=(16, 16, 1),
    model__patch_size=2,
    model__max_side=32,
    model__shape_marks=True,
    model__rope_sections=(2, 1, 1),
    data__context_length=160,
)


def made(**changes):
    """A task, and weights large enough that the prompt matters."""
    values = dict(
        model__vocabulary=256,
        model__latent_shape=(8, 8, 1),
        model__patch_size=4,
        data__context_length=128,
        sampling__steps=6,
        sampling__guidance=2.0,
    )
    task = make_task(tiny_config(**(values | changes)))
    random = np.random.default_rng(3)
    fresh = task.init(jax.random.key(0))
    return task, jax.tree.map(lambda p: p + 0.3 * random.standard_normal(p.shape, np.float32) * (p.ndim > 1), fresh)


def app_of(engine, limits=None, token=None, trained=None):
    """The application on an engine, for clients in this process, which call it `testserver`."""
    return make_app(engine, Served("tiny", 7, "ema", trained), access_of("testserver", 80, token=token), limits)


@contextlib.contextmanager
def server(engine=None, limits=None, token=None, trained=None):
    """The address of a server on a real port, in threads of this process."""
    engine, limits = engine or Engine(*made(), codec(), 8, Measures()), limits or ServerLimits()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        app = make_app(engine, Served("tiny", 7, "ema", trained), access_of("127.0.0.1", port, token=token), limits)
        web = web_server(app, limits, engine.most)
        thread = threading.Thread(target=web.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            web.should_exit = True
            thread.join(60)
    assert not thread.is_alive()
    assert not engine.alive


def codec():
    """Bytes, and pixels as they are."""
    return Codec(ByteTokenizer(), SpecialTokens.after(256), Identity(), LatentStatistics(np.zeros(1), np.ones(1)))


def png_url(width=8, height=8):
    """A small picture as a data URL."""
    file = io.BytesIO()
    Image.fromarray(np.arange(width * height * 3).astype(np.uint8).reshape(height, width, 3)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def text(value):
    """A part of a prompt."""
    return {"type": "text", "text": value}


def drawing(**how):
    """A request for one image."""
    return {"parts": [text("ab")], "follow": "image", **how}
