from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from helpers import tiny_config, token_config
from transfusion_jax.config import SamplingConfig
from transfusion_jax.generation.guidance import branch_weights, branches_of, combine_branches, untrained_branch

BOTH = np.random.default_rng(0).normal(size=(3, 2, 4, 4, 1)).astype(np.float32)  # of two images in three branches
PROMPT, IMAGES, NOTHING = BOTH


@pytest.mark.parametrize(
    ("guidance", "image_guidance", "pictured", "branches"),
    [(1, 0, True, 1), (3, 0, True, 2), (3, 3, True, 2), (3, 1.5, True, 3), (1, 1.5, True, 3), (3, 1.5, False, 2)],
)
def test_there_are_as_many_branches_as_scales(guidance, image_guidance, pictured, branches):
    assert branches_of(SamplingConfig(guidance=guidance, image_guidance=image_guidance), pictured) == branches


def test_predictions_are_led_away_from_the_branches_that_see_less():
    two = guided(SamplingConfig(guidance=3.0), 2)
    np.testing.assert_allclose(two, IMAGES + 3 * (PROMPT - IMAGES), rtol=1e-5, atol=1e-5)
    three = guided(SamplingConfig(guidance=3.0, image_guidance=1.5), 3)
    expected = NOTHING + 1.5 * (IMAGES - NOTHING) + 3 * (PROMPT - IMAGES)
    np.testing.assert_allclose(three, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(guided(SamplingConfig(guidance=1.0), 1), PROMPT)


@pytest.mark.parametrize("family", [tiny_config, token_config])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("first", [0.0, 0.2, 1.0])
def test_guidance_against_a_branch_that_is_not_trained_is_said(family, dropout, first):
    config = family(data__caption_dropout=dropout, data__image_first=first)
    limit = config.diffusion.image_first_limit  # 500 of 1000 with latents
    trained = 1000 if dropout and first < 1 else limit if first else 0
    lines = untrained_branch(config)
    if trained == 1000:
        assert lines == []
        return
    where = f"above t = {trained} of 1000" if trained else "at all"
    assert lines[0].startswith(
        f"guidance 3 needs training on images with nothing before them, and this run has none {where}"
    )
    assert untrained_branch(config, replace(config.sampling, guidance=1.0)) == []
    below = untrained_branch(config, replace(config.sampling, guidance_interval=(0.0, 0.5)))
    assert bool(below) == (trained < 500)
    apart = replace(config.sampling, guidance=1.0, image_guidance=1.5)
    assert untrained_branch(config, apart)


def test_a_model_of_text_alone_is_not_guided():
    assert untrained_branch(token_config("none", data__caption_dropout=0.0, data__image_first=0.0)) == []


def test_guidance_acts_in_its_interval_alone():
    sampling = SamplingConfig(guidance=4.0, guidance_interval=(0.2, 0.5))
    weights = branch_weights(sampling, 2, np.array([0.9, 0.5, 0.3, 0.2, 0.1]))
    np.testing.assert_array_equal(weights, [(1, 0), (4, -3), (4, -3), (4, -3), (1, 0)])


def test_rescaling_brings_back_the_deviation_of_the_first_branch():
    plain = guided(SamplingConfig(guidance=5.0), 2)
    for rescale in (0.0, 0.7, 1.0):
        found = guided(SamplingConfig(guidance=5.0), 2, rescale)
        factor = PROMPT.std((1, 2, 3)) / plain.std((1, 2, 3)) * rescale + 1 - rescale
        np.testing.assert_allclose(found, plain * factor[:, None, None, None], rtol=1e-5)


def guided(sampling, branches, rescale=0.0):
    weights = branch_weights(sampling, branches, np.array([0.5]))[0]
    return np.asarray(combine_branches(jnp.asarray(BOTH[:branches].reshape(-1, *BOTH.shape[2:])), weights, rescale))
