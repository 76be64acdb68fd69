import json
import struct
import sys
import time

import numpy as np
import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from helpers import tiny_config, tiny_run
from transfusion_jax.config import ConfigError
from transfusion_jax.storage.jsonl import read_lines
from transfusion_jax.training.loop import Hook
from transfusion_jax.training.monitoring import wandb_logger
from transfusion_jax.training.monitoring.metrics import open_writer
from transfusion_jax.training.monitoring.telemetry import Watching
from transfusion_jax.training.monitoring.wandb_logger import open_tracker, parse_tracked
from transfusion_jax.training.run_dir import Workdir

BLOCK = 1 << 15


@pytest.fixture(autouse=True)
def _nobodys_settings(monkeypatch, tmp_path):
    """Not those of this machine's user; the package reads them once."""
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_API_KEY", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody answers there
    wandb.teardown()
    yield
    wandb.teardown()


def sent(folder):
    """Every record of numbers that a run's folder holds, once W&B's own process has ended and written them all."""
    wandb.teardown()
    (path,) = folder.glob("*.wandb")
    records = []
    for data in logged_records(path.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            records.append({name: value for name, value in items.items() if not name.startswith("_")})
    return records


def logged_records(content):
    """The records of a file in LevelDB's log format, behind a header of seven bytes."""
    place, whole = 7, b""
    while place + 7 <= len(content):
        if (left := BLOCK - place % BLOCK) < 7:
            place += left
        _, length, kind = struct.unpack_from("<IHB", content, place)
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part of one
            yield whole
            whole = b""


def test_two_attempts_are_one_run_and_lose_nothing(tmp_path, monkeypatch):
    def evaluate(step, params, monitor):
        monitor.image(step, "samples", np.zeros((4, 4, 3), np.uint8))
        return {"held_out/loss": 1.5}

    monkeypatch.setenv("WANDB_MODE", "offline")
    watching, config = (
        Watching(wandb=parse_tracked("digits/first")),
        tiny_config(loop__log_every=4, loop__save_every=4),
    )
    tiny_run(tmp_path, config, watching=watching)
    (tmp_path / "checkpoints/8").rename(tmp_path / "gone")  # as if it had been killed before this one was whole
    tiny_run(tmp_path, config, hooks=(Hook(8, evaluate),), watching=watching)
    run_id = json.loads((tmp_path / "wandb.json").read_text())["id"]
    first, second = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert first.name.endswith(run_id)
    assert second.name.endswith(run_id)
    logged = {record["step"]: record for record in read_lines(tmp_path / "metrics.jsonl")}
    assert [record["step"] for record in sent(first)] == [4, 8]
    found: dict = {}
    for record in sent(second):
        assert record["step"] == 8
        assert found.keys() & record.keys() <= {"step"}  # each number once; an evaluation adds some
        found |= record
    assert {name: found[name] for name in logged[8]} == pytest.approx(logged[8])
    assert list((second / "files/media/images").glob("samples_*.png"))
    assert "wandb sync" in (tmp_path / "said").read_text()
    (tmp_path / "checkpoints/8").rename(tmp_path / "gone too")
    elsewhere = Watching(wandb=parse_tracked("other"))
    with pytest.raises(ConfigError, match="is tracked in project digits, not other"):
        tiny_run(tmp_path, config, watching=elsewhere)


def test_an_evaluation_that_was_still_due_adds_nothing_but_its_own_numbers(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    workdir, config, record = Workdir(tmp_path), tiny_config(), {"loss": 1.0, "grad_norm": 2.0}
    for added in ({}, {"held_out/loss": 3.0}):  # the first attempt is ended in its evaluation
        time.sleep(1.1)  # W&B names a folder by the second
        with (
            open_tracker(("digits", None), workdir, config, print) as tracker,
            open_writer(workdir, 4, tracker) as writer,
        ):
            writer.record(4, record | added)
    first, second = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert sent(first) == [{"step": 4, **record}]
    assert sent(second) == [{"step": 4, "held_out/loss": 3.0}]


def test_a_server_that_does_not_answer_leaves_the_attempt_here(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(wandb_logger, "PATIENCE", 1.0)
    tiny_run(tmp_path, tiny_config(), watching=Watching(wandb=parse_tracked("digits")))
    said = (tmp_path / "said").read_text()
    assert "Weights & Biases does not answer" in said
    assert "wandb sync" in said
    assert any(sent(folder) for folder in (tmp_path / "wandb").glob("offline-run-*"))


def test_a_missing_account_is_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match="WANDB_MODE=offline, which needs no account"):
        tiny_run(tmp_path / "run", tiny_config(), watching=Watching(wandb=parse_tracked("digits")))


def test_a_missing_package_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"pip install 'transfusion-jax\[wandb\]'"):
        parse_tracked("digits")


@pytest.mark.parametrize("text", ["", "/name", "digits/", "me/digits/name"])
def test_what_is_no_project_is_refused(text):
    with pytest.raises(ConfigError, match="PROJECT/RUN"):
        parse_tracked(text)
