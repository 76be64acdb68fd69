"""Whether edited drawings show what was asked for: scenes that no training set holds, judged by their pixels."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np

from transfusion_jax.config import Config, EvaluationConfig, require
from transfusion_jax.data.datasets import Codec, Data
from transfusion_jax.data.documents import Document, Image, Text
from transfusion_jax.evaluation.suite import Suite
from transfusion_jax.generation.interleaved import Request, generate
from transfusion_jax.generation.png import to_pixels
from transfusion_jax.generation.sizes import drawn_sizes
from transfusion_jax.model.transfusion import Params
from transfusion_jax.tasks.families import ModelTask
from transfusion_jax.worlds.shapes import captions, edits, scenes

LOOKED_AT = 100  # documents of a source, to see whether it holds shapes
SEED = 2**31 - 1  # of the scenes; training sets have smaller ones


def run(task: ModelTask, params: Params, data: Data, key: jax.Array) -> dict[str, float]:
    """Share of edits done, over all and by action; of the judge on true drawings; and of doing nothing, by chance.

    An edit is done where no other edit of that scene, nor the scene itself, comes nearer to what was drawn. All
    pictures are squares.

    Raises:
        ConfigError: the model draws nothing, or draws in grey.
    """
    codec = data.codec
    size = drawing_size("edits", task.config, data)
    wanted = edit_requests(task.config.evaluation)
    requests = [
        Request(
            edit_document(scene, text, size, codec), "image", int(jax.random.bits(key, dtype=np.uint32)), number
        )
        for number, (scene, _, text) in enumerate(wanted)
    ]
    drawn = np.stack([sample.images[0] for sample in generate(task, params, codec, requests)])
    true = codec.images(codec.latents(np.stack([picture(edit.after, size) for _, edit, _ in wanted])))
    done, judged = (
        np.array([is_done(*a[:2], x) for a, x in zip(wanted, images, strict=True)]) for images in (drawn, true)
    )
    actions = np.array([edit.action for _, edit, _ in wanted])
    by_action = {f"edit_accuracy_{name}": float(done[actions == name].mean()) for name in sorted(set(actions))}
    choices = np.array([1 + len(edits.possible_edits(scene)) for scene, _, _ in wanted])
    return {
        "judge_accuracy": float(judged.mean()),
        "edit_accuracy": float(done.mean()),
        **by_action,
        "edit_accuracy_by_chance": float(np.mean(1 / choices)),
    }


def check(config: Config, data: Data) -> None:
    """Raises ConfigError where the model draws no images in colour."""
    drawing_size("edits", config, data)


def drawing_size(suite: str, config: Config, data: Data) -> int:
    """Pixels of a side of the model's square drawings, of the largest where it draws images of any shape.

    Raises:
        ConfigError: it draws nothing, draws in grey or no squares, or has seen no shapes.
    """
    model = config.model
    require(model.images != "none", f"the suite {suite!r} draws, and this is a model of text alone")
    height, width, channels = data.codec.autoencoder.image_shape(model.latent_shape)
    require(channels == 3, f"the suite {suite!r} draws in colour, and this model's images are grey")
    require(
        height == width or model.max_side > 0,
        f"the suite {suite!r} draws squares, and this model's images are {height}×{width}",
    )
    require(
        any(captions.parse_caption(text) for text in _some_texts(data)),
        f"the suite {suite!r} asks for drawings of coloured shapes, and no caption of this run describes any: "
        "it is for runs on `transfusion prepare shapes` or edits",
    )
    return drawn_sizes(config, data.codec).square


def _some_texts(data: Data) -> Iterator[str]:
    """Texts of documents with images, from all over each source of the training data."""
    for source in data.train.sources:
        if source.pictured:
            for number in np.unique(np.linspace(0, len(source) - 1, LOOKED_AT).astype(int)).tolist():
                for segment in source.documents[number].segments:
                    if isinstance(segment, Text):
                        yield data.codec.tokenizer.decode(segment.tokens)


def edit_document(scene: scenes.Scene, text: str, size: int, codec: Codec) -> Document:
    """A scene's drawing, and what to change."""
    (latent,) = codec.latents(picture(scene, size)[None])
    return Document((Image(latent), Text(codec.tokenizer.encode(text))))


def picture(scene: scenes.Scene, size: int) -> np.ndarray:
    """A drawing `[H, W, 3]` in [−1, 1]; `size` is the side of a square one."""
    return scenes.render(scene, size).astype(np.float32) / 127.5 - 1


def edit_requests(config: EvaluationConfig) -> list[tuple[scenes.Scene, edits.Edit, str]]:
    """`evaluation.images` of `asked_for`, of `evaluation.scenes`."""
    return [asked_for(index, config.scenes) for index in range(config.images)]


def asked_for(index: int, arrangement: str = scenes.FREE) -> tuple[scenes.Scene, edits.Edit, str]:
    """A scene, a change, and the sentence that asks for it."""
    scene, rng = scenes.scene(SEED, index, arrangement), np.random.default_rng([SEED, index, 2])
    edit = edits.choose_edit(scene, rng)
    return scene, edit, edits.describe_edit(edit, scene, rng)


def is_done(scene: scenes.Scene, edit: edits.Edit, image: np.ndarray) -> bool:
    """Whether an image `[H, H, 3]` in [−1, 1] comes nearest to the scene after the edit."""
    choices = [scene, *(other.after for other in edits.possible_edits(scene))]
    return choices[edits.shown(to_pixels(image[None])[0], choices)] == edit.after


SUITE = Suite(run, "images", True, lambda config, _: [text for *_, text in edit_requests(config.evaluation)], check)
