"""Runs begun in every way, in this process."""

import dataclasses
import json
import re
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import GROUPED, edit_run, tiny_config, tiny_run
from transfusion_jax import config as configs
from transfusion_jax.cli import main
from transfusion_jax.config import ConfigError
from transfusion_jax.data import tokenizer as tokenizers
from transfusion_jax.data.packing.plan import REPLAYED, VERSION
from transfusion_jax.data.tokenizer import Numbers
from transfusion_jax.errors import CheckpointError, TrainingHalted, UserError
from transfusion_jax.parallel.mesh import make_mesh
from transfusion_jax.storage.atomic import DamagedFile, read_json, write_json
from transfusion_jax.storage.jsonl import read_lines
from transfusion_jax.tasks.transfusion import TransfusionTask
from transfusion_jax.training.checkpoint.manager import Checkpoints
from transfusion_jax.training.checkpoint.reader import CheckpointReader, digest_of, to_devices
from transfusion_jax.training.facts import row_plan_of
from transfusion_jax.training.loop import Hook
from transfusion_jax.training.monitoring import status
from transfusion_jax.training.run_dir import Workdir
from transfusion_jax.training.start_run import Start, find_checkpoint, kept_statistics, rate_notes, source_config
from transfusion_jax.training.step.state import RunContext

EXACT = ("loss", "loss_text", "loss_image", "grad_norm", "learning_rate")


def config(**changes):
    return tiny_config(**dict(loop=dict(log_every=1, save_every=2, evaluate_every=0)) | changes)


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """A run of eight steps with checkpoints at 4, 6 and 8."""
    path = tmp_path_factory.mktemp("parent")
    tiny_run(path, config())
    assert Checkpoints(path / "checkpoints").steps == [4, 6, 8]
    return path


def test_a_finished_run_begun_again_says_so_and_changes_nothing(parent):
    before = (parent / "metrics.jsonl").read_text()
    assert tiny_run(parent, config()).step == 8
    assert "is done: 8 of 8 steps" in (parent / "said").read_text()
    assert (parent / "metrics.jsonl").read_text() == before
    assert [e["event"] for e in history(parent)][:2] == ["start", "resume"]


def test_a_run_stops_where_it_is_told_to_and_goes_on_as_if_it_had_not(parent, tmp_path):
    loop = dict(log_every=1, save_every=2, evaluate_every=0)
    for _ in range(2):
        outcome = tiny_run(tmp_path, config(loop=loop | dict(stop_at=3)))
        assert (outcome.step, outcome.interrupted) == (3, False)
        assert Checkpoints(tmp_path / "checkpoints").steps == [2, 3]
    assert "is done: 3 of 8 steps. To train on: without loop.stop_at" in (tmp_path / "said").read_text()
    assert status.examine(Workdir(tmp_path))["wrong"] == []
    assert tiny_run(tmp_path, config()).step == 8
    stopped, once = metrics(tmp_path), metrics(parent)
    assert [[stopped[s][n] for n in EXACT] for s in once] == [[once[s][n] for n in EXACT] for s in once]


def test_what_is_asked_of_one_command_does_not_outlive_it(tmp_path):
    once = replace(config().loop, stop_at=3)
    stopping = replace(config(), loop=once)
    assert tiny_run(tmp_path / "run", stopping).step == 3
    run = Workdir(tmp_path / "run")
    assert run.config() == config()  # what the next `train --workdir` goes on with
    assert source_config(Start(fork_from=str(run.path))) == config()
    edit_run(run.path, configs.to_dict(stopping))  # as former versions kept it
    assert run.config() == config()
    assert tiny_run(run.path, run.config()).step == 8
    assert tiny_run(tmp_path / "fork", stopping, Start(fork_from=f"{run.path}:6")).step == 6
    assert source_config(Start(fork_from=str(tmp_path / "fork"))) == config()


