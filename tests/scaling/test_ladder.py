import json
from dataclasses import replace
from pathlib import Path

import pytest

from helpers import tiny_config
from transfusion_jax import config as configs
from transfusion_jax.config import ConfigError
from transfusion_jax.data.documents import Document, DocumentList, Source, Text
from transfusion_jax.evaluation.protocols import PROTOCOLS
from transfusion_jax.scaling import costs, ladder
from transfusion_jax.scaling.ladder import Family, Ladder, Scale, Sweep
from transfusion_jax.storage.atomic import write_json
from transfusion_jax.training.run_dir import Workdir

SPEC = "configs/scaling.py:{size},%s"
FAMILIES = {name: Family(SPEC % name) for name in ("linear", "chameleon")}
STEP = 16 * 256  # elements


def make(**fields):
    return Ladder(**{"name": "test", "families": FAMILIES, "scales": (Scale("xs", 50 * STEP),)} | fields)


def test_a_point_is_a_run_of_its_own_with_its_own_warm_up_and_decay():
    points = ladder.runs(make(scales=(Scale("xs", 50 * STEP), Scale("s", 100 * STEP, seeds=2))), {"linear": 4e-3})
    assert [(p.family, p.size, p.seed, p.config.steps) for p in points[:3]] == [
        ("linear", "xs", 0, 50),
        ("linear", "s", 0, 100),
        ("linear", "s", 1, 100),
    ]
    assert len({p.name for p in points}) == len(points) == 6
    optimizer = points[1].config.optimizer
    assert (optimizer.learning_rate, optimizer.warmup_steps) == (4e-3, 4)
    assert optimizer.final_learning_rate == pytest.approx(2e-4)
    assert points[2].config.seed == 1
    assert points[3].config.optimizer.learning_rate == 2e-3  # Chameleon's own: nothing was found for it


def test_families_see_the_same_elements_and_text_alone_its_share():
    families = FAMILIES | {"text": Family(SPEC % "text", share=0.5)}
    points = {p.family: p.config for p in ladder.runs(make(families=families), {})}
    elements = {name: config.steps * config.elements_per_step for name, config in points.items()}
    assert elements["linear"] == elements["chameleon"] == 2 * elements["text"]


def test_changes_are_of_all_families_or_of_one():
    families = FAMILIES | {"linear": Family(SPEC % "linear", changes=("z_loss=0.5",))}
    linear, chameleon = ladder.runs(make(families=families, changes=("batch_rows=32",)), {})
    assert linear.config.batch_rows == chameleon.config.batch_rows == 32
    assert (linear.config.z_loss, chameleon.config.z_loss) == (0.5, 1e-5)


def test_words_train_what_the_point_says():
    point = ladder.runs(make(changes=("batch_rows=32",)), {})[0]
    words = point.training(Path("W"), Path("logs")).words
    assert words[:5] == ["train", "--config", "configs/scaling.py:xs,linear", "--workdir", "W/" + point.name]
    assert "--config.batch_rows=32" in words
    assert "--config.steps=25" in words  # twice the rows, half the steps


def test_the_sweeps_best_rate_is_the_lowest_of_those_with_all_but_the_lowest_loss(tmp_path):
    found = make(sweep=Sweep((1e-3, 2e-3, 4e-3), "xs", 10 * STEP))
    points = ladder.sweep_runs(found)
    assert {point.config.evaluation.during_training for point in points} == {("loss",)}
    assert len(points) == 6
    with pytest.raises(ConfigError, match="no held-out loss"):
        ladder.best_rates(found, tmp_path)
    for point in points:
        rate = point.config.optimizer.learning_rate
        loss = {"linear": {1e-3: 2.0, 2e-3: 1.009, 4e-3: 1.0}, "chameleon": {1e-3: 2.0, 2e-3: 1.02, 4e-3: 1.0}}
        begun(tmp_path, point, {"held_out/loss": loss[point.family][rate]})
    assert ladder.best_rates(found, tmp_path) == {"linear": 2e-3, "chameleon": 4e-3}
    with pytest.raises(ConfigError, match=r"otherwise than the ladder now says:\n  optimizer.warmup_steps: 1 -> 5"):
        ladder.best_rates(replace(found, warmup=0.5), tmp_path)


