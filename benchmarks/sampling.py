"""Drawing and writing on this machine's CPU, with a cache and without, beside transfusion-pytorch's sampler.

    python benchmarks/sampling.py
    python benchmarks/sampling.py --beside main  # and another revision's, for images of one size
    python benchmarks/sampling.py --shapes       # images of several sizes beside as many patches of one size

All models have the same width, depth and image size, and are asked as often for each image: every evaluation is
two passes, with the prompt and without, for guidance. transfusion-pytorch samples a batch together and follows its
flow by Euler's method. Texts are greedy. Weights are random: nothing ends early.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import loguru
import numpy as np
import torch
import tqdm
import transfusion_pytorch.transfusion

import harness
from harness import compare, matmul_peak, parser, publish
from same import commit_of, trees
from step import LIBRARY_MARKS, LIBRARY_NOTES, library_model
from training import config_of, shape_flags
from transfusion_jax.autoencoder.kinds.identity import Identity
from transfusion_jax.config import Config
from transfusion_jax.data.datasets import Codec, plain_statistics
from transfusion_jax.data.documents import Document, Text
from transfusion_jax.data.tokenizer import Numbers, SpecialTokens
from transfusion_jax.generation import reference
from transfusion_jax.generation.interleaved import Request, Wrote, generate, stream
from transfusion_jax.generation.token_sampling import Writing
from transfusion_jax.model.transfusion import Params
from transfusion_jax.tasks.transfusion import TransfusionTask

PROMPT = 24  # tokens
GUIDANCE = 3.0
BATCHES = (1, 8, 32)
ONE = (12, 16)  # rows and columns of patches
SEVERAL = [(16, 16), (8, 16), (16, 8), (11, 16), (16, 13), (12, 16), (8, 24), (16, 16)]  # as many patches


def main() -> None:
    """Measures and prints."""
    flags = parser(__doc__)
    shape_flags(flags)
    flags.add_argument("--evaluations", type=int, default=8, help="of the model, per image (default: %(default)s)")
    flags.add_argument("--tokens", type=int, default=64, help="written after each prompt (default: %(default)s)")
    flags.add_argument("--beside", metavar="REV", help="compare with another revision, and with nothing else")
    flags.add_argument("--shapes", action="store_true", help="compare images of several sizes with those of one")
    args = flags.parse_args()
    config = config_of(args)
    config = dataclasses.replace(config, sampling=config.sampling_with(steps=args.evaluations, sampler="ddim"))
    if args.shapes:
        publish(of_several_sizes(config, args.rounds), args.json)
        return
    if args.beside:
        publish(beside(config, args.beside, args.rounds), args.json)
        return
    contestants = {"with a cache": cached, "without a cache": uncached, "transfusion-pytorch": library}
    peak = matmul_peak({})
    for what, amount in (("images", 1), ("tokens", args.tokens)):
        size = f"width {config.model.width}, {config.model.layers} layers, batch {config.batch_rows}"
        title = f"{what}: {size}, {args.evaluations} evaluations" if what == "images" else f"{what}: {size}"
        runs = {name: harness.apart(make, config, what, amount)[0] for name, make in contestants.items()}
        work = dict.fromkeys(runs, float(config.batch_rows * amount))
        notes = LIBRARY_NOTES if what == "images" else []
        report = compare(title, runs, "transfusion-pytorch", args.rounds, work, f"{what}/s", notes=notes)
        publish(report, args.json)
    print(latencies(config, args.tokens, peak.flops))


def cached(config: Config, what: str, amount: int) -> tuple[Callable[[], object], None]:
    """The project's own."""
    task, params, codec = ours(config)
    params = task.model.by_layer(params)
    follow = "image" if what == "images" else "text"
    requests = [Request(prompt(config, row), follow, 0, row) for row in range(config.batch_rows)]
    writing = Writing(max_tokens=amount)
    return lambda: generate(task, params, codec, requests, writing=writing), None


def beside(config: Config, revision: str, rounds: int) -> harness.Report:
    """Images of one size, by this tree and by another revision."""
    commit = commit_of(revision)
    if commit is None:
        raise SystemExit(f"{revision} is no revision of this repository")
    with trees(revision, commit) as (this, other):
        runs = {
            name: harness.apart(cached, config, "images", 1, tree=tree)[0]
            for name, tree in (("this tree", this.code), (revision, other.code))
        }
        size = f"width {config.model.width}, {config.model.layers} layers, batch {config.batch_rows}"
        title = f"images of one size: {size}, {config.sampling.steps} evaluations"
        work = dict.fromkeys(runs, float(config.batch_rows))
        return compare(title, runs, revision, rounds, work, "images/s")


def of_several_sizes(config: Config, rounds: int) -> harness.Report:
    """As many images of one size and of several, with as many patches in all, in batches of eight."""
    model = dataclasses.replace(config.model, max_side=64, shape_marks=True)
    config = dataclasses.replace(config, model=model, batch_rows=len(SEVERAL))
    runs = {
        name: harness.apart(cached_shapes, config, grids)[0]
        for name, grids in (("one size", [ONE] * len(SEVERAL)), ("several sizes", SEVERAL))
    }
    patches = float(sum(rows * columns for rows, columns in SEVERAL))
    title = (
        f"images of {len(set(SEVERAL))} shapes: width {model.width}, {model.layers} layers, {len(SEVERAL)} images"
    )
    return compare(title, runs, "one size", rounds, dict.fromkeys(runs, patches), "patches/s")


