"""`transfusion sample`: draws, writes, captions, edits and scores, with any mix of texts and images as prompts."""

from __future__ import annotations

import argparse
import sys
import time

from transfusion_jax.commands.common.load_model import read_model
from transfusion_jax.commands.common.prompts import (
    Prompt,
    default_follow,
    document_of,
    read_prompts,
    read_shape,
    requests_of,
)
from transfusion_jax.commands.flags.sample import DEFAULTS
from transfusion_jax.config import Config, SamplingConfig, require
from transfusion_jax.data.datasets import Codec, by_shape
from transfusion_jax.data.documents import Document
from transfusion_jax.errors import printable, some
from transfusion_jax.generation.contact_sheet import contact_sheet
from transfusion_jax.generation.export import Sampled, write_album, write_page, write_samples, write_sheet
from transfusion_jax.generation.guidance import untrained_branch
from transfusion_jax.generation.interleaved import Drew, Ended, Event, Request, generate, grid_of
from transfusion_jax.generation.png import write_png
from transfusion_jax.generation.scoring import score_continuations
from transfusion_jax.generation.single import write_texts
from transfusion_jax.generation.sizes import untrained_shape
from transfusion_jax.generation.token_sampling import Writing
from transfusion_jax.model.transfusion import Params
from transfusion_jax.storage.outputs import check_output_file, check_output_folder
from transfusion_jax.tasks.families import ModelTask
from transfusion_jax.training.facts import codec_of, data_of, trained_shapes

