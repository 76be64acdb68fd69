"""More steps never draw worse: every sampler, from 1 step to T, on a mixture of normals, of which all is known.

Samplers without noise are held to the probability flow from the same noise, the ancestral one to the mixture.
"""

import functools
import itertools
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfusion_jax.config import OBJECTIVES
from transfusion_jax.diffusion.noise_schedules import cosine, linear, straight
from transfusion_jax.diffusion.sampler import DIFFUSION, STRAIGHT, make_steps, noisiest_asked, sample, take_step

MEANS, STDS, SHARES = np.array([-1.2, 0.3, 1.5]), np.array([0.15, 0.4, 0.25]), np.array([0.5, 0.3, 0.2])
OF_HUNDRED = [*range(1, 17), 20, 25, 33, 34, 50, 51, 60, 67, 75, 99, 100]
OF_THOUSAND = [1, 2, 3, 4, 7, 8, 16, 32, 50, 64, 128, 250, 334, 501, 600, 750, 1000]
RISE = 1.05
FLOOR = 0.001  # of a deviation of about 1: what it costs to ask for ε no later than at `LEAST_SIGNAL`
LUCK = 0.02  # by which the distances of two draws differ

PATHS = {"cosine": cosine, "linear": linear, "straight": straight}
WAYS = [  # schedule, objective, sampler
    *itertools.product(("cosine", "linear"), ("epsilon", "v", "x"), DIFFUSION),
    *itertools.product(("straight",), ("flow",), STRAIGHT),
]


@pytest.mark.parametrize(("schedule", "objective", "sampler"), WAYS)
def test_more_steps_are_never_worse(schedule, objective, sampler):
    never_rises(PATHS[schedule](100), objective, sampler, OF_HUNDRED)


@pytest.mark.parametrize(("schedule", "objective", "sampler"), [w for w in WAYS if w[1] in ("epsilon", "flow")])
def test_nor_are_they_among_a_thousand(schedule, objective, sampler):
    errors = never_rises(PATHS[schedule](1000), objective, sampler, OF_THOUSAND)
    assert errors[1000] < (2 * LUCK if sampler == "ancestral" else 0.002)


@pytest.mark.parametrize("timesteps", [1, 2, 3, 6, 12, 24])
@pytest.mark.parametrize(("schedule", "objective", "sampler"), WAYS)
def test_nor_are_they_among_a_few(schedule, objective, sampler, timesteps):
    if schedule == "linear" and timesteps <= 20:
        schedule = "cosine"  # the linear one has more
    path = PATHS[schedule](timesteps)
    never_rises(path, objective, sampler, [n for n in range(1, timesteps + 1) if timesteps % n == 0])
    if schedule != "linear":  # of so few timesteps, the others cannot be even
        never_rises(path, objective, sampler, range(1, timesteps + 1), rise=1.3)


def test_second_order_takes_few_steps():
    path, line = cosine(1000), straight(1000)
    for count, most in ((16, 0.03), (50, 0.004)):
        assert error(path, "epsilon", "dpm++", count) < min(most, error(path, "epsilon", "ddim", count) / 2)
        assert error(line, "flow", "heun", count) < min(most, error(line, "flow", "euler", count) / 8)


@pytest.mark.parametrize("sampler", DIFFUSION)
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("spoil", ["shifted", "rippled", "rounded"])
def test_nor_are_they_with_a_learned_noise(schedule, sampler, spoil):
    """Which is never right: at the end of a schedule nearly all of a wrong ε would go into the image."""
    path = PATHS[schedule](1000)
    never_rises(path, "epsilon", sampler, [4, 16, 50, 334, 1000], spoil=SPOILT[spoil], slack=LUCK)
    for count in (1, 3, 501):
        assert np.std(follow(path, "epsilon", sampler, count, SPOILT[spoil])) < 1.1 * np.std(truth())


SPOILT = {
    "shifted": lambda eps, x: eps + 0.03,
    "rippled": lambda eps, x: eps + 0.01 * np.sqrt(2) * np.sin(37 * x),
    "rounded": lambda eps, x: eps.astype(jnp.bfloat16).astype(np.float64),
}


@pytest.mark.parametrize("count", [1, 50, 600, 1000])
def test_in_float32_it_goes_the_same_way(count):
    path = cosine(1000)
    weights = [jnp.asarray(w, jnp.float32) for w in (path.signals, path.noises)]

    def predict(x, t):
        return predicted(jnp, "epsilon", x, *(w[t] for w in weights))

    keys, steps = jax.random.split(jax.random.key(0), NOISE.size), make_steps(path, count, sampler="dpm++")
    drawn = jax.jit(lambda keys: sample(predict, keys, (), steps))(keys)
    noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0)))(keys)
    np.testing.assert_allclose(drawn, follow(path, "epsilon", "dpm++", count, x=np.float64(noise)), atol=2e-3)


