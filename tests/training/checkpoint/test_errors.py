"""Every file of a workdir, harmed in every way: what is read is what was written, or refused."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from harms import HARMS, contents, directory, names
from helpers import tiny_config, tiny_data
from transfusion_jax.cli import main
from transfusion_jax.data.tokenizer_files import train_byte_pairs
from transfusion_jax.errors import UserError
from transfusion_jax.evaluation import results
from transfusion_jax.generation.png import write_png
from transfusion_jax.storage.atomic import DamagedFile
from transfusion_jax.storage.jsonl import check_lines, read_lines
from transfusion_jax.tasks.base import make_task
from transfusion_jax.training import verification
from transfusion_jax.training.checkpoint.manager import Checkpoints
from transfusion_jax.training.facts import codec_of, facts_of
from transfusion_jax.training.monitoring import goodput
from transfusion_jax.training.monitoring.goodput import Attempt
from transfusion_jax.training.monitoring.metrics import open_writer
from transfusion_jax.training.run_dir import Workdir
from transfusion_jax.training.start_run import Start, begin_or_resume
from transfusion_jax.training.step.state import RunContext

CONFIG = tiny_config(steps=2, loop={"log_every": 1, "save_every": 2})
UNREAD = r"lock|tensorboard/.*|samples/.*"  # of checkpoints: tests/training/checkpoint/test_manager.py


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two runs with all that a run holds but checkpoints, and a tokenizer with a file."""
    runs = []
    for seed in range(2):
        path = tmp_path_factory.mktemp("runs") / str(seed)
        workdir = Workdir(path)
        tokenizer = train_byte_pairs(["a red circle", "two blue squares"][: seed + 1], 300)
        data = tiny_data()
        data = replace(data, codec=replace(data.codec, tokenizer=tokenizer))
        started = replace(CONFIG, seed=seed)
        workdir.begin(started, facts_of(make_task(started), started, data), data, "start")
        with workdir.locked(), open_writer(workdir, 0) as writer:
            for step in (1, 2):
                writer.record(step, {"loss": 1.5 + seed})
                writer.bad_step({"step": step, "row": seed})
        goodput.write_attempt(workdir.attempts, Attempt(1, 1.0, 2.0, 0, 2, {"step": 1.0 + seed}, "training"))
        results.write_entry(workdir, {"step": 2, "metrics": {"loss": 1.5 + seed}})
        write_png(workdir.samples / "00000002.png", np.full((4, 4, 3), seed, np.uint8))
        runs.append(path)
    return runs


def read(path):
    """All that commands read of a workdir, but for the leaves of checkpoints."""
    workdir = Workdir(path)
    codec = codec_of(workdir)
    for file in (workdir.metrics, workdir.bad_steps):
        check_lines(file)
    return [
        workdir.run(),
        workdir.manifest(),
        codec.tokenizer.content,
        codec.statistics.to_dict(),
        read_lines(workdir.metrics),
        read_lines(workdir.bad_steps),
        goodput.read_attempts(workdir.attempts),
        results.read_entries(workdir),
    ]


@pytest.mark.parametrize("harm", [*HARMS, "directory"])
def test_each_file_is_read_as_it_was_or_refused(harm, trained, tmp_path):
    whole, other = trained
    expected, damaged, wrong = read(whole), tmp_path / "damaged", []
    for name in names(whole):
        if re.fullmatch(UNREAD, name):
            continue
        shutil.copytree(whole, damaged)
        (HARMS | {"directory": directory})[harm](damaged / name, other / name)
        try:
            same, said = read(damaged) == expected, ""
        except (UserError, IsADirectoryError) as error:
            same, said = False, str(error)
        elsewhere = name == "config.json" and harm in ("remove", "directory")
        elsewhere |= (harm, name) == ("replace", "manifest.json")
        if said and name not in said and not elsewhere:
            wrong.append(f"{name} is not named: {said}")
        if not same and not said and (harm, name) not in ACCEPTED:
            wrong.append(f"{name} is read otherwise")
        if not verification.damaged_files(Workdir(damaged)) and (harm, name) not in ACCEPTED and not same:
            wrong.append(f"{name} is not found by doctor --verify")
        shutil.rmtree(damaged)
    assert not wrong