def test_a_fork_goes_on_as_its_parent_did_with_its_metrics_marked(parent, tmp_path):
    source = f"{parent}:4"
    assert source_config(Start(fork_from=source)) == config()
    tiny_run(tmp_path, config(), Start(fork_from=source))
    forked, once = metrics(tmp_path), metrics(parent)
    assert [[forked[s][n] for n in EXACT] for s in range(1, 9)] == [
        [once[s][n] for n in EXACT] for s in range(1, 9)
    ]
    assert [s for s in forked if "forked_from" in forked[s]] == [1, 2, 3, 4]
    assert forked[4]["forked_from"] == source
    tiny_run(tmp_path, config(), Start(fork_from=source))  # the same command resumes
    assert [e["event"] for e in history(tmp_path)] == ["fork", "resume"]


def test_a_run_and_its_forks_keep_the_row_plan_that_it_began_with(parent, tmp_path):
    whole, old, fork, new = (tmp_path / name for name in ("whole", "old", "fork", "new"))
    tiny_run(whole, config(), row_plan=REPLAYED)
    tiny_run(old, config(loop=dict(log_every=1, save_every=2, evaluate_every=0, stop_at=4)), row_plan=REPLAYED)
    edit_run(old, without=("row_plan",))  # as former versions kept it
    tiny_run(old, config())
    tiny_run(fork, config(), Start(fork_from=f"{whole}:4"))
    tiny_run(new, config(), Start(init_from=f"{whole}:4"))
    assert [row_plan_of(Workdir(path).manifest()) for path in (whole, old, fork, new, parent)] == [
        2,
        2,
        2,
        VERSION,
        VERSION,
    ]
    for path in (old, fork):
        assert [[metrics(path)[s][n] for n in EXACT] for s in range(1, 9)] == [
            [metrics(whole)[s][n] for n in EXACT] for s in range(1, 9)
        ]
    assert metrics(whole)[1]["loss"] != metrics(parent)[1]["loss"]  # other rows


def test_a_fork_may_change_what_is_accepted_by_name(parent, tmp_path):
    changed = config(optimizer=dict(learning_rate=1e-3, warmup_steps=2, ema_decay=0.9))
    with pytest.raises(ConfigError, match=r"optimizer.learning_rate: 0.01 -> 0.001"):
        tiny_run(tmp_path / "refused", changed, Start(fork_from=f"{parent}:6"))
    assert not Workdir(tmp_path / "refused").exists()
    tiny_run(tmp_path / "run", changed, Start(fork_from=f"{parent}:6", accept_changes=("optimizer.learning_rate",)))
    assert metrics(tmp_path / "run")[7]["learning_rate"] < 1e-3
    assert history(tmp_path / "run")[0]["accepted"] == {"optimizer.learning_rate": "0.01 -> 0.001"}


def test_init_takes_the_weights_and_nothing_else(parent, tmp_path):
    for weights, part in (("ema", "ema"), ("raw", "raw"), (None, "ema")):
        path = tmp_path / str(weights)
        tiny_run(path, config(steps=2), Start(init_from=f"{parent}:8", weights=weights))
        records = metrics(path)
        assert records[1]["learning_rate"] == metrics(parent)[1]["learning_rate"]
        assert records[1]["loss"] < metrics(parent)[1]["loss"]
        old, new = weights_of(parent, 8, part), weights_of(path, 0, "raw")
        jax.tree.map(np.testing.assert_array_equal, old, new)
        jax.tree.map(np.testing.assert_array_equal, old, weights_of(path, 0, "ema"))
        assert (history(path)[0]["event"], history(path)[0]["step"]) == ("init", 8)


@pytest.fixture
def exported(parent, tmp_path):
    """The run's averaged weights as `to-safetensors` writes them."""
    source = shutil.copytree(parent, tmp_path / "parent")
    manifest = read_json(source / "manifest.json", "")
    # the letters of the tests' tokenizer are no file: a reader of the run finds numbers
    manifest["codec"] |= {"tokenizer": "numbers-20", "tokenizer_hash": tokenizers.hash_of(Numbers(20))}
    write_json(source / "manifest.json", manifest)
    assert (
        main(["convert", "to-safetensors", "--workdir", str(source), "--output", str(tmp_path / "exported")]) == 0
    )
    return tmp_path / "exported"


