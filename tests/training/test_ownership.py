"""A run whose folder is moved, replaced or deleted under it writes nothing there any more."""

import json
import shutil
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

from harms import contents
from helpers import begin_tiny, tiny_config, tiny_run
from transfusion_jax.config import GuardConfig
from transfusion_jax.data.prepare.job import PrepareJob, begin_job, owned_by_job
from transfusion_jax.data.readers import InputShard, ReadOptions
from transfusion_jax.data.tokenizer import ByteTokenizer
from transfusion_jax.evaluation import results
from transfusion_jax.generation.png import write_png
from transfusion_jax.storage.atomic import LostFolder, write_whole
from transfusion_jax.training.checkpoint.commit import UNFINISHED
from transfusion_jax.training.checkpoint.manager import Checkpoints
from transfusion_jax.training.loop import Hook
from transfusion_jax.training.monitoring import goodput
from transfusion_jax.training.monitoring.goodput import Attempt
from transfusion_jax.training.monitoring.heartbeat import heartbeat
from transfusion_jax.training.monitoring.metrics import open_writer
from transfusion_jax.training.monitoring.watchdog import Beat
from transfusion_jax.training.run_dir import Workdir
from transfusion_jax.training.step.bad_step_guard import new_guard
from transfusion_jax.training.step.state import State


def moved(run, other):
    run.rename(run.parent / "elsewhere")


def replaced(run, other):
    moved(run, other)
    other.rename(run)


def replaced_by_its_copy(run, other):
    moved(run, other)
    shutil.copytree(run.parent / "elsewhere", run)


def linked_to_another(run, other):
    moved(run, other)
    run.symlink_to(other, target_is_directory=True)


def deleted(run, other):
    shutil.rmtree(run)


def made_anew(run, other):
    shutil.rmtree(run)
    run.mkdir()


def emptied(run, other):
    for path in run.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def copied_over(run, other):
    shutil.copytree(other, run, dirs_exist_ok=True)


def unlocked(run, other):
    (run / "lock").unlink()


HARMS = (
    moved,
    replaced,
    replaced_by_its_copy,
    linked_to_another,
    deleted,
    made_anew,
    emptied,
    copied_over,
    unlocked,
)


def state(step):
    params = {"w": jnp.full((2, 3), float(step))}
    return State(jnp.int32(step), params, {}, None, new_guard(GuardConfig()))


def begun(path):
    workdir = Workdir(path)
    begin_tiny(workdir, "start")
    (path / "lock").touch()
    return workdir


def writes(workdir, writer, checkpoints):
    """Every kind of file that a run writes."""
    attempt = Attempt(1, 0.0, 0.0, 0, 0, {}, "training")
    return {
        "metrics.jsonl": lambda: writer.record(2, {"loss": 1.0}),
        "metrics.jsonl, anew": lambda: writer.record(1, {"loss": 1.0}),
        "bad_steps.jsonl": lambda: writer.bad_step({"step": 2}),
        "tensorboard": lambda: writer.image(2, "samples", np.zeros((4, 4, 3), np.uint8)),
        "attempts": lambda: goodput.write_attempt(workdir.attempts, attempt),
        "samples": lambda: write_png(workdir.samples / "2.png", np.zeros((4, 4, 3), np.uint8)),
        "manifest.json": lambda: workdir.remember("event"),
        "manifest.json and config.json": lambda: begin_tiny(workdir, "resume"),
        "evaluation.json": lambda: results.write_entry(workdir, {"step": 1, "metrics": {}}),
        "a checkpoint": lambda: checkpoints.save(state(2), 8),
        "concluded.json": lambda: checkpoints.conclude(1, {"loss": 1.0}),
        "aside": lambda: checkpoints.set_aside(1, workdir.aside),
        "what a kill left": lambda: checkpoints.clean(),
        "a trace": lambda: write_whole(workdir.profile / "plugins/x", b""),
    }


@pytest.mark.parametrize("harm", HARMS)
def test_nothing_is_written_to_a_folder_that_is_anothers(harm, tmp_path):
    path, other = tmp_path / "run", tmp_path / "other"
    workdir = begun(path)
    begun(other)
    with workdir.locked(), Checkpoints(workdir.checkpoints) as checkpoints:
        checkpoints.save(state(1), 4)
        checkpoints.wait()
        writer = open_writer(workdir, 1)
        opened = writer.__enter__()
        opened.record(1, {"loss": 2.0})
        harm(path, other)
        before = contents(tmp_path)
        for name, write in writes(workdir, opened, checkpoints).items():
            with pytest.raises(LostFolder, match=f"{path} is no longer this run's folder"):
                write()
            assert contents(tmp_path) == before, name
        with pytest.raises(LostFolder) as raised:
            writer.__exit__(None, None, None)
        assert raised.value.exit_code == 74
    assert contents(tmp_path) == before


