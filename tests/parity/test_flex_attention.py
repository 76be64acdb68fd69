"""What benchmarks/gpu.py compares with: the same attention; and the whole command, at sizes for a CPU."""

import json

import numpy as np
import pytest
import torch

import gpu
from layouts import LAYOUTS, LENGTH, layout_spans, random_arrays
from pytorch_attention import ATTENTIONS
from transfusion_jax.kernels.attention.reference import attention as reference

pytestmark = pytest.mark.parity


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", ATTENTIONS)
def test_pytorchs_attention_is_the_reference(name):
    spans = layout_spans(list(LAYOUTS))
    arrays = random_arrays(3, (len(LAYOUTS), LENGTH, 2, 16))
    attention = ATTENTIONS[name]
    mask = attention.mask(*(torch.tensor(np.asarray(x)) for x in spans))
    actual = attention.attend(*(torch.tensor(np.asarray(x)).transpose(1, 2) for x in arrays), mask)
    np.testing.assert_allclose(actual.transpose(1, 2), reference(*arrays, *spans), rtol=1e-4, atol=1e-5)


def test_flex_attention_skips_the_blocks_that_no_span_touches():
    start = torch.arange(512)[None] // 256 * 256  # two documents
    mask = ATTENTIONS["flex"].mask(start, start + 256)
    np.testing.assert_array_equal(mask.to_dense()[0, 0], np.kron(np.eye(2), np.ones((2, 2))))


def test_the_command_runs(tmp_path, capsys):
    gpu.main(["--tiny", "--rounds", "2", "--json", str(tmp_path / "report.json")])
    printed, report = capsys.readouterr().out, json.loads((tmp_path / "report.json").read_text())
    assert [(e["group"], e["array"]) for e in report["errors"]] == [
        (group, array) for group in (1, 2) for array in ("out", "d_q", "d_k", "d_v")
    ]
    *attentions, step = report["reports"]
    assert len(attentions) == 2 * 2  # forward, and both passes, of each number of heads
    for attention in attentions:
        assert set(attention["timings"]) >= {"transfusion_jax", "XLA, dense mask", "PyTorch SDPA"}
    assert set(step["timings"]) == {"transfusion_jax", "PyTorch, sdpa"}
    assert all(report["title"] in printed for report in report["reports"])
    assert "elements/s" in printed
