import importlib.util

import pytest

import gpu


def test_a_machine_without_a_gpu_is_told_of_tiny(capsys):
    with pytest.raises(SystemExit):
        gpu.parse(["--without-torch"])
    assert "no GPU that JAX sees (backend cpu" in capsys.readouterr().err


def test_a_missing_pytorch_is_said_and_may_be_left_out(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        gpu.parse(["--tiny"])
    assert "PyTorch is not installed: install it as shown above, or pass --without-torch" in capsys.readouterr().err
    assert gpu.parse(["--tiny", "--without-torch", "--rows", "4"]).rows == 4


def test_spans_are_rows_of_the_mixture():
    (start, end), arrays = gpu.make_arrays(2, 1024, heads=2, shared=1, channels=8)
    assert start.shape == end.shape == (2, 1024)
    assert ((end - start).max(1) > 256).all()  # an image, and what stands before it
    assert [x.shape[2] for x in arrays] == [2, 1, 1, 2]
    assert {(*x.shape[:2], x.shape[3]) for x in arrays} == {(2, 1024, 8)}