def test_families_with_a_rate_are_not_swept():
    found = make(
        families={"linear": Family(SPEC % "linear", learning_rate=3e-3)}, sweep=Sweep((1e-3,), "xs", 10 * STEP)
    )
    assert ladder.sweep_runs(found) == []
    assert ladder.runs(found, {})[0].config.optimizer.learning_rate == 3e-3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"families": {"a": {"config": "configs/debug.py"}}}, "must hold {size}"),
        ({"scales": [{"size": "xs", "elements": -1}]}, "elements must be positive"),
        ({"scale": []}, "unknown config key scale: did you mean 'scales'"),
        ({"scales": [{"size": "xs", "elements": 10}]}, "less than a step"),
        ({"changes": ["optimizer.warmup_steps=7"]}, "optimizer.warmup_steps is the ladder's own to set, by scales"),
        ({"sweep": {"rates": [0.0], "size": "xs", "elements": 1e6}}, "sweep.rates must be positive"),
    ],
)
def test_what_a_ladder_cannot_be_is_said(tmp_path, values, message):
    whole = {
        "name": "test",
        "families": {"linear": {"config": SPEC % "linear"}},
        "scales": [{"size": "xs", "elements": 1e6}],
    } | values
    file = tmp_path / "ladder.py"
    file.write_text(
        f"from ml_collections import ConfigDict\n\ndef get_ladder():\n    return ConfigDict({whole!r})\n"
    )
    with pytest.raises(ConfigError, match=message):
        ladder.runs(ladder.load_ladder(file), {})


def test_a_ladder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no ladder .*none.py: pass one such as configs/ladders/cpu.py"):
        ladder.load_ladder(tmp_path / "none.py")


@pytest.mark.parametrize("name", ["paper", "academic", "gpu", "cpu", "ablations"])
def test_the_ladders_of_the_project_hold_runs(name):
    found = ladder.load_ladder(Path(f"configs/ladders/{name}.py"))
    points = [*ladder.sweep_runs(found), *ladder.runs(found, {})]
    assert len({point.name for point in points}) == len(points)
    compute = [point.flops_6nd for point in ladder.runs(found, {})]
    assert max(compute) / min(compute) >= 16 or name == "ablations"
    if name == "academic":
        judged = [PROTOCOLS["section-4.2"].applied(point.config) for point in points]
        exact = [costs.exact_flops(point.config) for point in points]
        assert max(sum(compute), sum(exact)) + sum(map(costs.drawing_flops, judged)) < 1e21


def test_the_cost_of_a_run_is_counted():
    point = ladder.runs(make(), {})[0]
    found = costs.cost(point, None)
    assert found.flops_6nd == 6 * found.parameters * 50 * STEP
    assert 0.7 < found.flops_exact / found.flops_6nd < 1.3
    assert found.disk > 4 * 4 * found.parameters  # weights, two moments and their average, in float32
    assert found.chip_hours is None
    assert found.flops_drawing == 2 * costs.drawing_flops(point.config) > 0  # of the suites shapes and frechet
    flow = replace(point.config, diffusion=replace(point.config.diffusion, objective="flow"))
    nine = replace(flow.sampling, steps=9)
    euler, heun = (replace(flow, sampling=replace(nine, sampler=name)) for name in ("euler", "heun"))
    assert costs.drawing_flops(heun) / costs.drawing_flops(euler) == pytest.approx(17 / 9)
    assert costs.cost_table([found, found]).splitlines()[-1].startswith("2 runs")


@pytest.mark.parametrize("line", [{"loss_text": 2.0}, {"loss_text": 2.0, "total_flops": 1e9}, {}])
def test_a_run_without_scores_is_not_done(tmp_path, line):
    """Its last step is logged before its last evaluation begins."""
    point = ladder.runs(make(), {})[0]
    begun(tmp_path, point, line)
    assert point.measured(tmp_path) == {}
    begun(tmp_path, point, line | {"held_out/loss": 2.0})
    assert point.measured(tmp_path) == line | {"held_out/loss": 2.0}


def test_a_sweep_cut_short_in_its_evaluation_is_not_done(tmp_path):
    found = make(sweep=Sweep((1e-3, 2e-3), "xs", 10 * STEP))
    points = ladder.sweep_runs(found)
    for point in points:
        begun(tmp_path, point, {"loss": 1.0, "loss_text": 1.0})
    assert not any(point.measured(tmp_path) for point in points)
    with pytest.raises(ConfigError, match="no held-out loss"):
        ladder.best_rates(found, tmp_path)


def begun(root, point, values):
    """A workdir whose newest record is of the last step."""
    (root / point.name).mkdir(exist_ok=True)
    write_json(root / point.name / "manifest.json", {"history": [{"event": "start"}], "codec": {}, "skip_rows": []})
    Workdir(root / point.name).metrics.write_text(json.dumps({"step": point.config.steps, **values}) + "\n")
    (root / point.name / "config.json").write_text(json.dumps(configs.to_dict(point.config)))


def test_a_ladder_that_measures_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"xs,linear: evaluation.during_training names no suite"):
        ladder.runs(make(changes=("evaluation.during_training=()",)), {})


def test_exact_flops_count_the_unet_and_6nd_does_not():
    families = {name: Family(SPEC % name) for name in ("linear", "unet")}
    linear, unet = ladder.runs(make(families=families), {})
    assert linear.flops_6nd == unet.flops_6nd
    assert costs.exact_flops(unet.config) > 1.5 * costs.exact_flops(linear.config)


def test_epochs_count_elements_of_a_pass():
    texts = DocumentList((Document((Text([1, 2, 3]),)), Document((Text([4]),))))
    assert costs.elements_of(Source("texts", texts), tiny_config().model) == 2 + 4
