"""Commands interrupted at each of their writes: nothing is left cut, and the same command again ends as ever."""

import shutil
import socket
from argparse import Namespace

import jax
import numpy as np
import pytest

from harms import contents
from helpers import begin_tiny, tiny_codec, tiny_config
from transfusion_jax import autoencoder as autoencoders
from transfusion_jax.autoencoder import importing
from transfusion_jax.autoencoder.kinds.trained import Trained
from transfusion_jax.autoencoder.network import Network
from transfusion_jax.commands import convert as converting
from transfusion_jax.config.autoencoder import Architecture
from transfusion_jax.conversion.runs import write_run
from transfusion_jax.data.prepare import Encoders, PrepareJob, begin_job, run_job, shard
from transfusion_jax.data.prepare.run import RUNNERS
from transfusion_jax.data.readers import ReadOptions, input_shards
from transfusion_jax.data.tokenizer_files import train_byte_pairs
from transfusion_jax.evaluation import results
from transfusion_jax.generation.export import write_page
from transfusion_jax.storage import atomic
from transfusion_jax.training import run_dir as workdirs
from transfusion_jax.training.checkpoint import commit, manager
from transfusion_jax.training.checkpoint.chunks import Leaf
from transfusion_jax.training.checkpoint.manager import Checkpoints
from transfusion_jax.training.run_dir import Workdir

SMALL = Architecture("kl", channels=8, multipliers=(1, 2), blocks=1, groups=4, latent_channels=3)


class Killed(BaseException):
    """What nothing catches."""


def here(folder, job, todo, workers):
    """The runner of this process."""
    for number in todo:
        yield shard.prepare_shard(folder, job, number)


def prepare(folder):
    tokenizer = train_byte_pairs(["a red circle", "two blue squares"], 300)
    reading = ReadOptions(image_size=8, shard_size=3)
    job = PrepareJob(tuple(input_shards(["shapes:6"], None, reading)), reading, tokenizer.name, held_out=0.3)
    begin_job(job, tokenizer, folder)
    coder = autoencoders.load_autoencoder("dct-f4c12")
    with Encoders(folder, job, coder, log_variances=False) as encoders:
        run_job(folder, job, range(len(job.shards)), "here", 1, lambda progress: None, encoders)


def keep_autoencoder(folder):
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), Network(SMALL).abstract_params())
    autoencoders.save(Trained("small", SMALL, params), folder)


def begin_a_run(folder):
    workdir = Workdir(folder)
    with workdir.locked():
        if not workdir.exists():
            begin_tiny(workdir, "start")


def evaluate(folder):
    results.write_entry(Workdir(folder), {"step": 4, "metrics": {"loss": 1.0}})


def convert(folder):
    """What to-safetensors and to-hf write alike, in two files of tensors."""
    asked = Namespace(output=folder, dtype="float32", max_shard_size="1KB")
    leaves = {"a": np.arange(200.0), "b": np.ones(200)}
    shapes = {name: leaf.shape for name, leaf in leaves.items()}
    converting.begin_conversion(asked, shapes, ((name, (slice(None),), leaf) for name, leaf in leaves.items()))
    about = dict(library="transfusion_jax", title="# A model", run="run", which="step 1", left_out="All.")
    converting.end_folder(folder, tiny_config(), language="sh", usage="transfusion", **about)


def autoencoder_out(folder):
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), Network(SMALL).abstract_params())
    importing.write_diffusers(Trained("small", SMALL, params), folder)


def draw(folder):
    write_page(folder / "samples.html", [], {"steps": 4})


COMMANDS = {"prepare": (prepare, 20), "autoencoder": (keep_autoencoder, 2), "train": (begin_a_run, 2)}
COMMANDS |= {"convert": (convert, 5), "autoencoder-out": (autoencoder_out, 2)}
COMMANDS |= {"evaluate": (evaluate, 1), "sample": (draw, 1)}

SWEPT = ("prepare", "train", "convert")  # leave nothing of what was killed


@pytest.mark.parametrize("command", COMMANDS)
def test_the_same_command_ends_with_the_same_files(command, tmp_path, monkeypatch):
    write, least = COMMANDS[command]
    put, left = atomic.put, [10**9, False]

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

    monkeypatch.setattr(atomic, "put", killed_at)
    monkeypatch.setitem(RUNNERS, "here", here)
    monkeypatch.setattr("transfusion_jax.training.run_dir.uuid.uuid4", lambda: type("Id", (), {"hex": "one"}))
    monkeypatch.setattr("transfusion_jax.training.run_dir._entry", lambda event, details: {"event": event})
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
            assert left_over <= (set() if command in SWEPT else left_over)
            assert {n: h for n, h in contents(folder).items() if n not in left_over} == expected, (at, brought)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", ["move", "write_whole", "begin", "write_json"])
def test_weights_become_a_run_after_a_kill(name, after, tmp_path, monkeypatch):
    owners = {"move": commit, "write_whole": manager, "write_json": workdirs, "begin": Workdir}
    function = getattr(owners[name], name)
    leaves = {"a": Leaf.of(np.arange(6.0, dtype=np.float32)), "b/c": Leaf.of(np.ones((2, 3), np.float32))}

    def write():
        write_run(tmp_path / "run", tiny_config(), tiny_codec(), leaves, "somewhere")

    def killed(*arguments, **options):
        if after:
            function(*arguments, **options)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(owners[name], name, killed)
        with pytest.raises(Killed):
            write()
    if Workdir(tmp_path / "run").exists():
        assert (name, after) == ("begin", True)
    else:
        write()
    checkpoints = Checkpoints(Workdir(tmp_path / "run").checkpoints)
    assert checkpoints.steps == [0]
    assert set(checkpoints.manifest(0)["leaves"]) == {"params/a", "params/b/c"}
    assert [path.name for path in checkpoints.directory.iterdir()] == ["0"]
