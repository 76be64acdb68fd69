"""Event files as tensorboardX reads and writes them."""

import math
import struct

import numpy as np
import pytest
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter, masked_crc32c

from transfusion_jax.training.monitoring import event_file

CONTENTS = {
    "head": event_file.head(),
    "start": event_file.session_start(),
    "scalars": event_file.scalars({"loss": 2.5, "held_out/é": -1e-3, "huge": 1e300}),
    "image": event_file.image("samples", 4, 300, b"\x89PNG"),
}


@pytest.mark.parametrize("step", [0, 1, 127, 128, 2**40])
def test_each_event_is_read_by_another_reader(step):
    read = {name: Event.FromString(event_file.event(1.5e9, step, content)) for name, content in CONTENTS.items()}
    assert {(event.step, event.wall_time) for event in read.values()} == {(step, 1.5e9)}
    assert read["head"].file_version == "brain.Event:2"
    assert read["start"].session_log.status == SessionLog.START
    found = {value.tag: value.simple_value for value in read["scalars"].summary.value}
    assert found == {"loss": 2.5, "held_out/é": np.float32(-1e-3), "huge": math.inf}
    (value,) = read["image"].summary.value
    assert (value.tag, value.image.height, value.image.width, value.image.colorspace) == ("samples", 4, 300, 3)
    assert value.image.encoded_image_string == b"\x89PNG"


def test_records_are_framed_as_another_writer_frames_them(tmp_path):
    messages = [event_file.event(0.5, 3, content) for content in CONTENTS.values()]
    writer = RecordWriter(str(tmp_path / "events"))
    for message in messages:
        writer.write(message)
    writer.close()
    data = (tmp_path / "events").read_bytes()
    assert data == b"".join(map(event_file.framed, messages))
    (crc,) = struct.unpack("<I", event_file.framed(b"message")[-4:])
    assert crc == masked_crc32c(b"message")


def test_what_another_writer_wrote_is_read():
    image = summary.image("samples", np.zeros((4, 6, 3), np.uint8), dataformats="HWC")
    events = [
        Event(wall_time=1.0, file_version="brain.Event:2"),
        Event(wall_time=1.0, step=2, session_log=SessionLog(status=SessionLog.START)),
        Event(wall_time=1.0, step=2, summary=summary.scalar("loss", 1.0)),
        Event(wall_time=1.0, step=300, summary=image),
    ]
    data = b"".join(event_file.framed(event.SerializeToString()) for event in events)
    assert [found for _, found in event_file.read_events(data)] == [
        (0, frozenset(), True),
        (2, frozenset(), False),
        (2, frozenset({"loss"}), False),
        (300, frozenset({"samples"}), False),
    ]
    assert b"".join(record for record, _ in event_file.read_events(data)) == data


def test_no_flipped_bit_changes_what_is_read():
    records = [event_file.framed(event_file.event(0.5, 3, content)) for content in CONTENTS.values()]
    data = b"".join(records)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        whole = next(n for n in range(len(records)) if bit // 8 < sum(map(len, records[: n + 1])))
        assert [record for record, _ in event_file.read_events(bytes(damaged))] == records[:whole]
    for cut in range(len(data)):
        assert b"".join(record for record, _ in event_file.read_events(data[:cut])) in [
            b"".join(records[:n]) for n in range(len(records))
        ]


@pytest.mark.parametrize("message", [b"\x08", b"\x0a\x05ab", b"\x0b", b"\x28\x01", b"\x2a\x02\x0a\x05"])
def test_a_message_that_is_no_event_ends_the_file(message):
    assert list(event_file.read_events(event_file.framed(message))) == []
