import json
import math
from collections import Counter

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from transfusion_jax.storage.jsonl import read_lines
from transfusion_jax.training.monitoring import event_file, tensorboard
from transfusion_jax.training.monitoring.metrics import duration, keep_until, open_writer, progress_line, record_of
from transfusion_jax.training.monitoring.tensorboard import Events
from transfusion_jax.training.monitoring.throughput import Timer
from transfusion_jax.training.run_dir import Workdir


def test_records_after_the_restored_step_and_a_torn_line_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s}) + "\n" for s in (1, 2, 3, 4)) + '{"step": 5, "lo')
    assert keep_until(path, 3, tmp_path / "aside") is None
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_numbers_that_are_not_finite_are_left_out(tmp_path):
    with open_writer(Workdir(tmp_path), 0) as writer:
        writer.record(1, {"loss": 2.0, "empty": math.nan, "wild": math.inf})
    assert read_lines(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.0}]


def test_a_second_record_of_a_step_takes_the_place_of_the_first(tmp_path):
    with open_writer(Workdir(tmp_path), 0) as writer:
        for step, loss in ((1, 3.0), (2, 2.0), (2, 1.5)):
            writer.record(step, {"loss": loss})
    assert record_of(tmp_path / "metrics.jsonl", 2) == {"loss": 1.5}
    assert record_of(tmp_path / "metrics.jsonl", 1) == {}
    with open_writer(Workdir(tmp_path), 2) as writer:
        writer.record(2, {"loss": 1.0})
        writer.record(3, {"loss": 0.5})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [3.0, 1.0, 0.5]


def test_tensorboard_shows_scalars_and_images_and_hides_what_is_done_again(tmp_path):
    events = Events(tmp_path, 1)
    events.scalars(1, {"a/b": 2.5})
    events.image(2, "picture", np.zeros((4, 6, 3), np.uint8))
    events.close()
    Events(tmp_path, 3).close()
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    first, second = ([Event.FromString(record) for record in records_of(file)] for file in files)
    assert [e.session_log.status for e in (first[1], second[1])] == [SessionLog.START] * 2
    assert [e.step for e in (first[1], second[1])] == [1, 3]
    value = first[2].summary.value[0]
    assert (first[2].step, value.tag, value.simple_value) == (1, "a/b", 2.5)
    image = first[3].summary.value[0].image
    assert (image.height, image.width) == (4, 6)


@pytest.mark.parametrize("kept", range(5))
def test_each_scalar_and_image_of_a_step_stands_once_in_tensorboard(tmp_path, kept):
    """Whatever step a run resumes from, in attempt after attempt, evaluations and all."""
    folder, picture = tmp_path / "tensorboard", np.zeros((4, 6, 3), np.uint8)
    for first, last in ((0, 4), (kept, 5), (3, 3), (3, 6)):
        with open_writer(Workdir(tmp_path), first) as writer:
            for step in range(first, last + 1):  # an evaluation of the step resumed from may have been due
                record = {"loss": 1.0 / (step + 1), "grad_norm": 1.0}
                writer.record(step, record)
                writer.image(step, "samples", picture)
                writer.record(step, record | {"held_out/loss": 2.0})
        with max(folder.iterdir()).open("ab") as file:
            file.write(b"\x08torn")
        (folder / f"{max(folder.iterdir()).name}.tmp").write_bytes(b"cut")
    found = Counter(
        (event.step, value.tag)
        for file in folder.glob("events.*")
        for event in map(Event.FromString, records_of(file))
        for value in event.summary.value
    )
    assert set(found.values()) == {1}
    names = "loss", "grad_norm", "samples", "held_out/loss"
    assert {tag for _, tag in found} == set(names)
    assert sorted(found) == sorted((step, name) for step in range(7) for name in names)


def test_a_damaged_event_file_hinders_nothing(tmp_path):
    for damage in (b"\x10" + 7 * b"\0" + 4 * b"\0" + 20 * b"\xff", 40 * b"\0", b"\xff" * 64):
        (tmp_path / "events.out.tfevents.1").write_bytes(damage)
        assert tensorboard.keep_before(tmp_path, 3) == set()


def records_of(file):
    """The messages of an event file."""
    return [record[12:-4] for record, _ in event_file.read_events(file.read_bytes())]


def test_records_and_events_in_a_bucket_are_there_once_they_are_flushed(remote, monkeypatch):
    monkeypatch.setattr(tensorboard, "LARGE", 200)  # bytes of an event file
    workdir = Workdir(remote)
    with open_writer(workdir, 0) as writer:
        for step in range(1, 6):
            writer.record(step, {"loss": 1.0 / step})
        writer.flush()
        assert [record["step"] for record in read_lines(workdir.metrics)] == [1, 2, 3, 4, 5]
        writer.record(5, {"loss": 0.0})
        writer.bad_step({"step": 5})
        assert writer.bad_steps() == [{"step": 5}]
    with open_writer(workdir, 4):
        pass
    assert [record["step"] for record in read_lines(workdir.metrics)] == [1, 2, 3, 4]
    assert read_lines(workdir.bad_steps) == []
    files = list(workdir.tensorboard.iterdir())
    events = [Event.FromString(record) for file in files for record in records_of(file)]
    assert len(files) > 1
    assert [event.step for event in events if event.HasField("summary")] == [1, 2, 3, 4]
    assert [event.step for event in events if event.session_log.status == SessionLog.START] == [1, 5]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.6, "1m 0s"), (3725, "1h 2m"), (90061, "1d 1h"), (7, "7s")]
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_progress_tells_losses_speed_and_time_left():
    values = dict(loss_text=1.5, loss_image=0.25, grad_norm=1.0, elements_per_second=12345.6, mfu=0.41)
    line = progress_line(50, 1000, values, seconds_per_step=0.1)
    assert line == "step   50/1000  text 1.500  image 0.250  grad 1.00  12,346 elements/s  MFU 41%  1m 35s left"


def test_progress_leaves_out_what_there_is_none_of():
    values = dict(loss_text=1.5, loss_image=math.nan, grad_norm=1.0)  # of a first step, which has no speed
    assert progress_line(1, 10, values, seconds_per_step=0.0) == "step  1/10  text 1.500  grad 1.00  0s left"


def test_a_reading_without_a_step_since_the_last_has_no_speed():
    timer = Timer(3, peak=1.0, devices=1, flops=sum)
    timer.add({"loss": np.float32(2)})
    assert timer.read(3) == {"loss": 2}
