"""Commands interrupted at each of their writes: nothing is left cut, and the same command again ends as ever."""

import shutil
import socket

import jax
import numpy as np
import pytest

from harms import contents
from helpers import tiny_config, tiny_data
from transfusion_jax import autoencoder as autoencoders
from transfusion_jax import files
from transfusion_jax.autoencoder import Trained
from transfusion_jax.autoencoder.network import Network
from transfusion_jax.config.architecture import Architecture
from transfusion_jax.data import tokenizer as tokenizers
from transfusion_jax.data.prepare import Encoders, Job, begin, run, shard
from transfusion_jax.data.prepare.run import RUNNERS
from transfusion_jax.data.readers import ReadOptions, input_shards
from transfusion_jax.evaluation import results
from transfusion_jax.generation.album import write_page
from transfusion_jax.training.workdir import Workdir

SMALL = Architecture("kl", channels=8, multipliers=(1, 2), blocks=1, groups=4, latent_channels=3)


class Killed(BaseException):
    """What nothing catches."""


def here(folder, job, todo, workers):
    """The runner of this process."""
    for number in todo:
        yield shard.prepare_shard(folder, job, number)


def prepare(folder):
    tokenizer = tokenizers.train(["a red circle", "two blue squares"], 300)
    reading = ReadOptions(image_size=8, shard_size=3)
    job = Job(tuple(input_shards(["shapes:6"], None, reading)), reading, tokenizer.name, held_out=0.3)
    begin(job, tokenizer, folder)
    coder = autoencoders.load("dct-f4c12")
    with Encoders(folder, job, coder, log_variances=False) as encoders:
        run(folder, job, range(len(job.shards)), "here", 1, lambda progress: None, encoders)


def keep_autoencoder(folder):
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), Network(SMALL).abstract_params())
    autoencoders.keep(Trained("small", SMALL, params), folder)


def begin_a_run(folder):
    workdir = Workdir(folder)
    with workdir.locked():
        if not workdir.exists():
            workdir.begin(tiny_config(), tiny_data(), "start")


def evaluate(folder):
    results.write(Workdir(folder), {"step": 4, "metrics": {"loss": 1.0}})


def write_weights(folder):
    leaves = {"a": Leaf.of(np.arange(6.0, dtype=np.float32)), "b/c": Leaf.of(np.ones((2, 3), np.float32))}
    if not Workdir(folder).exists():
        write_run(folder, tiny_config(), tiny_codec(), leaves, "somewhere")


def convert(part):
    def run(folder):
        source = folder.parent / "source"
        if not source.exists():
            tiny_run(source, tiny_config(steps=1))
            manifest = read_json(source / "manifest.json", "")
            numbers = {"tokenizer": "numbers-20", "tokenizer_hash": tokenizers.hash_of(tokenizers.Numbers(20))}
            write_json(source / "manifest.json", manifest | {"codec": manifest["codec"] | numbers})
        options = ["--output", str(folder), "--weights", "raw", "--max-shard-size", "4KB"]
        assert main(["convert", part, "--workdir", str(source), *options]) == 0

    return run


def autoencoder_out(folder):
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), Network(SMALL).abstract_params())
    importing.write(Trained("small", SMALL, params), folder)


def draw(folder):
    write_page(folder / "samples.html", [], {"steps": 4})


COMMANDS = {"prepare": (prepare, 20), "autoencoder": (keep_autoencoder, 2), "train": (begin_a_run, 2)}
COMMANDS |= {"to-safetensors": (convert("to-safetensors"), 6), "autoencoder-out": (autoencoder_out, 2)}
COMMANDS |= {"from-safetensors": (write_weights, 3), "to-llama": (convert("to-llama"), 6)}
COMMANDS |= {"evaluate": (evaluate, 1), "sample": (draw, 1)}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_same_command_ends_with_the_same_files(command, tmp_path, monkeypatch):
    write, least = COMMANDS[command]
    put, left = files.put, [10**9, False]

    def killed_at(file, at):
        """The last of so many files is written beside its place, and in every second case brought there as well."""
        left[0] -= 1
        if left[0]:
            return put(file, at)
        if left[1]:
            put(file, at)
        else:
            shutil.copy(file, at.with_name(f"{at.name}.{socket.gethostname()}-{2**22 + 1}-1.tmp"))
        raise Killed

    monkeypatch.setattr(files, "put", killed_at)
    monkeypatch.setitem(RUNNERS, "here", here)
    monkeypatch.setattr("transfusion_jax.training.workdir.uuid.uuid4", lambda: type("Id", (), {"hex": "one"}))
    monkeypatch.setattr("transfusion_jax.training.workdir._entry", lambda event, details: {"event": event})
    write(tmp_path / "clean")
    expected = contents(tmp_path / "clean")
    number = 10**9 - left[0]
    assert number >= least
    for at in range(1, number + 1):
        for brought in (False, True):
            folder = tmp_path / f"{at}-{brought}"
            left[:] = at, brought
            with pytest.raises(Killed):
                write(folder)
            there = contents(folder)
            assert all(expected[name] == there[name] for name in there if name in expected), (at, brought)
            left[0] = 10**9
            write(folder)
            left_over = {name for name in contents(folder) if name.endswith(".tmp")}
            assert left_over <= (set() if command in ("prepare", "train") else left_over)
            assert {n: h for n, h in contents(folder).items() if n not in left_over} == expected, (at, brought)
