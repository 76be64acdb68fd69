"""A platform that JAX is told to use and cannot."""

import jax
import pytest

from transfusion_jax.cli import main
from transfusion_jax.parallel import devices


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
