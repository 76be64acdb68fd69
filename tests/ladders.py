"""Ladders whose laws are known."""

import json

import numpy as np

from transfusion_jax.scaling.points import Point, Rung

SIZES = {"0.2M": 2e5, "0.4M": 4e5, "0.8M": 8e5, "1.6M": 1.6e6, "3.2M": 3.2e6}


def rungs(scores, flops=None, family="ours"):
    flops = np.geomspace(1e12, 1e16, len(scores)) if flops is None else flops
    return [
        Rung(family, f"s{i}", 1e9, float(c), float(s), (float(s),))
        for i, (c, s) in enumerate(zip(flops, scores, strict=True))
    ]


def seeded(law, flops, runs, noise, rng, family="ours"):
    """Rungs of so many runs each, with noise on the logarithms."""
    found = []
    for number, (c, count) in enumerate(zip(flops, runs, strict=True)):
        seeds = law(c) * np.exp(noise * rng.standard_normal(count))
        score = float(np.exp(np.log(seeds).mean()))
        found.append(Rung(family, f"s{number}", 1e9, float(c), score, tuple(seeds.tolist())))
    return found


def point(family="ours", size="0.2M", elements=1e7, seed=0, about=None, **scores):
    n = SIZES[size]
    return Point(family, size, n, elements, 6 * n * elements, 7 * n * elements, seed, scores, about or {})


def ladder(laws, noise=0.0, seeds=(0,), elements=(1e7,)):
    """Points of `{family: {metric: score of FLOPs}}`, with noise on the logarithms."""
    rng = np.random.default_rng(0)
    return [
        point(
            family,
            size,
            d,
            seed,
            **{
                name: float(law(6 * n * d) * np.exp(noise * rng.standard_normal())) for name, law in metrics.items()
            },
        )
        for family, metrics in laws.items()
        for size, n in SIZES.items()
        for d in elements
        for seed in seeds
    ]


def write(path, points):
    """The points as the JSON lines that a ladder leaves."""
    names = "family", "size", "parameters", "elements", "flops_6nd", "flops_exact", "seed"
    lines = [{name: getattr(p, name) for name in names} | dict(p.scores) | dict(p.about) for p in points]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