def test_init_takes_the_weights_of_an_exported_folder(exported, parent, tmp_path):
    start, path = Start(init_from=str(exported)), tmp_path / "run"
    assert source_config(start).model == config().model
    sources = (start, Start(init_from=str(parent)))
    kept, same = (kept_statistics(source, Workdir(path), config()).to_dict() for source in sources)
    assert kept == same
    (path / "imported" / "checkpoints" / "0").mkdir(parents=True)  # of a start that was killed
    tiny_run(path, config(steps=2), start)
    jax.tree.map(np.testing.assert_array_equal, weights_of(parent, 8, "ema"), weights_of(path, 0, "raw"))
    assert (history(path)[0]["event"], history(path)[0]["source"]) == ("init", str(exported))
    assert not (path / "imported").exists()
    shutil.rmtree(exported)
    tiny_run(path, config(steps=2), start)  # the same command finds it done
    assert max(metrics(path)) == 2


def test_weights_that_a_killed_start_left_give_way_to_those_that_are_asked_for(exported, parent, tmp_path):
    other, path = tmp_path / "other", tmp_path / "run"
    tiny_run(other, config(seed=5, steps=2))
    shutil.copytree(other, path / "imported")
    tiny_run(path, config(steps=2), Start(init_from=str(exported)))
    jax.tree.map(np.testing.assert_array_equal, weights_of(parent, 8, "ema"), weights_of(path, 0, "raw"))
    shutil.copytree(other, path / "imported")  # killed after the run began, before it was deleted
    tiny_run(path, config(steps=2), Start(init_from=str(exported)))
    assert not (path / "imported").exists()


def test_an_unfinished_folder_is_not_begun_with(exported):
    (exported / "convert.unfinished").touch()
    with pytest.raises(ConfigError, match="a conversion has not ended in"):
        source_config(Start(init_from=str(exported)))


def test_weights_alone_begin_no_fork(exported, tmp_path):
    with pytest.raises(UserError, match="--init-from also takes a folder of to-safetensors"):
        source_config(Start(fork_from=str(exported)))