@pytest.mark.parametrize("make", PATHS.values())
def test_every_count_begins_at_noise_alone(make):
    for timesteps in (25, 1000):
        path = make(timesteps)
        for count in (1, 2, timesteps // 3, timesteps // 2 + 1, timesteps - 1, timesteps):
            for objective in ("epsilon", "v", "x") if make is not straight else ("flow",):
                steps = make_steps(path, count, objective)
                assert steps.timesteps[0] == timesteps
                assert len(steps.timesteps) == count
                assert np.all(np.diff(steps.timesteps) < 0)
                np.testing.assert_array_equal(
                    steps.asked, np.minimum(steps.timesteps, noisiest_asked(path, objective))
                )


def test_only_a_predicted_noise_is_not_asked_for_at_the_end():
    assert [noisiest_asked(cosine(1000), objective) for objective in ("epsilon", "v", "x")] == [981, 1000, 1000]
    assert noisiest_asked(straight(1000), "flow") == 1000
    for timesteps in (1, 2, 3, 5, 10, 20, 100, 1000, 4000):
        path = cosine(timesteps)
        asked = noisiest_asked(path, "epsilon")
        assert 1 <= asked <= timesteps
        assert path.signals[asked] > 0.009  # a mistake grows a hundredfold at the most
        assert path.signals[asked] < (0.04 if timesteps >= 100 else 0.16)


def never_rises(path, objective, sampler, counts, rise=RISE, spoil=None, slack=FLOOR):
    """The error of each count; no more than `rise` times any before it, beside the slack."""
    errors = {count: error(path, objective, sampler, count, spoil) for count in counts}
    slack = max(slack, LUCK) if sampler == "ancestral" else slack
    for count, least in zip(counts, itertools.accumulate(errors.values(), min), strict=True):
        assert errors[count] <= rise * least + slack, (count, errors)
    return errors


def error(path, objective, sampler, count, spoil=None):
    """Root mean square from the flow's end; of the ancestral sampler, the Wasserstein distance to the mixture."""
    x = follow(path, objective, sampler, count, spoil)
    if sampler == "ancestral":
        return np.abs(np.sort(x) - np.repeat(truth(), len(x) // len(truth()))).mean()
    return np.sqrt(np.mean((x - flowed(path.signals[-1] / path.noises[-1])) ** 2))


def follow(path, objective, sampler, count, spoil=None, x=None):
    """Where a sampler leads, in float64. Fresh noise is as even as the first: its values in another order."""
    steps, random = make_steps(path, count, objective, sampler), np.random.default_rng(0)
    if x is None:
        x = np.tile(NOISE, 4) if sampler == "ancestral" else NOISE
    even, previous = x, 0 * x
    for t, *weights in zip(steps.asked, *steps.weights, strict=True):
        prediction = predicted(np, objective, x, path.signals[t], path.noises[t])
        prediction = prediction if spoil is None else spoil(prediction, x)
        fresh = random.permutation(even) if sampler == "ancestral" else 0 * x
        x, previous = take_step(x, previous, prediction, fresh, type(steps.weights)(*weights))
    return x


def predicted(xp, objective, x, signal, noise):
    """What a perfect model predicts for x."""
    image = clean(xp, x, signal, noise)
    return OBJECTIVES[objective](image, (x - signal * image) / noise, signal, noise)


def clean(xp, x, signal, noise):
    """E[x₀ | x] where x₀ is drawn from the mixture."""
    variances = (signal * STDS) ** 2 + noise**2
    away = x[..., None] - signal * MEANS
    logits = np.log(SHARES) - xp.log(variances) / 2 - away**2 / variances / 2
    shares = xp.exp(logits - logits.max(-1, keepdims=True))
    images = MEANS + signal * STDS**2 / variances * away
    return (shares * images).sum(-1) / shares.sum(-1)


@functools.cache
def flowed(ratio):
    """Where the probability flow leads from `NOISE` at that ratio of signal to noise, by Runge and Kutta.

    On the circle `cos φ x₀ + sin φ ε`, where dx/dφ = `cos φ ε − sin φ x₀`; any path is one scaled to it.
    """

    def slope(x, angle):
        image = clean(np, x, np.cos(angle), np.sin(angle))
        return (x - np.cos(angle) * image) / np.tan(angle) - np.sin(angle) * image

    angles = np.arctan2(1, ratio) * np.linspace(1, 0.02, 1000) ** 1.5
    x = NOISE
    for angle, h in zip(angles, np.diff(angles), strict=False):
        first = slope(x, angle)
        second = slope(x + h / 2 * first, angle + h / 2)
        third = slope(x + h / 2 * second, angle + h / 2)
        x = x + h / 6 * (first + 2 * second + 2 * third + slope(x + h * third, angle + h))
    return clean(np, x, np.cos(angles[-1]), np.sin(angles[-1]))


@functools.cache
def truth():
    """The mixture's quantiles, as many as there is `NOISE`."""
    grid = np.linspace(-4, 4, 8001)
    parts = [NormalDist(mean, std) for mean, std in zip(MEANS, STDS, strict=True)]
    below = [sum(s * part.cdf(g) for s, part in zip(SHARES, parts, strict=True)) for g in grid]
    return np.interp(HALVES, below, grid)


HALVES = (np.arange(400) + 0.5) / 400
NOISE = np.array([NormalDist().inv_cdf(p) for p in HALVES])
