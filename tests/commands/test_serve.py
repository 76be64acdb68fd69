"""`transfusion serve` with words that it cannot honour: one sentence each, before a model is read."""

from types import SimpleNamespace

import pytest

from transfusion_jax.cli import main
from transfusion_jax.commands import serve as command
from transfusion_jax.serving import server


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--host", ""], "argument --host: the value is empty"),
        (["--host", "a\0b"], "contains a null character"),
        (["--host", "é" * 60], "is no host's name"),
        (["--host", "a." * 200], "is no host's name"),
        (["--host", "::g"], "is no IPv6 address"),
        (["--port", "70000"], "argument --port: 70000 must be at most 65,535"),
        (["--port", "-1"], "argument --port: -1 must be at least 0"),
        (["--waiting", "0"], "argument --waiting: 0 must be at least 1"),
        (["--host", "0.0.0.0"], "set a token in TRANSFUSION_TOKEN, or say --no-token"),
        (["--host", "::"], "set a token in TRANSFUSION_TOKEN, or say --no-token"),
        (["--token", ""], "argument --token: the value is empty"),
        (["--token", "a", "--no-token"], "--token and --no-token exclude each other"),
        (["--port", "0", "--allow-host", ""], "argument --allow-host: the value is empty"),
        (["--port", "0"], "no run in"),
        (["--port", "0", "--host", "0.0.0.0", "--no-token"], "no run in"),
    ],
)
def test_impossible_words_are_one_sentence(words, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("TRANSFUSION_TOKEN", raising=False)
    assert main(["serve", "--workdir", str(tmp_path / "none"), *words]) == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.err.count("\n") == 1
    assert said.err.strip().isprintable()


@pytest.mark.parametrize("port", ["²", "x", "", "1e3"])
def test_a_port_that_is_no_number_ends_the_command(port, tmp_path, capsys):
    assert main(["serve", "--workdir", str(tmp_path / "none"), "--port", port]) == 2
    assert "argument --port: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "token", "lines", "url"),
    [
        ([], None, 0, "http://127.0.0.1:{port}"),
        (["--host", "localhost"], None, 0, "http://localhost:{port}"),
        (["--no-token"], None, 0, "http://127.0.0.1:{port}"),
        (["--host", "0.0.0.0", "--no-token"], None, 2, "http://127.0.0.1:{port}"),
        (["--host", "0.0.0.0", "--token", "a/b"], "a/b", 1, "http://127.0.0.1:{port}/#token=a%2Fb"),
        (["--token", "abc"], "abc", 0, "http://127.0.0.1:{port}/#token=abc"),
    ],
)
def test_who_may_ask_is_decided_by_the_words(words, token, lines, url, capsys, monkeypatch):
    monkeypatch.delenv("TRANSFUSION_TOKEN", raising=False)
    found = {}

    def serve(task, params, workdir, read, listening, access, url, waiting):
        found.update(port=listening.getsockname()[1], access=access, url=url)
        return 0

    model = SimpleNamespace(by_layer=lambda params: params)
    read = (
        SimpleNamespace(config=SimpleNamespace(sampling=command.SamplingConfig()), model=model),
        {},
        None,
        3,
        "ema",
    )
    monkeypatch.setattr(command, "read_model", lambda *_: read)
    monkeypatch.setattr(command, "untrained_branch", lambda *_: [])
    monkeypatch.setattr(server, "serve", serve)
    assert main(["serve", "--workdir", "x", "--port", "0", "--allow-host", "proxy.example", *words]) == 0
    port = found["port"]
    assert found["url"] == url.format(port=port)
    assert found["access"].token == token
    assert {("localhost", port), ("proxy.example", None)} <= found["access"].names
    printed = capsys.readouterr().out
    assert ("whoever reaches " in printed) is (lines == 2)
    assert ("other machines reach port" in printed) is (lines > 0)
    assert printed.count("\n") == lines
