"""Files are written whole or not at all, and checked when they are read; nothing is written in another way."""

import ast
import errno
import json
import os
import socket
from contextlib import suppress
from pathlib import Path

import pytest

import transfusion_jax
from transfusion_jax.errors import StorageError
from transfusion_jax.storage import atomic
from transfusion_jax.storage.atomic import (
    DamagedFile,
    LostFolder,
    append,
    claimed,
    parse_json,
    read_json,
    sweep_unfinished,
    whole,
    write_json,
    write_whole,
)

PACKAGE = Path(transfusion_jax.__file__).parent
WRITES = {
    "write_text",
    "write_bytes",
    "upload",
    "tofile",
    "save_file",
    "savefig",
    "memmap",
    "put_file",
    "pipe_file",
}
MODES = set("wax+")
ALLOWED = {
    "storage/atomic.py": "the one way to write",
    "storage/paths.py": "`put`, with which `whole` ends",
    "storage/gcs.py": "a bucket puts objects whole",
    "data/packing/plan_store.py": "a folder of the cache that is renamed into place",
    "data/store/index_cache.py": "a folder of the cache that is renamed into place",
    "data/prepare/finish.py": "an array, and lines, inside `whole`",
    "data/prepare/shard.py": "lines as they come, inside `whole`",
    "conversion/shards.py": "tensors piece by piece, inside `whole`",
    "launching/supervisor.py": "a log that grows while a program runs",
    "launching/tpu_vm.py": "a script in a folder for a moment",
    "training/run_dir.py": "the lock, which holds nothing",
    "training/monitoring/tensorboard.py": "an event file, which grows with each step",
    "training/preflight.py": "a probe that is deleted at once",
    "storage/lock.py": "the lock in a bucket, by the generation that it takes the place of",
    "scaling/report.py": "a figure into memory",
    "commands/common/launch_args.py": "/dev/null",
}


def test_nothing_is_written_in_another_way():
    """A module that opens a file to write, or calls what does, stands in the list with its reason."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and _writes(node):
                found.setdefault(str(path.relative_to(PACKAGE)), []).append(node.lineno)
    assert {name: lines for name, lines in found.items() if name not in ALLOWED} == {}
    assert ALLOWED.keys() == found.keys()


def _writes(call: ast.Call) -> bool:
    called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    words = [value.value for value in call.args if isinstance(value, ast.Constant) and isinstance(value.value, str)]
    if called == "memmap" and "r" in words:
        return False
    if called == "open":
        return any(MODES & set(word) and len(word) < 4 for word in words)
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    numpy = called in ("save", "savez") and isinstance(owner, ast.Name) and owner.id == "np"
    streamed = numpy and call.args and isinstance(call.args[0], ast.Name) and call.args[0].id == "packed"
    dumped = called == "dump" and isinstance(owner, ast.Name) and owner.id == "json"
    stored = called == "write" and isinstance(owner, ast.Name) and owner.id == "store"
    return called in WRITES or (numpy and not streamed) or dumped or stored


def test_a_file_is_there_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "folder/x.json"
    write_whole(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(StorageError, match=r"cannot write .*x\.json: No space left") as raised:
        write_whole(path, "new")
    assert raised.value.exit_code == 74
    with pytest.raises(KeyboardInterrupt):
        _interrupted(path)
    assert [(file.name, file.read_text()) for file in path.parent.iterdir()] == [("x.json", "old")]


def _interrupted(path):
    with whole(path) as beside:
        beside.write_text("ne")
        raise KeyboardInterrupt


@pytest.mark.parametrize("path", ["/proc/x.json", "/dev/full", "file/x.json"])
def test_what_cannot_be_written_is_one_sentence(path, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        write_whole(tmp_path / path, "new")
    with pytest.raises(StorageError, match="cannot write"):
        append(tmp_path / path, "new")


def test_a_pipe_and_a_link_stay_what_they_are(tmp_path):
    write_whole(Path("/dev/null"), "nothing")
    assert Path("/dev/null").is_char_device()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_whole(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "text"


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path):
    nobody, host = 2**22 + 1, socket.gethostname()  # Linux has no such process
    stay = ["x", f"x.{host}-{os.getpid()}-1.tmp", f"x.elsewhere-{nobody}-1.tmp", "y.tmp"]
    for name in [*stay, f"x.json.{host}-{nobody}-77.tmp"]:
        (tmp_path / name).write_text("")
    sweep_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(stay)
    sweep_unfinished(tmp_path / "none")


VALUES = {"b": [1, 2.5, None, {"ü": "x"}], "a": {"2": 1, "10": True}}


def test_every_flipped_bit_of_a_json_file_is_found(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, VALUES, indent=1)
    data = path.read_bytes()
    assert read_json(path, "") == VALUES
    for place in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        with suppress(DamagedFile):
            found = parse_json(bytes(flipped), path, "mend it")
            assert {name: found[name] for name in VALUES} == VALUES  # white space, or the name of the hash
    for length in range(len(data) - 1):
        with pytest.raises(DamagedFile, match=r"x\.json is damaged.*: mend it"):
            parse_json(data[:length], path, "mend it")


def test_a_file_of_a_former_version_has_no_hash(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(VALUES))
    assert read_json(path, "") == VALUES
    path.write_text("[]")
    with pytest.raises(DamagedFile, match="is not a JSON object"):
        read_json(path, "")


def test_a_claim_is_asked_before_each_write_below_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lost = []

    def check():
        if lost:
            raise LostFolder("it is gone")

    def lose(path):
        with whole(path) as beside:
            beside.write_text("written before, and put in place after")
            lost.append(path)

    with claimed(Path("run"), check):
        write_whole(tmp_path / "run/x", "1")
        with pytest.raises(LostFolder, match="it is gone"):
            lose(tmp_path / "run/y")
        for write in (lambda: write_whole(Path("run/x"), "2"), lambda: append(tmp_path / "run/x", "2")):
            with pytest.raises(LostFolder, match="it is gone"):
                write()
        write_whole(tmp_path / "running/x", "elsewhere")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["x"]
    write_whole(Path("run/x"), "2")