@pytest.mark.parametrize("harm", HARMS)
def test_the_heartbeat_of_a_run_that_took_the_place_stays(harm, tmp_path):
    path, other = tmp_path / "run", tmp_path / "other"
    begun(path)
    begun(other)
    (other / "heartbeat.json").write_text("another's")
    with Workdir(path).locked():
        with heartbeat(path / "heartbeat.json", Beat(), 0):
            harm(path, other)
            before = contents(tmp_path)
        assert contents(tmp_path) == before


def test_a_folder_that_was_moved_and_linked_to_is_still_the_runs(tmp_path):
    workdir = begun(tmp_path / "run")
    with workdir.locked(), Checkpoints(workdir.checkpoints) as checkpoints:
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        (tmp_path / "run").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        with open_writer(workdir, 0) as writer:
            for name, write in writes(workdir, writer, checkpoints).items():
                if name not in ("aside", "concluded.json"):  # of a checkpoint that is there
                    write()
                    checkpoints.wait()  # cleaning takes a save under way for what a kill left
    assert (tmp_path / "elsewhere/checkpoints/2").is_dir()


def test_a_save_under_way_does_not_end_in_what_was_put_in_the_folders_place(tmp_path):
    path, other = tmp_path / "run", tmp_path / "other"
    workdir = begun(path)
    begun(other)
    (other / "checkpoints").mkdir()
    with workdir.locked():
        checkpoints, go_on = Checkpoints(workdir.checkpoints), threading.Event()
        checkpoints._committing.submit(go_on.wait)
        checkpoints.save(state(1), 4)
        wait_for(path, f"checkpoints/1.????????{UNFINISHED}")
        assert checkpoints.steps == []
        shutil.copytree(path / "checkpoints", other / "checkpoints", dirs_exist_ok=True)  # as by Orbax's path
        replaced(path, other)
        go_on.set()
        with pytest.raises(LostFolder):
            checkpoints.wait()
    assert list((path / "checkpoints").iterdir()) == []


def wait_for(folder, pattern):
    """Until Orbax, in threads of its own, has written that far."""
    while not list(folder.glob(pattern)):
        time.sleep(0.01)


def test_a_run_ends_with_one_sentence_when_its_folder_is_replaced(tmp_path):
    path, other = tmp_path / "run", tmp_path / "other"
    begun(other)
    taken = {}

    def take(step, weights, writer):
        if step == 2:
            wait_for(path, "checkpoints/2")
            replaced(path, other)
            taken.update(contents(path))
        return {"held_out/loss": 1.0}

    config = tiny_config(steps=4, loop={"log_every": 1, "save_every": 2})
    with Workdir(path).locked(), pytest.raises(LostFolder, match=r"moved, replaced or deleted"):
        tiny_run(path, config, hooks=(Hook(1, take),))
    (path / "said").unlink()
    assert contents(path) == taken


def test_a_bucket_that_is_anothers_is_not_written_to(remote, tmp_path):
    workdir = Workdir(remote / "run")
    begin_tiny(workdir, "start")
    manifest, lock = (remote / "run/manifest.json", remote / "run/lock")
    with workdir.locked():
        mine, held = manifest.read_bytes(), lock.read_bytes()
        for path, content in (
            (manifest, json.dumps(json.loads(mine) | {"run": "another's", "digest": None}).encode()),
            (lock, json.dumps(json.loads(held) | {"id": "another's"}).encode()),
            (manifest, None),
            (lock, None),
        ):
            path.unlink()
            if content is not None:
                path.write_bytes(content)
            before = remote.sizes()
            for write in (
                lambda: workdir.remember("event"),
                lambda: write_whole(workdir.samples / "1.png", b""),
                lambda: Checkpoints(workdir.checkpoints).save(state(1), 4),
            ):
                with pytest.raises(LostFolder, match=r"is no longer this run's folder"):
                    write()
            assert remote.sizes() == before
            manifest.write_bytes(mine)
            lock.write_bytes(held)
            workdir.remember("event")
            mine = manifest.read_bytes()


@pytest.mark.parametrize("harm", [moved, replaced, deleted, emptied])
def test_data_is_not_prepared_into_a_folder_that_is_anothers(harm, tmp_path):
    path, other = tmp_path / "run", tmp_path / "other"
    jobs = [PrepareJob((InputShard(name, format="jsonl"),), ReadOptions()) for name in "ab"]
    for folder, job in zip((path, other), jobs, strict=True):
        begin_job(job, ByteTokenizer(), folder)
    with owned_by_job(path, jobs[0]):
        write_whole(path / "shards/00000.json", "")
        harm(path, other)
        before = contents(tmp_path)
        with pytest.raises(LostFolder, match="was moved, replaced or deleted while it was prepared"):
            write_whole(path / "shards/00001.json", "")
    assert contents(tmp_path) == before
