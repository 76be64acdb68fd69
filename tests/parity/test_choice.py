"""Which tokens are left, against the filters of Hugging Face transformers."""

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from transfusion_jax.generation.token_sampling import Writing, likelier

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"), [(5, 1.0, 0.0), (0, 0.9, 0.0), (0, 1.0, 0.1), (50, 0.8, 0.02), (3, 0.3, 0.5)]
)
def test_the_same_tokens_are_left(temperature, top_k, top_p, min_p):
    logits = np.random.default_rng(0).normal(scale=3, size=(50, 200)).astype(np.float32)
    writing = Writing(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    theirs = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        theirs.append(TopKLogitsWarper(top_k))
    theirs += [TopPLogitsWarper(top_p), MinPLogitsWarper(min_p)]
    expected = theirs(torch.zeros((50, 1), dtype=torch.long), torch.tensor(logits)).numpy()
    found = likelier(logits / temperature, writing.chances())
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
