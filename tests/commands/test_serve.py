"""`transfusion serve` with words that it cannot honour: one sentence each, before a model is read."""

import pytest

from transfusion_jax.cli import main


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--host", ""], "--host is empty"),
        (["--host", "a\0b"], "is no host's name"),
        (["--host", "é" * 60], "is no host's name"),
        (["--host", "a." * 200], "is no host's name"),
        (["--host", "::g"], "is no IPv6 address"),
        (["--port", "70000"], "--port must lie between 0 and 65535, not 70000"),
        (["--port", "-1"], "--port must lie between 0 and 65535, not -1"),
        (["--waiting", "0"], "--waiting must be at least 1"),
        (["--host", "0.0.0.0"], "set a token in TRANSFUSION_TOKEN, or say --no-token"),
        (["--host", "::"], "set a token in TRANSFUSION_TOKEN, or say --no-token"),
        (["--token", ""], "--token must be printable ASCII without blanks, and not empty"),
        (["--token", "a", "--no-token"], "--token and --no-token exclude each other"),
        (["--port", "0", "--allow-host", ""], "--allow-host is ''"),
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
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--workdir", str(tmp_path / "none"), "--port", port])
    assert ended.value.code == 2
    assert "--port" in capsys.readouterr().err
