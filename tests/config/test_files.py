"""Config files that are none, or raise errors, end in one sentence with their line."""

import pytest

from transfusion_jax import config as configs
from transfusion_jax.cli import main
from transfusion_jax.config import ConfigError
from transfusion_jax.scaling.ladder import load_ladder

HEAD = "from ml_collections import ConfigDict, config_dict\n\n\ndef get_config(arg):\n    "
FILES = {  # by what is wrong: the text, and what is said of it after the file's name
    "a text": ("Once upon a time.\n", ", line 1: SyntaxError: "),
    "Markdown": ("# A title\n\nIt isn't code.\n", ", line 3: SyntaxError: unterminated string literal"),
    "one word": ("hello\n", ", line 1: NameError: name 'hello' is not defined"),
    "nothing": ("", " defines no get_config(arg)"),
    "no function": ("get_config = 3\n", " defines no get_config(arg)"),
    "a null character": ("a = '\0'\n", "source code string cannot contain null bytes"),
    "nested too deep": ("(" * 500 + ")" * 500, "SyntaxError: too many nested parentheses"),
    "a key": (HEAD + "return {}['x']\n", ", line 5: KeyError: 'x'"),
    "a module": ("import nonexistent_xyz\n", ", line 1: ModuleNotFoundError: No module named 'nonexistent_xyz'"),
    "an assertion": (HEAD + "assert not arg, 'say which'\n", ", line 5: AssertionError: say which"),
    "an exit": ("import sys\nsys.exit('no')\n", ", line 2: SystemExit: no"),
    "an endless recursion": (HEAD + "return get_config(arg)\n", ", line 5: RecursionError"),
    "deep in a library": ("import json\njson.loads('{')\n", ", line 2: JSONDecodeError: Expecting property name"),
    "a value that it refuses": (HEAD + "raise ValueError('no size')\n", ", line 5: no size"),
    "a number": (HEAD + "return int(arg)\n", ", line 5: invalid literal for int()"),
    "no argument": ("def get_config():\n    pass\n", ": get_config takes no argument: leave :small out"),
    "two arguments": ("def get_config(a, b):\n    pass\n", ": get_config must take 1 argument(s)"),
    "another value": (HEAD + "return {}\n", "must return an ml_collections.ConfigDict"),
    "a missing value": (
        HEAD + "return ConfigDict({'seed': config_dict.required_placeholder(int)})\n",
        ": RequiredValueError: None value",
    ),
    "names that are numbers": (
        HEAD + "return ConfigDict({'data': {'phases': {3: 1}}})\n",
        "a name in data.phases must be of type str, not 3",
    ),
}


@pytest.mark.parametrize("wrong", FILES)
def test_a_config_file_that_is_none_is_named_with_its_line(wrong, tmp_path, capsys):
    text, said = FILES[wrong]
    path = tmp_path / "mine.py"
    path.write_text(text)
    assert main(["train", "--config", f"{path}:small", "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("transfusion: ")
    assert said in error
    assert len(error.splitlines()) == 1
    assert "mine.py" in error or wrong == "names that are numbers"


@pytest.mark.parametrize(
    "name", ["README.md", "mine.txt", "weights.bin", ".", "missing.py", "mine.py/x", "x" * 300, "x/" * 3000]
)
def test_what_is_no_config_file_is_refused(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("# What this is\n\nIt doesn't compile.\n")
    (tmp_path / "mine.txt").write_text("plain words\n")
    (tmp_path / "weights.bin").write_bytes(b"\x80\x02\xff")
    (tmp_path / "mine.py").write_text("")
    for words in (["train", "--dry-run", "--config"], ["scale", "run", "--dry-run", "--ladder"]):
        assert main([*words, name]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_function_without_an_argument_is_called_where_none_is_given(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({'a': 1})\n"
    )
    with pytest.raises(ConfigError, match="unknown config key a"):
        configs.load(str(tmp_path / "mine.py"))


def test_a_ladder_that_raises_is_named_with_its_line(tmp_path):
    (tmp_path / "ladder.py").write_text("def get_ladder():\n    return 1 / 0\n")
    with pytest.raises(ConfigError, match=r"ladder\.py, line 2: ZeroDivisionError: division by zero"):
        load_ladder(tmp_path / "ladder.py")


@pytest.mark.parametrize(
    "named", [["²"], [""], [".."], ["a\0"], ["x" * 300], {"a.py": 3}, {"a.py": "1/0"}, "a.py", [3], 3]
)
def test_an_extension_that_is_none_is_refused(named):
    with pytest.raises(ConfigError):
        configs.extend(named)
