import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from transfusion_jax.data.prepare.shard import WRITE, WRITE_TEXT
from transfusion_jax.data.store.remote_records import BLOCK, DamagedRecord, places, records_of_chunk

SIZES = {
    "none": [],
    "empty": [0],
    "small": [0, 5, 100, 0, 3],
    "over blocks": [70_000, BLOCK, BLOCK - 24, 200_000, 1, 0, 12],
    "at the ends of blocks": list(range(BLOCK - 100, BLOCK + 40, 7)),
    "many": [n % 300 for n in range(30_000)],  # their places take more than what is read of a file's end at first
}


def write(path, sizes, options):
    random = np.random.default_rng(0)
    records = [
        (random.integers(0, 256, size, np.uint8) // (1 + 60 * (n % 2))).tobytes() for n, size in enumerate(sizes)
    ]
    writer = ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()
    return records


@pytest.mark.parametrize("options", [WRITE, WRITE_TEXT], ids=["plain", "compressed"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_records_are_those_of_the_real_reader(remote, tmp_path, sizes, options):
    path, local = remote / "x.array_record", tmp_path / "x"
    records = write(local, sizes, options)
    path.upload(local)
    ((begins, last),) = places([(path, local.stat().st_size)])
    ends = np.append(begins[1:], last)[: len(begins)]
    assert len(begins) == len(records)
    reader = ArrayRecordReader(str(local))
    for n in range(0, len(records), max(1, len(records) // 40)):
        (found,) = records_of_chunk(path.read_bytes(int(begins[n]), int(ends[n])), int(begins[n]))
        assert found == records[n] == reader.read([n])[0]


def test_damage_is_found(remote, tmp_path):
    local, path = tmp_path / "x", remote / "x"
    write(local, [500] * 10, WRITE_TEXT)
    whole = local.read_bytes()
    path.write_bytes(whole)
    ((begins, _),) = places([(path, len(whole))])
    chunk = whole[begins[3] : begins[4]]
    assert len(records_of_chunk(chunk, int(begins[3]))[0]) == 500
    for broken in (chunk[:100], chunk[:24] + b"\xff" + chunk[25:], chunk[:60] + b"\xff" * 20 + chunk[80:], b""):
        with pytest.raises(DamagedRecord):
            records_of_chunk(broken, int(begins[3]))
    for broken in (whole[:-BLOCK], whole[:-1], b"\0" * len(whole), whole[:-BLOCK] + b"\0" * BLOCK):
        path.write_bytes(broken)
        with pytest.raises(DamagedRecord, match=r"gs://.*/x is damaged"):
            list(places([(path, len(broken))]))


def test_groups_of_records_are_refused(remote, tmp_path):
    write(tmp_path / "x", [5] * 10, "group_size:5,uncompressed")
    (remote / "x").upload(tmp_path / "x")
    with pytest.raises(DamagedRecord, match="more than one record in a group"):
        list(places([(remote / "x", (tmp_path / "x").stat().st_size)]))