# What a run writes as it goes on tells of nothing else: without it, or with another run's, there is less to see.
GROWS = ("metrics.jsonl", "bad_steps.jsonl", "evaluation.json", "attempts/00001.json")
ACCEPTED = {(harm, name) for harm in ("remove", "replace") for name in GROWS}
ACCEPTED |= {(harm, name) for harm in ("cut", "empty") for name in GROWS[:2]}  # as a kill leaves them


def test_a_cut_tokenizer_is_written_again_when_the_run_goes_on(tmp_path):
    """As a kill in the first second of a run left it."""
    data = tiny_data()
    tokenizer = train_byte_pairs(["a red circle"], 300)
    data = replace(data, codec=replace(data.codec, tokenizer=tokenizer))
    workdir = Workdir(tmp_path)
    (tmp_path / tokenizer.name).write_bytes(tokenizer.content[:100])
    workdir.begin(CONFIG, facts_of(make_task(CONFIG), CONFIG, data), data, "start")
    assert codec_of(workdir).tokenizer.content == tokenizer.content
    (tmp_path / tokenizer.name).write_bytes(tokenizer.content[:100])
    with pytest.raises(DamagedFile, match=r"tokenizer\.json"):
        codec_of(workdir)
    workdir.begin(CONFIG, facts_of(make_task(CONFIG), CONFIG, data), data, "resume")
    assert codec_of(workdir).tokenizer.content == tokenizer.content


def test_a_run_whose_config_is_gone_is_not_begun_anew(trained, tmp_path):
    path = shutil.copytree(trained[0], tmp_path / "run")
    (path / "config.json").unlink()
    before = contents(path)
    with pytest.raises(DamagedFile, match=r"config\.json is missing, although a run trained here: .* --fork-from"):
        begin_or_resume(Start(), RunContext(None, CONFIG, None), tiny_data(), Workdir(path))
    assert contents(path) == before


def test_a_kill_between_manifest_and_config_is_no_damage(trained, tmp_path):
    path = shutil.copytree(trained[0], tmp_path / "run")
    before = (path / "config.json").read_bytes()
    config, data = replace(CONFIG, loop=replace(CONFIG.loop, keep=7)), tiny_data()
    Workdir(path).begin(config, facts_of(make_task(config), config, data), data, "resume")
    assert (path / "config.json").read_bytes() != before
    (path / "config.json").write_bytes(before)
    assert Workdir(path).run().loop.keep != 7


@pytest.mark.parametrize("name", ["manifest.json", "attempts/00001.json", "bad_steps.jsonl", "heartbeat.json"])
@pytest.mark.parametrize("content", [b"{}\n", b"[]\n", b"\xff\n", None])
def test_doctor_has_a_sentence_for_each_file_that_it_cannot_read(trained, tmp_path, capsys, name, content):
    path = shutil.copytree(trained[0], tmp_path / "run")
    if name != "attempts/00001.json":
        shutil.rmtree(path / "attempts")
    (path / name).unlink(missing_ok=True)
    (path / name).mkdir() if content is None else (path / name).write_bytes(content)
    code = main(["doctor", str(path)])
    said = capsys.readouterr()
    read = name == "heartbeat.json" or (name == "bad_steps.jsonl" and content)
    assert code == (1 if read else 74 if content is None else 2)
    assert len(said.err.splitlines()) == (code != 1)


def test_a_workdir_of_a_former_version_is_read(trained, tmp_path):
    path = shutil.copytree(trained[0], tmp_path / "run")
    expected = read(path)
    for file in ("manifest.json", "evaluation.json", "attempts/00001.json"):
        values = json.loads((path / file).read_text())
        for name in ("digest", "run", "config_hashes"):
            values.pop(name, None)
            expected[1].pop(name, None)
        (path / file).write_text(json.dumps(values))
    assert read(path) == expected
    assert verification.damaged_files(Workdir(path)) == []
    workdir = Workdir(path)
    with workdir.locked(), Checkpoints(workdir.checkpoints):
        workdir.begin(CONFIG, facts_of(make_task(CONFIG), CONFIG, tiny_data()), tiny_data(), "resume")
        workdir.remember("event")
    assert workdir.manifest()["run"]
