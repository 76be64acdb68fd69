import subprocess
import sys
from dataclasses import dataclass

import jax
import pytest

from helpers import tiny_config
from transfusion_jax.data.batch import abstract_batch, bytes_of_batch
from transfusion_jax.planning import compile, libtpu
from transfusion_jax.planning.compile import compile_for, compile_step
from transfusion_jax.planning.topology import parse_topology


def test_the_version_is_that_of_the_lock():
    with open("requirements/tpu.txt") as lock:
        assert f"libtpu=={libtpu.VERSION}\n" in lock.read()


def test_without_a_network_one_sentence_says_how(monkeypatch, tmp_path):
    monkeypatch.setenv("TRANSFUSION_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv(libtpu.FOLDER, raising=False)
    with pytest.raises(
        libtpu.NoCompiler, match=r"pip could not install it .*TRANSFUSION_LIBTPU=DIR; or pass --analytic"
    ):
        libtpu.environment()
    assert not any(tmp_path.iterdir())


def test_a_named_folder_is_taken_or_refused(monkeypatch, tmp_path):
    monkeypatch.setenv(libtpu.FOLDER, str(tmp_path))
    with pytest.raises(libtpu.NoCompiler, match="holds no libtpu"):
        libtpu.folder()
    (tmp_path / "libtpu").mkdir()
    assert libtpu.folder() == tmp_path
    environment = libtpu.environment()
    assert environment["PYTHONPATH"].startswith(str(tmp_path))
    assert environment["JAX_PLATFORMS"] == "cpu"
    assert "--xla_enable_async_all_gather=true" in environment["LIBTPU_INIT_ARGS"]  # as train does on a TPU
    assert str(tmp_path) not in sys.path


@pytest.mark.slow
def test_a_step_is_compiled_for_chips_that_are_not_there():
    """Weights are gathered in bfloat16, for each layer; and the second time nothing is compiled."""
    config = tiny_config(
        model__width=256,
        model__mlp_width=512,
        model__layers=4,
        model__remat="full",
        model__attention="reference",
        data__context_length=128,
        batch_rows=8,
        mesh=dict(data=1, fsdp=4),
    )
    compiled = compile_for(config, parse_topology("v5e:2x2"))
    assert not compiled.too_large
    assert 0 < compiled.temporary < compiled.bytes
    rows = abstract_batch(config)
    assert compiled.evaluation == bytes_of_batch(rows)  # so small a pass takes no memory beside the chip's own
    gathers = [c for c in compiled.counts.collectives if c.kind == "all-gather" and c.bytes > 1e5]
    assert {c.dtype for c in gathers} == {"bf16"}
    assert {c.axes for c in gathers} == {("fsdp",)}
    weights = 2 * 4 * (4 * 256**2 + 3 * 256 * 512)  # bytes in bfloat16 of all layers
    assert sum(c.bytes for c in gathers) > 2 * weights * 3 / 4  # forward and backward
    matrices = (
        2 * 8 * 128 * (4 * 256**2 + 3 * 256 * 512) * 4 / 4
    )  # operations of one pass over the layers on one chip
    assert 3.5 < compiled.counts.flops / matrices < 5
    assert not compiled.counts.open_loops
    assert compile_for(config, parse_topology("v5e:2x2")) == compiled


@pytest.mark.parametrize("every", [1, 0])
def test_a_plan_compiles_the_evaluation_too(every, monkeypatch, tmp_path):
    """On a CPU, whose programs are compiled the same way."""
    monkeypatch.setenv("TRANSFUSION_CACHE", str(tmp_path))
    monkeypatch.setattr(compile, "count_program", lambda text, mesh: text)
    compiled = compile_step(tiny_config(model__layers=1, loop__evaluate_every=every), jax.devices()[:1])
    assert (compiled.evaluation > 0) == bool(every)
    assert compiled.bytes == compiled.arguments + max(compiled.temporary, compiled.evaluation) + compiled.code
    assert len(list((tmp_path / "planned").iterdir())) == 1 + bool(every)


@dataclass(frozen=True)
class Device:
    device_kind: str
    number: int = 0

    def __str__(self):
        return f"TPU_{self.number}"


def test_what_was_compiled_is_not_taken_for_another_chip_machine_program_or_flags(monkeypatch):
    v5e = [Device("TPU v5 lite")]
    first = compile.program_place("program", v5e)
    assert compile.program_place("program", v5e) == first
    others = [
        compile.program_place("program", [Device("TPU v6 lite")]),
        compile.program_place("program", [*v5e, Device("", 1)]),
    ]
    others.append(compile.program_place("another", v5e))
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--more")
    others.append(compile.program_place("program", v5e))
    assert len({first, *others}) == 5


def test_a_mesh_may_split_the_axes_of_a_torus():
    """Of 4 × 4 × 4 chips no axes make 32."""
    program = (
        "from jax.experimental.topologies import get_topology_desc as of;"
        "from transfusion_jax.config import MeshConfig; from transfusion_jax.parallel.mesh import make_mesh;"
        "print(make_mesh(MeshConfig(data=2, fsdp=32), of(platform='tpu', topology_name='v5p:4x4x4').devices).size)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=libtpu.environment(), capture_output=True, text=True, check=False)
    assert done.stdout.split()[-1:] == ["64"], done.stderr
