"""How much memory the commands take, as the benchmark measures it."""

import pytest

import conversion

SIZES = dict(width=256, mlp_width=4096, vocabulary=512)
MATRIX = 4 * 256 * 4096  # bytes of a layer's largest
FEW, MANY = 5, 20  # layers


@pytest.mark.slow
@pytest.mark.parametrize("command", ["from-hf", "to-hf"])
def test_more_layers_take_no_more_memory(command, peaks):
    grown = peaks[MANY][command] - peaks[FEW][command]
    assert grown < (MANY - FEW) * MATRIX / 2, f"{grown / 1e6:.0f} MB"


@pytest.fixture(scope="module")
def peaks():
    """Bytes at the peak of each command, by the number of layers."""
    return {n: conversion.peaks(layers=n, commands=("from-hf", "to-hf"), **SIZES) for n in (FEW, MANY)}
