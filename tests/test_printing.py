"""What commands print, into whatever stdout is."""

import io
import json
import os
import sys

import pytest

from transfusion_jax.cli import main

TEXTS = ["a café", "x − y × z", "日本語", "👩🚀"]


@pytest.fixture
def command(tmp_path):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (tmp_path / "a.jsonl").write_text(lines)
    return ["prepare", str(tmp_path / "a.jsonl"), "--output", str(tmp_path / "out"), "--dry-run"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_what_an_encoding_does_not_have_is_escaped(encoding, command, monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding))
    assert main(command) == 0
    for text in TEXTS:
        assert text.encode(encoding, "backslashreplace") in shown.getvalue()


@pytest.mark.parametrize("buffered", [True, False])
def test_a_reader_that_leaves_ends_the_command_in_a_sentence(buffered, command, monkeypatch, capfd):
    reading, printing = os.pipe()
    os.close(reading)
    with open(printing, "w", buffering=-1 if buffered else 1) as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(command) == 74
    assert capfd.readouterr().err == "transfusion: nobody reads what is printed any more\n"


def test_no_stdout_at_all_is_none_to_print_to(command, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(command) == 0


def test_another_pipe_that_breaks_is_no_matter_of_printing(command, monkeypatch):
    def broken(*_):
        raise BrokenPipeError("of a worker")

    monkeypatch.setattr("transfusion_jax.commands.prepare.run", broken)
    with pytest.raises(BrokenPipeError, match="of a worker"):
        main(command)
