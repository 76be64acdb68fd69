"""How many steps are enough: digits drawn right by each sampler, on a trained model.

    python benchmarks/samplers.py --workdir runs/digits

200 digits for each; the judge is that of `transfusion evaluate --suite digits`.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from transfusion_jax.commands.reading import add_reading_flags, read_model
from transfusion_jax.data import load as data_loading
from transfusion_jax.data.readers import digits
from transfusion_jax.diffusion.sampler import samplers_of
from transfusion_jax.evaluation.digits import features, fit_judge, pictures
from transfusion_jax.generation.images import draw
from transfusion_jax.training.transfusion import TransfusionTask

STEPS = (5, 10, 20, 50, 100, 250)
IMAGES = 200


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_reading_flags(parser)
    task, params, workdir, _, _ = read_model(parser.parse_args(), print)
    if not isinstance(task, TransfusionTask):
        raise SystemExit("samplers are of latents: this run is of another family")
    data = data_loading.load(task.config, workdir.codec().statistics)
    judge = fit_judge(pictures(data.train, data.codec))
    asked = np.arange(IMAGES) % len(digits.NAMES)
    prompts = [digits.captions(int(d))[i // 10 % len(digits.WORDINGS)] for i, d in enumerate(asked)]
    print("| sampler |", *(f"{steps} steps |" for steps in STEPS))
    print("|---" * (len(STEPS) + 1) + "|")
    for sampler in samplers_of(task.schedule):
        cells = []
        for steps in STEPS:
            sampling = task.config.sampling_with(sampler=sampler, steps=steps)
            draw(task, params, data.codec, prompts[:100], 0, sampling)  # compiles
            begin = time.perf_counter()
            drawn = draw(task, params, data.codec, prompts, 1, sampling)
            seconds = time.perf_counter() - begin
            right = np.mean(judge.predict(features(drawn)) == asked)
            cells.append(f"{right:.1%}, {seconds / IMAGES * 1e3:.0f} ms")
        print(f"| {sampler} |", *(f"{cell} |" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
