import os
import subprocess
import sys

import pytest

from transfusion_jax.parallel import flags

ASK = "import transfusion_jax, jax, os; jax.devices(); print(os.environ['XLA_FLAGS'])"


def ask(xla_flags: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"XLA_FLAGS": xla_flags, "JAX_PLATFORMS": "cpu"}
    return subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True)


def test_xla_knows_every_flag_of_the_table():
    known = [str(flag) for flag in flags.flags_of("gpu") if flag.variable == flags.XLA]
    process = ask(" ".join(known))
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == known  # nothing was added a second time
    assert "Unknown flag" in ask("--xla_gpu_no_such_flag=1").stderr  # or the above would show nothing


def test_what_the_user_set_stays_and_the_rest_is_added_once():
    environment = {flags.XLA: "--xla_gpu_enable_pipelined_all_gather=false --xla_other"}
    flags.apply("gpu", environment)
    words = environment[flags.XLA].split()
    assert words[:2] == ["--xla_gpu_enable_pipelined_all_gather=false", "--xla_other"]
    assert "--xla_gpu_enable_pipelined_all_gather=true" not in words
    assert "--xla_gpu_enable_pipelined_reduce_scatter=true" in words
    once = dict(environment)
    flags.apply("gpu", environment)
    assert environment == once
    assert flags.LIBTPU not in environment


@pytest.mark.parametrize("platform", flags.FLAGS)
def test_each_platform_has_its_own_and_the_cpus(platform):
    environment: dict[str, str] = {}
    flags.apply(platform, environment)
    names = {flag.name for flag in flags.FLAGS[platform] + flags.FLAGS["cpu"]}
    found = {word.lstrip("-").partition("=")[0] for words in environment.values() for word in words.split()}
    assert found == names
    assert (flags.LIBTPU in environment) == (platform == "tpu")


def test_devices_that_compute_together_on_a_cpu_have_threads_to_wait_in():
    def threads(environment):
        flags.apply("cpu", environment)
        return environment.get("NPROC")

    assert threads({}) is None  # alone, more threads than cores are of no use
    assert threads({flags.XLA: "--xla_force_host_platform_device_count=1"}) is None
    assert threads({flags.XLA: "--xla_force_host_platform_device_count=8"}) == "64"
    assert threads({flags.XLA: "--xla_force_host_platform_device_count=8", "NPROC": "3"}) == "3"
    assert os.environ["NPROC"] == "64"
    assert "NPROC" not in flags.in_force()  # or hosts that set it differently would be refused


@pytest.mark.parametrize(
    ("told", "files", "modules", "expected"),
    [
        ("", (), ("libtpu", "jax_cuda13_plugin"), "cpu"),
        ("", ("/dev/nvidia0",), ("jax_cuda13_plugin",), "gpu"),
        ("", ("/dev/nvidia0",), (), "cpu"),  # JAX would take its CPU; `check_backend` refuses that
        ("", ("/dev/vfio/0",), ("libtpu",), "tpu"),
        ("cuda,cpu", (), (), "gpu"),
        ("cpu", ("/dev/accel0",), ("libtpu",), "cpu"),
    ],
)
def test_the_platform_is_told_without_starting_it(monkeypatch, told, files, modules, expected):
    monkeypatch.setenv("JAX_PLATFORMS", told)
    monkeypatch.setattr(flags, "_exists", lambda names: bool(set(names) & set(files)))
    monkeypatch.setattr(flags, "_installed", lambda names: bool(set(names) & set(modules)))
    assert flags.expected_platform() == expected


def test_an_unknown_platform_has_the_cpus_alone():
    assert flags.flags_of("rocm") == flags.FLAGS["cpu"]
