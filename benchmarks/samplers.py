"""How many steps are enough: digits drawn by each sampler, on a trained model.

    python benchmarks/samplers.py --workdir runs/digits
    python benchmarks/samplers.py --workdir runs/digits --least-signal

200 digits for each; the judge is that of `transfusion evaluate --suite digits`. As few steps content it, Fréchet's
distance of the pixels to the digits trained on is measured, too. The last line is of as many held-out digits.

With `--least-signal`, the rows are values of `sampler.LEAST_SIGNAL`, for `dpm++` without the bounds of the pixels,
which most latents do not have.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from typing import Any

import numpy as np

from transfusion_jax.commands.common.load_model import read_model
from transfusion_jax.commands.flags.shared import add_weights
from transfusion_jax.data.datasets import Codec
from transfusion_jax.data.readers import digits
from transfusion_jax.diffusion import sampler as samplers
from transfusion_jax.evaluation.suites.digits import captioned_digits, digit_captions, digit_features, fit_judge
from transfusion_jax.evaluation.suites.frechet import Statistics, distance
from transfusion_jax.generation.single import draw_images
from transfusion_jax.tasks.transfusion import TransfusionTask
from transfusion_jax.training.facts import data_of

STEPS = (1, 2, 5, 10, 20, 50, 100, 250)
FEW = (1, 2, 4, 8, 16, 50)
LEAST_SIGNALS = (0.006, 0.018, 0.03, 0.05)
IMAGES = 200


class Unbounded(Codec):
    """The codec as if its autoencoder did not bound its latents."""

    def bounds(self) -> None:
        """None."""


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_weights(parser)
    parser.add_argument(
        "--least-signal", action="store_true", help="measure where, in signal over noise, to evaluate ε"
    )
    arguments = parser.parse_args()
    task, params, workdir, _, _ = read_model(arguments, print)
    if not isinstance(task, TransfusionTask):
        raise SystemExit("samplers are of latents: this run is of another family")
    data = data_of(workdir, task.config)
    seen, unseen = (captioned_digits(corpus, data.codec) for corpus in (data.train, data.held_out))
    judge, real = fit_judge(seen), statistics(seen.images)
    asked, texts = np.arange(IMAGES) % len(digits.NAMES), digit_captions(IMAGES)

    def measured(codec: Codec, **how: Any) -> str:
        sampling = task.config.sampling_with(**how)
        draw_images(task, params, codec, texts[:100], 0, sampling)  # compiles
        begin = time.perf_counter()
        drawn = np.stack(draw_images(task, params, codec, texts, 1, sampling)).clip(-1, 1)
        seconds = time.perf_counter() - begin
        right = np.mean(judge.predict(digit_features(drawn)) == asked)
        return f"{right:.1%}, {distance(statistics(drawn), real):.2f}, {seconds / IMAGES * 1e3:.0f} ms"

    def line(first: str, cells: list[str]) -> None:
        print(f"| {first} |", *(f"{cell} |" for cell in cells), flush=True)

    counts = FEW if arguments.least_signal else STEPS
    line("least signal" if arguments.least_signal else "sampler", [f"{n} step{'s' * (n > 1)}" for n in counts])
    print("|---" * (len(counts) + 1) + "|")
    if arguments.least_signal:
        codec = Unbounded(**{field.name: getattr(data.codec, field.name) for field in dataclasses.fields(Codec)})
        for least in LEAST_SIGNALS:
            samplers.LEAST_SIGNAL = least
            line(f"{least}", [measured(codec, sampler="dpm++", steps=n) for n in counts])
    else:
        for sampler in samplers.samplers_of(task.schedule):
            line(f"`{sampler}`", [measured(data.codec, sampler=sampler, steps=n) for n in counts])
    right = judge.score(digit_features(unseen.images[:IMAGES]), unseen.labels[:IMAGES])
    print(f"real digits: {right:.1%}, {distance(statistics(unseen.images[:IMAGES]), real):.2f}")


def statistics(images: np.ndarray) -> Statistics:
    """Of the pixels."""
    return Statistics.of(images.reshape(len(images), -1))


if __name__ == "__main__":
    main()