def cached_shapes(config: Config, grids: list[tuple[int, int]]) -> tuple[Callable[[], object], None]:
    """Images of these rows and columns of patches."""
    task, params, codec = ours(config)
    params = task.model.by_layer(params)
    requests = [Request(prompt(config, row), "image", 0, row, grid) for row, grid in enumerate(grids)]
    return lambda: generate(task, params, codec, requests), None


def uncached(config: Config, what: str, amount: int) -> tuple[Callable[[], object], None]:
    """The same, the whole row computed each time."""
    task, params, codec = ours(config)
    documents = [prompt(config, row) for row in range(config.batch_rows)]
    keys = jax.random.split(jax.random.key(0), config.batch_rows)
    if what == "images":
        return lambda: reference.draw_latents(task, params, codec, documents, keys, config.sampling), None
    return lambda: reference.write_greedily(task, params, codec, documents, amount), None


def library(config: Config, what: str, amount: int) -> tuple[Callable[[], object], None]:
    """transfusion-pytorch's `sample_many` and `generate_text_only`."""
    loguru.logger.remove()  # it speaks after each image, and draws bars
    transfusion_pytorch.transfusion.tqdm = functools.partial(tqdm.tqdm, disable=True)
    model = library_model(config.model, odeint_kwargs={"method": "euler"}).eval()
    tokens = torch.randint(config.model.vocabulary - LIBRARY_MARKS, (config.batch_rows, PROMPT))

    @torch.inference_mode()
    def run() -> object:
        if what == "tokens":
            return model.generate_text_only(tokens, PROMPT + amount, temperature=0.0)
        return model.sample_many(
            list(tokens),
            max_length=1,  # it ends after the image
            force_modality_at_start=0,
            modality_steps=config.sampling.steps + 1,  # timesteps; one evaluation between two
            cfg_scale=GUIDANCE,
        )

    return run, None


def latencies(config: Config, tokens: int, peak: float) -> str:
    """Time to the first token and for each after it, by batch; a step of denoising beside the matmul peak."""
    task, params, codec = ours(config)
    params = task.model.by_layer(params)
    lines = ["", "batch   first token   each token after it   evaluation of an image   of the matmul peak"]
    for batch in BATCHES:
        requests = [Request(prompt(config, row), "text", 0, row) for row in range(batch)]
        first, rest = zip(*(first_and_rest(task, params, codec, requests, tokens) for _ in range(4)), strict=True)
        seconds = evaluation_seconds(task, params, codec, batch)
        share = 2 * batch * image_flops(config) / seconds / peak
        times = statistics.median(first[1:]) * 1e3, statistics.median(rest[1:]) * 1e3
        lines.append(
            f"{batch:5}   {times[0]:8.1f} ms   {times[1]:16.2f} ms   {seconds * 1e3:19.1f} ms   {share:18.0%}"
        )
    return "\n".join(lines)


def first_and_rest(
    task: TransfusionTask, params: Params, codec: Codec, requests: list[Request], tokens: int
) -> tuple[float, float]:
    """Seconds to the first tokens, and for each one after them."""
    begin, first, last = time.perf_counter(), 0.0, 0.0
    for event in stream(task, params, codec, requests, writing=Writing(max_tokens=tokens), chunk=1):
        last = time.perf_counter() - begin
        if isinstance(event, Wrote) and not first:
            first = last
    return first, (last - first) / (tokens - 1)


def evaluation_seconds(task: TransfusionTask, params: Params, codec: Codec, batch: int) -> float:
    """Seconds of one evaluation for a batch of images, from the difference of two numbers of them."""

    def seconds(steps: int) -> float:
        requests = [Request(prompt(task.config, row), "image", 0, row) for row in range(batch)]
        sampling = task.config.sampling_with(steps=steps)
        begin = time.perf_counter()
        generate(task, params, codec, requests, sampling)
        return time.perf_counter() - begin

    seconds(2)
    few, many = (statistics.median(seconds(steps) for _ in range(3)) for steps in (2, 6))
    return (many - few) / 4


def image_flops(config: Config) -> float:
    """Operations of a forward pass over one image's patches: its products with weights."""
    model = config.model
    weights = model.layers * (4 * model.width**2 + 3 * model.width * model.mlp_width)
    return 2.0 * model.patches * (weights + 2 * model.width * model.patch_channels)


def ours(config: Config) -> tuple[TransfusionTask, Params, Codec]:
    """A task, random weights, and a codec of numbers and latents as they are."""
    task = TransfusionTask(config)
    vocabulary = config.model.vocabulary
    statistics_ = plain_statistics(config.model.latent_shape[2])
    codec = Codec(Numbers(vocabulary), SpecialTokens.after(vocabulary), Identity(), statistics_)
    return task, jax.jit(task.init)(jax.random.key(0)), codec


def prompt(config: Config, row: int) -> Document:
    """A text of random tokens."""
    random: Any = np.random.default_rng(row)
    return Document((Text(random.integers(0, config.model.vocabulary, PROMPT).astype(np.int32)),))


if __name__ == "__main__":
    main()