EVERY = 5.0  # seconds between two reports
COLUMNS = 6  # of a sheet of held-out images
DRAWING = (
    *("steps", "sampler", "spacing", "guidance", "guidance_interval", "guidance_rescale", "image_guidance"),
    "temperature",
)
SHAPE = "size", "aspect"  # of what is drawn
WRITING = "max_tokens", "text_temperature", "top_k", "top_p", "min_p", "stop"


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Samples; returns the exit code."""
    del overrides
    if arguments.held_out is not None:
        return _caption_held_out(arguments)
    prompts, writing = _prompts(arguments), _writing(arguments)
    _check(arguments, prompts)
    task, params, workdir, _, _ = read_model(arguments, print)
    config, codec = task.config, codec_of(workdir)
    if arguments.score:
        return _score(arguments, task, params, codec, prompts)
    sampling = _sampling(arguments, config)
    requests = requests_of(prompts, config, codec, arguments.seed)
    if any(request.follow != "text" for request in requests):
        untrained = _untrained_shapes(requests, config, codec, trained_shapes(workdir.manifest()))
        for line in [*untrained_branch(config, sampling), *untrained]:
            print(line, file=sys.stderr)
    samples = generate(
        *(task, params, codec, requests, sampling, writing, arguments.max_images), watch=_Report(len(requests))
    )
    labels = [prompt.label for prompt in prompts for _ in range(prompt.count)]
    made = [Sampled(*each) for each in zip(labels, requests, samples, strict=True)]
    if arguments.output is None:
        for one in made:
            print(printable(f"{one.prompt}: {one.sample.text}"))
        return 0
    how = {name: value for name, value in vars(sampling).items() if value != getattr(SamplingConfig(), name)}
    how |= {name: value for name in SHAPE if (value := getattr(arguments, name)) is not None}
    WRITERS[arguments.output.suffix.lower()](arguments.output, made, how | {"seed": arguments.seed})
    drawn = sum(len(one.sample.images) for one in made)
    print(f"{len(made)} sample(s) with {drawn} image(s) in {arguments.output}")
    return 0


WRITERS = {".png": write_sheet, ".html": write_page, ".jsonl": write_samples, "": write_album}


def _check(arguments: argparse.Namespace, prompts: list[Prompt]) -> None:
    """Raises ConfigError where options do not go together."""
    output, follows = arguments.output, {prompt.follow for prompt in prompts}
    if arguments.score:
        _refuse(
            arguments,
            "--score prints numbers",
            "output",
            "edit",
            "follow",
            "n",
            "seed",
            "max_images",
            *SHAPE,
            *DRAWING,
            *WRITING,
        )
        shaped = [prompt.label for prompt in prompts if prompt.shape]
        require(not shaped, f"--score prints numbers: leave out size and aspect of {some(shaped)}")
        return
    if "any" not in follows:
        _refuse(arguments, "no more than one image follows", "max_images")
    if follows == {"text"}:
        _refuse(arguments, "nothing is drawn", *SHAPE, *DRAWING)
    if follows == {"image"}:
        _refuse(arguments, "nothing is written", *WRITING)
    require(
        output is not None or follows == {"text"},
        "images are drawn: say where to, by --output FILE.png or a folder",
    )
    if output is not None:
        suffix = output.suffix.lower()
        require(suffix in WRITERS, f"--output ends with {suffix}: name FILE.png, .html or .jsonl, or a folder")
        require(
            suffix != ".png" or follows == {"image"},
            "a sheet shows one image of each sample: for texts name FILE.html, FILE.jsonl or a folder",
        )
        (check_output_file if suffix else check_output_folder)(output)


def _refuse(arguments: argparse.Namespace, why: str, *names: str) -> None:
    """Raises ConfigError where one of these options was given."""
    values = {name: getattr(arguments, name) for name in names}
    unset = [name for name, value in values.items() if value in (None, []) or value is False]
    given = [name for name, value in values.items() if name not in unset and value != DEFAULTS.get(name)]
    flags = ", ".join("-n" if name == "n" else "--" + FLAGS.get(name, name.replace("_", "-")) for name in given)
    require(not given, f"{why}: leave out {flags}")


FLAGS = {"steps": "sampling-steps"}  # whose names are not their own


def _prompts(arguments: argparse.Namespace) -> list[Prompt]:
    """What the arguments ask for, images before texts.

    Raises:
        ConfigError: they ask for nothing, or for what does not go together.
    """
    count, edit, follow = arguments.n, arguments.edit, arguments.follow
    shape = read_shape(arguments.size, arguments.aspect)
    if edit:
        require(bool(arguments.image and arguments.prompt), "--edit needs --image and --prompt")
        require(follow in (None, "image"), "--edit draws an image: leave --follow out")
        follow = "image"
    found = []
    if arguments.image or arguments.prompt:
        for image in arguments.image or [None]:
            for text in arguments.prompt or [None]:
                segments = tuple(s for s in (image, text) if s is not None)
                found.append(Prompt(segments, follow or default_follow(segments), count, shape=shape))
    if arguments.prompts is not None:
        found += read_prompts(arguments.prompts, follow, count, shape)
    require(bool(found), "say what to begin with: --prompt, --image, --prompts or --held-out")
    return found


def _writing(arguments: argparse.Namespace) -> Writing:
    return Writing(
        max_tokens=arguments.max_tokens,
        temperature=arguments.text_temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        min_p=arguments.min_p,
        stop=tuple(arguments.stop),
    )


def _sampling(arguments: argparse.Namespace, config: Config) -> SamplingConfig:
    given = {name: getattr(arguments, name) for name in DRAWING}
    interval = given["guidance_interval"]
    return config.sampling_with(**given | {"guidance_interval": interval and tuple(interval)})


def _untrained_shapes(
    requests: list[Request], config: Config, codec: Codec, trained: dict[str, list[int]] | None
) -> list[str]:
    """A warning for each shape that is drawn, not chosen, and lies outside of what the run was trained on."""
    grids = dict.fromkeys(grid_of(request, config.model) for request in requests if request.follow != "text")
    return [line for grid in grids if grid and (line := untrained_shape(grid, config, codec, trained))]


class _Report:
    """Says how many samples have ended, and how many images come each second."""

    def __init__(self, samples: int):
        self.samples, self.drawn, self.ended = samples, 0, 0
        self.begin = self.said = time.monotonic()

    def __call__(self, event: Event) -> None:
        self.drawn += isinstance(event, Drew)
        self.ended += isinstance(event, Ended)
        now = time.monotonic()
        if isinstance(event, Ended) and now - self.said >= EVERY:
            self.said = now
            speed = f", {self.drawn / (now - self.begin):.2f} images/s" if self.drawn else ""
            print(f"{self.ended}/{self.samples} samples{speed}", file=sys.stderr, flush=True)


def _score(
    arguments: argparse.Namespace, task: ModelTask, params: Params, codec: Codec, prompts: list[Prompt]
) -> int:
    documents = [document_of(prompt.segments, task.config, codec) for prompt in prompts]
    texts = [codec.tokenizer.encode(text) for text in arguments.score]
    scores = score_continuations(task, params, codec, [d for d in documents for _ in texts], texts * len(documents))
    for index, prompt in enumerate(prompts):
        of_prompt = scores[index * len(texts) : (index + 1) * len(texts)]
        print(f"{prompt.label}:")
        for text, one in sorted(zip(arguments.score, of_prompt, strict=True), key=lambda x: -x[1].log_likelihood):
            print(f"  {one.log_likelihood:9.3f} nats of {one.tokens} tokens  {text}")
    return 0


def _caption_held_out(arguments: argparse.Namespace) -> int:
    others, output = ("prompt", "image", "prompts", "follow", "edit", "score", "n", "max_images"), arguments.output
    _refuse(arguments, "--held-out captions images", *others, *SHAPE, *DRAWING)
    if output is not None:
        require(output.suffix.lower() == ".png", f"--held-out writes a sheet: --output FILE.png, not {output}")
        check_output_file(output)
    writing = _writing(arguments)
    task, params, workdir, _, _ = read_model(arguments, print)
    data = data_of(workdir, task.config)
    shown = data.held_out.pairs(arguments.held_out)
    require(bool(shown), "this run holds out no captioned images")
    true = [data.codec.tokenizer.decode(text.tokens) for text, _ in (document.pair for document in shown)]
    images = [image for _, image in (document.pair for document in shown)]
    documents = [Document((image,)) for image in images]
    written = write_texts(task, params, data.codec, documents, writing, arguments.seed)
    true, written = ([" ".join(text.split()) for text in texts] for texts in (true, written))  # one line each
    if output is not None:
        pictures = by_shape(data.codec.images, [image.latent for image in images])
        write_png(output, contact_sheet(pictures, written, COLUMNS))
        print(f"{len(images)} held-out image(s) with the model's captions in {output}")
    width = max(map(len, true))
    print(f"{'held-out image':<{width}}    the model's caption")
    for expected, text in zip(true, written, strict=True):
        print(printable(f"{expected:<{width}}    {text}"))
    return 0