def test_init_finds_a_checkpoint_by_run_by_step_and_by_path(parent, tmp_path):
    for spec, step in [
        (str(parent), 8),
        (f"{parent}:latest", 8),
        (f"{parent}:6", 6),
        (str(parent / "checkpoints/4"), 4),
        (str(shutil.copytree(parent / "checkpoints/4", tmp_path / "backup")), 4),
    ]:
        checkpoints, found = find_checkpoint(spec)
        assert found == checkpoints.manifest(step)["step"] == step
    for spec, message in [
        (f"{parent}:5", "no checkpoint 5"),
        ("nowhere", "neither a run"),
        ("nowhere:3", "neither"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            find_checkpoint(spec)


def test_a_run_is_made_of_the_newest_checkpoint_that_its_parent_keeps(parent, tmp_path, monkeypatch):
    source, real = shutil.copytree(parent, tmp_path / "parent"), CheckpointReader.manifest

    def manifest(checkpoints, step):
        found = real(checkpoints, step)
        if step == 8 and checkpoints.directory.parent == source:
            shutil.rmtree(checkpoints.path(8))  # as its retention does, while this reads
        return found

    monkeypatch.setattr(CheckpointReader, "manifest", manifest)
    tiny_run(tmp_path / "fork", config(), Start(fork_from=str(source)))
    assert (history(tmp_path / "fork")[0]["step"], sorted(metrics(tmp_path / "fork"))) == (6, list(range(1, 9)))
    shutil.copytree(parent / "checkpoints/8", source / "checkpoints/8")
    tiny_run(tmp_path / "init", config(steps=1), Start(init_from=str(source)))
    assert history(tmp_path / "init")[0]["step"] == 6
    shutil.copytree(parent / "checkpoints/8", source / "checkpoints/8")
    with pytest.raises(CheckpointError, match="checkpoint 8"):
        tiny_run(tmp_path / "named", config(), Start(fork_from=f"{source}:8"))


def test_another_way_to_begin_is_refused_where_a_run_is(parent, tmp_path):
    with pytest.raises(ConfigError, match="began otherwise"):
        tiny_run(parent, config(), Start(init_from=str(parent)))
    with pytest.raises(ConfigError, match="no run in"):
        tiny_run(tmp_path, config(), Start(rewind_to=4))


def test_rewinding_trains_the_same_steps_again_and_keeps_the_old(tmp_path):
    tiny_run(tmp_path, config())
    once = metrics(tmp_path)
    tiny_run(tmp_path, config(), Start(rewind_to=4))
    assert exact(metrics(tmp_path)) == exact(once)
    kept = tmp_path / "aside/rewind-1"
    assert sorted(p.name for p in kept.iterdir()) == ["6-1", "8-1", "metrics.jsonl"]
    assert history(tmp_path)[-1]["kept_in"] == "aside/rewind-1"
    tiny_run(tmp_path, config(), Start(rewind_to=4))  # the same command resumes
    assert history(tmp_path)[-1]["event"] == "resume"
    tiny_run(tmp_path, config(), Start(rewind_to=4, skip_rows=(16, 20)))
    assert history(tmp_path)[-1]["event"] == "rewind"
    assert metrics(tmp_path)[5]["loss"] != once[5]["loss"]


def test_skipped_rows_come_back_never_and_later_rows_keep_their_numbers(tmp_path):
    tiny_run(tmp_path, config())
    tiny_run(tmp_path, config(), Start(rewind_to=0, skip_rows=(0, 4)))
    skipped = metrics(tmp_path)
    assert Checkpoints(tmp_path / "checkpoints").manifest(8)["next_row"] == 9 * 4
    assert Workdir(tmp_path).skip_rows == ((0, 4),)
    tiny_run(tmp_path, config(), Start(rewind_to=6))
    assert exact(metrics(tmp_path)) == exact(skipped)


def test_rows_that_were_trained_on_cannot_be_skipped(parent):
    with pytest.raises(ConfigError, match="trained on every row before 24: rewind further"):
        tiny_run(parent, config(), Start(rewind_to=6, skip_rows=(20, 28)))
    with pytest.raises(CheckpointError, match="no checkpoint 5: there are 4, 6, 8"):
        tiny_run(parent, config(), Start(rewind_to=5))


@pytest.mark.parametrize("family", GROUPED)
def test_a_run_does_not_go_on_with_another_trunk(parent, family):
    """Whatever of it changes: heads, norms, biases, embeddings or rotary embeddings."""
    with pytest.raises(ConfigError) as refused:
        tiny_run(parent, config(**GROUPED[family]))
    assert all(f"{name.replace('__', '.')}: " in str(refused.value) for name in GROUPED[family])


@pytest.mark.slow
@pytest.mark.parametrize("family", GROUPED)
def test_a_run_of_another_trunk_goes_on_with_it_alone(tmp_path, family):
    own = config(steps=4, **GROUPED[family])
    tiny_run(tmp_path, replace(own, loop=replace(own.loop, stop_at=2)))
    for name in GROUPED[family].keys() - {"model__head_dim", "model__heads", "model__rope_scaling"}:
        others = {n: value for n, value in GROUPED[family].items() if n != name}
        if name == "model__query_key_norm":
            del others["model__query_key_norm_kind"]
        with pytest.raises(ConfigError, match=name.replace("__", ".")):
            tiny_run(tmp_path, config(steps=4, **others))
    assert tiny_run(tmp_path, own).step == 4


def test_a_resume_accepts_changes_by_name_once_and_records_them(tmp_path):
    tiny_run(tmp_path, config(steps=4))
    longer = config(steps=6)
    with pytest.raises(ConfigError, match=r"steps: 4 -> 6[\s\S]*--accept-changes steps"):
        tiny_run(tmp_path, longer)
    with pytest.raises(ConfigError, match="--accept-changes stps: no such field; did you mean 'steps'"):
        tiny_run(tmp_path, longer, Start(accept_changes=("stps",)))
    assert tiny_run(tmp_path, longer, Start(accept_changes=("steps",))).step == 6
    assert history(tmp_path)[-1]["accepted"] == {"steps": "4 -> 6"}
    assert "learning rate of step 5: 1.5e-05 by the old recipe" in (tmp_path / "said").read_text()
    tiny_run(tmp_path, longer, Start(accept_changes=("steps",)))
    assert "accepted" not in history(tmp_path)[-1]


OPTIMIZER = dict(learning_rate=1e-2, final_learning_rate=1e-4, warmup_steps=2, ema_decay=0.9)


@pytest.mark.parametrize(
    ("changes", "before", "after"),
    [
        (dict(steps=8), "0.0001", "0.00505"),  # step 5 of 4 was the end, and is the middle of 8
        (dict(optimizer__learning_rate=1e-3), "0.0001", None),  # at the end of both schedules
        (dict(steps=8, optimizer__learning_rate=1e-4), "0.0001", None),  # held, as is offered
        (dict(steps=8, optimizer__warmup_steps=3), "0.0001", "0.00658"),
        (dict(steps=8, optimizer__final_learning_rate=1e-3), "0.0001", "0.0055"),
        (dict(steps=8, optimizer__weight_decay=0.2), "0.0001", "0.00505"),
        (dict(optimizer__weight_decay=0.2), "0.0001", None),
        (dict(steps=3), "0.0001", None),  # nothing is left to train
    ],
)
def test_a_change_of_recipe_says_what_becomes_of_the_learning_rate(changes, before, after):
    changes = {"steps": 4, **{f"optimizer__{name}": value for name, value in OPTIMIZER.items()}} | changes
    lines = rate_notes(tiny_config(steps=4, optimizer=OPTIMIZER), tiny_config(**changes), 4)
    if after is None:
        assert lines == []
        return
    assert lines[0].startswith(f"learning rate of step 5: {before} by the old recipe, {after} by the new one")
    held = re.findall(r"--config\.(\S+)=(\S+)", lines[1])
    holding = configs.override(tiny_config(**changes), [f"{name}={value}" for name, value in held])
    assert rate_notes(tiny_config(steps=4, optimizer=OPTIMIZER), holding, 4) == []


def test_a_longer_run_says_so_when_it_is_refused_and_when_it_is_accepted(parent, tmp_path):
    longer, fork = config(steps=10), Start(fork_from=f"{parent}:8")
    said = "learning rate of step 9: 1.5e-05 by the old recipe, "
    for path, start in ((parent, Start()), (tmp_path, fork)):
        with pytest.raises(ConfigError, match=said):
            tiny_run(path, longer, start)
    tiny_run(tmp_path, longer, replace(fork, accept_changes=("steps",)))
    assert said in (tmp_path / "said").read_text()


def test_a_change_of_the_state_s_shape_is_refused_with_the_leaves(tmp_path):
    tiny_run(tmp_path, config(steps=4))
    wider = config(steps=4, model__mlp_width=40)
    with pytest.raises(CheckpointError, match=r"params/trunk/.*gate.*\n[\s\S]*--init-from"):
        tiny_run(tmp_path, wider, Start(accept_changes=("model.mlp_width",)))
    assert Checkpoints(tmp_path / "checkpoints").steps == [2, 4]  # nothing was set aside
    tiny_run(tmp_path, config(steps=4))  # nothing was written


def test_spikes_can_be_guarded_against_from_some_step_on(tmp_path):
    tiny_run(tmp_path, config(steps=4))
    guarded = config(steps=6, guard=dict(spikes="skip", spike_window=2))
    names = ("steps", "guard.spikes", "guard.spike_window")
    assert tiny_run(tmp_path, guarded, Start(accept_changes=names)).step == 6


def test_a_run_whose_checkpoints_are_all_damaged_stops_until_it_is_told_to_begin_again(tmp_path):
    tiny_run(tmp_path, config(steps=4))
    once = metrics(tmp_path)
    for step in (2, 4):
        (tmp_path / f"checkpoints/{step}/_CHECKPOINT_METADATA").write_text("{}")
    for _ in range(2):
        with pytest.raises(CheckpointError, match="--rewind-to 0 begins again"):
            tiny_run(tmp_path, config(steps=4))
        assert metrics(tmp_path) == once
    tiny_run(tmp_path, config(steps=4), Start(rewind_to=0))
    assert exact(metrics(tmp_path)) == exact(once)


def test_a_damaged_checkpoint_is_not_rewound_to(tmp_path):
    tiny_run(tmp_path, config(steps=4))
    (tmp_path / "checkpoints/2/_CHECKPOINT_METADATA").write_text("{}")
    with pytest.raises(CheckpointError, match="checkpoint 2 is damaged"):
        tiny_run(tmp_path, config(steps=4), Start(rewind_to=2))
    assert Checkpoints(tmp_path / "checkpoints").steps == [2, 4]


def test_a_lower_limit_of_bad_steps_stops_a_run_that_has_more(tmp_path):
    tiny_run(tmp_path, config(steps=4))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        mesh = make_mesh(config().mesh, jax.devices()[:1])
        state, manifest = checkpoints.restore(
            4, RunContext(TransfusionTask(config()), config(), mesh).abstract_state
        )
        guard = state.guard._replace(in_a_row=jnp.int32(3), skipped=jnp.int32(3))
        checkpoints.set_aside(4, tmp_path)
        about = {name: manifest[name] for name in ("config", "skip_rows")}
    with Checkpoints(tmp_path / "checkpoints", about=about) as checkpoints:
        checkpoints.save(dataclasses.replace(state, guard=guard), manifest["next_row"], None)
    longer = config(steps=8, guard=dict(max_in_a_row=3))
    with pytest.raises(TrainingHalted, match=r"step 4 was saved after 3 bad steps in a row"):
        tiny_run(tmp_path, longer, Start(accept_changes=("steps",)))
    assert Checkpoints(tmp_path / "checkpoints").steps[-1] == 4


def test_an_evaluation_that_was_due_is_done_on_resuming_and_each_step_stands_once(tmp_path):
    calls = []

    def evaluate(step, params, monitor):
        calls.append(step)
        if len(calls) < 3:
            raise KeyboardInterrupt  # as if killed: the record of the step is in place, and must stay
        return {"held_out/loss": 2.0}

    tiny_run(tmp_path, config(steps=4))
    path = tmp_path / "checkpoints/4/_CHECKPOINT_METADATA"
    values = json.loads(path.read_text())
    values["custom_metadata"]["manifest"]["concluded"] = False
    values["custom_metadata"]["digest"] = digest_of(values["custom_metadata"]["manifest"])
    path.write_text(json.dumps(values))
    (tmp_path / "checkpoints/4/sizes.json").unlink()
    once = metrics(tmp_path)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            tiny_run(tmp_path, config(steps=4), hooks=(Hook(4, evaluate),))
        assert exact(metrics(tmp_path)) == exact(once)
    tiny_run(tmp_path, config(steps=4), hooks=(Hook(4, evaluate),))
    assert metrics(tmp_path)[4] == once[4] | {"held_out/loss": 2.0}
    assert Checkpoints(tmp_path / "checkpoints").find("best") == 4
    tiny_run(tmp_path, config(steps=4), hooks=(Hook(4, evaluate),))
    assert calls == [4, 4, 4]


def test_a_fork_whose_checkpoints_are_lost_does_not_begin_from_nothing(parent, tmp_path):
    tiny_run(tmp_path, config(), Start(fork_from=f"{parent}:6"))
    for step in (6, 8):
        next((tmp_path / f"checkpoints/{step}/state").glob("manifest*")).unlink()
    with pytest.raises(CheckpointError, match="no checkpoint is left"):
        tiny_run(tmp_path, config())
    assert len(list((tmp_path / "aside").iterdir())) == 2


def test_checkpoints_of_no_run_are_set_aside(tmp_path):
    tiny_run(tmp_path, config(steps=2))
    (tmp_path / "config.json").unlink()
    with pytest.raises(DamagedFile, match=r"config\.json is missing, although a run trained here"):
        tiny_run(tmp_path, config(steps=2))
    shutil.rmtree(tmp_path / "attempts")  # as of a run that was killed before it had begun
    tiny_run(tmp_path, config(steps=2))
    assert "checkpoint 2 belongs to no run; moved to" in (tmp_path / "said").read_text()


def weights_of(path, step, which):
    abstract = to_devices(TransfusionTask(config()).model.abstract_params())
    return Checkpoints(path / "checkpoints").weights(step, which, abstract)


def metrics(path):
    records = read_lines(path / "metrics.jsonl")
    assert [r["step"] for r in records] == list(range(1, len(records) + 1))
    return {r["step"]: r for r in records}


def exact(records):
    return [[record[name] for name in EXACT] for record in records.values()]


def history(path):
    return json.loads((path / "manifest.json").read_text())["history"]
