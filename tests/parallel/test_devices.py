"""A platform that JAX is told to use and cannot; how much memory is held."""

import jax
import pytest

from transfusion_jax.cli import main
from transfusion_jax.parallel import devices
from transfusion_jax.parallel.devices import GIB, describe_memory, memory


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (AssertionError(), "JAX_PLATFORMS is cuda: no such devices are here; unset it, set it to cpu, or install"),
        (RuntimeError("Unable to\ninitialize"), "JAX_PLATFORMS is cuda: Unable to initialize; unset it"),
    ],
)
def test_a_platform_that_is_not_here_is_one_sentence(error, said, monkeypatch, capsys):
    def missing():
        raise error

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", missing)
    monkeypatch.setattr("transfusion_jax.commands.sample.run", lambda *_: jax.devices())
    assert main(["sample", "--workdir", "x"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"transfusion: {said}")
    assert printed.count("\n") == 1


@pytest.mark.parametrize("platform", ["cpu", ""])
def test_another_error_stays_what_it_is(platform, monkeypatch):
    def broken(*_):
        raise RuntimeError("of another kind")

    monkeypatch.setenv("JAX_PLATFORMS", platform)
    monkeypatch.setattr("transfusion_jax.commands.sample.run", broken)
    assert devices.missing_backend() == ""
    with pytest.raises(RuntimeError, match="of another kind"):
        main(["sample", "--workdir", "x"])


class Chip:
    """A device whose backend tells; CPU's does not."""

    def __init__(self, in_use: int, peak: int):
        self.stats = {"bytes_in_use": in_use * GIB, "peak_bytes_in_use": peak * GIB, "bytes_limit": 16 * GIB}

    def memory_stats(self) -> dict[str, int]:
        return self.stats


def test_the_fullest_device_counts():
    found = memory([Chip(3, 9), Chip(4, 8)])
    assert (found["in_use_gib"], found["peak_gib"], found["limit_gib"]) == (4, 9, 16)
    assert describe_memory(found) == "memory: 4.00 of 16.00 GiB per device, 9.00 at most"


def test_a_cpu_tells_of_the_process_alone():
    found = memory(jax.local_devices())
    assert set(found) == {"host_gib", "host_peak_gib"}
    assert 0.05 < found["host_gib"] <= found["host_peak_gib"] + 0.01
    assert describe_memory(found).startswith("memory: the process holds ")
    block = bytearray(GIB // 4)
    block[::4096] = bytes([1]) * len(block[::4096])  # pages that are not touched are not held
    assert memory(jax.local_devices())["host_gib"] - found["host_gib"] == pytest.approx(0.25, abs=0.05)
