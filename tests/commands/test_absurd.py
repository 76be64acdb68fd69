"""Every option of every command takes absurd values: each is honoured, or refused in one sentence with a code.

The options are those that the parsers declare, so that a new one is asked, too. What a command would do once its
words are known to be sound is replaced by `Reached`.
"""

import argparse
import shutil
import tarfile
from pathlib import Path

import pytest

from transfusion_jax import cli
from transfusion_jax.commands import (
    autoencoder,
    convert,
    doctor,
    evaluate,
    judge,
    plan,
    prepare,
    sample,
    serve,
    train,
)
from transfusion_jax.commands.flags.parser import TYPES
from transfusion_jax.commands.scale import compare, study
from transfusion_jax.commands.scale import run as scale_run
from transfusion_jax.conversion import runs
from transfusion_jax.errors import ConfigError, StorageError, cut_lines, printable
from transfusion_jax.launching import job
from transfusion_jax.training.preflight import check_storage
from transfusion_jax.training.run_dir import Workdir
from transfusion_jax.training.start_run import kept_statistics

ROOT = Path(__file__).parents[2]
STORED = ROOT / "tests/stored/before-the-house.tar.xz"
EMPTY = ["", "\t"]
NO_TEXT = ["a\0b", "\udcff"]
NO_NUMBERS = ["²", "1e400", "nan", "inf", "9" * 5000, "\x1b[31mred", "x" * 300, "--", "."]
NUMBERS = ["-1", "0", "1e30", "99999999999", "99999999999999999999"]
PATHS = ["/proc/x", "/proc/x.png", "/dev/null", "missing/none", "x/" * 3000, "file/in", "é" * 200, "a:²"]
ABSURD = [*EMPTY, *NO_TEXT, *NO_NUMBERS, *NUMBERS, *PATHS]

DEBUG, LADDER = f"{ROOT}/configs/debug.py", f"{ROOT}/configs/ladders/cpu.py"
BASES = {  # by command: its positional arguments, and options, with which it would go on
    "prepare": (["digits"], {"--output": "new"}),
    "doctor": (["digits"], {}),
    "plan": ([], {"--config": DEBUG, "--topology": "v5e:1x1"}),
    "train": ([], {"--config": DEBUG, "--workdir": "new"}),
    "launch local": ([], {"--dry-run": None}),
    "launch slurm": ([], {"--dry-run": None}),
    "launch gke": ([], {"--dry-run": None, "--topology": "v5e:2x2", "--image": "i"}),
    "launch tpu-vm": ([], {"--dry-run": None, "--topology": "v5e:2x2", "--image": "i", "--zone": "z"}),
    "sample": ([], {"--workdir": "run", "--prompt": "a", "--output": "new.png"}),
    "serve": ([], {"--workdir": "run"}),
    "evaluate": ([], {"--workdir": "run"}),
    "judge harness": ([], {"--workdir": "run"}),
    "judge images": ([], {"--workdir": "run", "--inception": "none"}),
    "judge cider": ([], {"--workdir": "run"}),
    "judge geneval": (["none"], {"--workdir": "run", "--output": "new"}),
    "autoencoder train": ([], {"--config": f"{ROOT}/configs/autoencoder.py:kl,small", "--workdir": "new"}),
    "autoencoder reconstruct": ([], {"--workdir": "ae", "--output": "new.png"}),
    "autoencoder export": ([], {"--workdir": "ae", "--output": "new", "--name": "a"}),
    "convert from-hf": (["none"], {"--output": "new"}),
    "convert from-llama": (["none"], {"--output": "new"}),
    "convert to-hf": ([], {"--workdir": "run", "--output": "new"}),
    "convert to-llama": ([], {"--workdir": "run", "--output": "new"}),
    "convert to-safetensors": ([], {"--workdir": "run", "--output": "new"}),
    "convert from-safetensors": (["none"], {"--output": "new"}),
    "convert inspect": (["run"], {}),
    "convert diff": (["run", "run"], {}),
    "convert autoencoder-in": (["none"], {"--output": "new", "--name": "a"}),
    "convert autoencoder-out": (["none"], {"--output": "new"}),
    "scale table": ([], {"--points": "paper"}),
    "scale fit": ([], {"--points": "paper"}),
    "scale plot": ([], {"--points": "paper", "--output": "new"}),
    "scale run": ([], {"--ladder": LADDER, "--workdir": "new"}),
    "scale compare": ([], {"--run": "run", "--reference": "debug"}),
    "scale reference": ([], {"--config": f"{ROOT}/configs/digits.py", "--workdir": "new", "--output": "new.json"}),
}
HERE, BUCKET = (["--", "train", "--config", DEBUG, "--workdir", workdir] for workdir in ("new", "gs://bucket/new"))
AFTER = {"launch local": HERE, "launch slurm": HERE, "launch gke": BUCKET, "launch tpu-vm": BUCKET}
CODES = (ConfigError.exit_code, StorageError.exit_code)


class Reached(Exception):
    """The command would begin its work."""


def reach(*arguments, **options):
    raise Reached


def begin_training(arguments, start, config, *rest):
    """What `train` looks at before it makes devices ready."""
    workdir = Workdir(arguments.workdir)
    check_storage(workdir.path, config)
    kept_statistics(start, workdir, config)
    raise Reached


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    with tarfile.open(STORED) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def here(stored, tmp_path, monkeypatch):
    """A folder with runs and prepared data, where no command does any work."""
    shutil.copytree(stored, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    Path("file").write_text("a file")
    monkeypatch.setattr(train, "_train", begin_training)
    for module, name in [
        *((autoencoder, "_train"), (autoencoder, "_read"), (convert, "describe_leaves"), (convert, "differences")),
        *((convert, "saved_tree"), (runs, "write_run"), (doctor, "data_of"), (doctor, "_examine")),
        *((evaluate, "data_of"), (judge, "read_model"), (plan, "expected"), (prepare.prepare, "begin_job")),
        *((sample, "read_model"), (serve, "run"), (study, "study"), (study.tables, "scores")),
        *((scale_run.ladder, "sweep_runs"), (compare, "run_trainings"), (compare.reference, "hold_to_bands")),
    ]:
        monkeypatch.setattr(module, name, reach)
    monkeypatch.setattr(job, "grace_seconds", lambda config, hosts: 60)
    monkeypatch.setattr(job, "on_mesh", lambda config, topology: None)
    return tmp_path


def leaves(parser, words=()):
    """The commands and their parts that have options of their own."""
    parts = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not parts:
        yield " ".join(words), parser
    for part in parts:
        for name, child in part.choices.items():
            yield from leaves(child, (*words, name))


LEAVES = dict(leaves(cli._parser(set(cli.COMMANDS))))


def lines(command, action):
    """The command with each absurd value for one of its options or positional arguments."""
    positional, options = BASES[command]
    for value in ABSURD:
        given = dict(options)
        before = list(positional)
        count = action.nargs if isinstance(action.nargs, int) else 1
        if action.option_strings:
            name = action.option_strings[-1]
            given.pop(name, None)
            own = [f"{name}={value}"] if count == 1 and name.startswith("--") else [name, *[value] * count]
        else:
            own, before = [value], before[1:]
        others = [word for name, text in given.items() for word in ([name] if text is None else [name, text])]
        yield value, [*command.split(), *others, *own, *before, *AFTER.get(command, [])]


def outcome(words, capsys):
    """The exit code, None where work would begin; and that one sentence is said of what is refused."""
    try:
        code = cli.main(words)
    except Reached:
        return None
    said = capsys.readouterr().err
    if code in CODES:
        assert said.startswith("transfusion: "), said
        assert len(said.splitlines()) == 1, said
        assert len(said) < 5000
        assert "\x1b" not in said
    else:
        assert code in (0, 1), (code, said)
    return code


def test_every_command_is_asked():
    assert LEAVES.keys() == BASES.keys()


@pytest.mark.parametrize("command", BASES)
def test_the_words_without_an_absurd_one_are_honoured(command, here, capsys):
    """Or they end for what is not there, which is no fault of the words."""
    positional, options = BASES[command]
    words = [word for name, text in options.items() for word in ([name] if text is None else [name, text])]
    code = outcome([*command.split(), *words, *positional, *AFTER.get(command, [])], capsys)
    lacks = "none" in [*positional, *options.values()] or command in ("judge cider", "judge harness")
    assert code in (None, 0) or (code == 2 and lacks)


@pytest.mark.parametrize("command", LEAVES)
def test_an_absurd_value_is_refused_in_one_sentence_or_fine(command, here, capsys):
    for action in LEAVES[command]._actions:
        if action.nargs == 0:
            continue
        for value, words in lines(command, action):
            code = outcome(words, capsys)
            if value in NO_TEXT or (value in EMPTY and action.type is not str):
                assert code == ConfigError.exit_code, words
            if value in NO_NUMBERS and (action.type in (int, float) or "between" in str(action.type)):
                assert code == ConfigError.exit_code, words


def test_options_have_types_of_the_parser():
    """Whole numbers, numbers, paths and texts are checked in one place."""
    for command, parser in LEAVES.items():
        for action in parser._actions:
            known = action.type in TYPES or action.type is str or "between" in str(action.type)
            assert known, (command, action.option_strings)


NEW = ["--config", DEBUG, "--workdir", "new"]
SAID = [
    (["train", *NEW, "--profile", "²:³"], "--profile ²:³ must be A:B"),
    (["train", *NEW, "--init-from", "run:²"], "no checkpoint ²: there are 2, latest and best"),
    (["train", *NEW, "--init-from", ""], "argument --init-from: the value is empty"),
    (["train", *NEW, "--wandb", ""], "argument --wandb: the value is empty"),
    (["train", "--config", DEBUG, "--workdir", ""], "argument --workdir: the value is empty"),
    (["train", "--config", DEBUG, "--workdir", "a\0b"], "contains a null character"),
    (["train", "--workdir", "run", "--rewind-to", "2", "--skip-rows", "²:³"], "--skip-rows ²:³ must be A:B"),
    (["doctor", "--workdir", "run", "--row", "99999999999"], "99999999999 must be at most 2,147,483,647"),
    (["doctor", "digits", "--output", "/proc/x.png"], "cannot write to /proc"),
    (["prepare", "digits", "--output", "new", "--shard", "²/³"], "--shard ²/³ must be I/N"),
    (["prepare", "digits", "--output", "new", "--tokenizer", "bpe:²"], "say how many entries, such as bpe:4096"),
    (["prepare", "digits", "--output", "new", "--tokenizer", f"bpe:{'9' * 20}"], "say how many entries"),
    (["prepare", "digits", "--output", "/proc/o"], "cannot write to /proc/o"),
    (["prepare", "digits", "--output", "/dev/null"], "/dev/null is a file: choose a folder"),
    (["prepare", "digits", "--output", "file/in"], "file is a file: nothing can be written to file/in"),
    (["sample", "--workdir", "run", "--prompt", "x", "--top-k", "1099511627776"], "must be at most 2,147,483,647"),
    (["sample", "--workdir", "run", "--prompt", "x", "--output", "/proc/a.png"], "cannot write to /proc"),
    (
        ["sample", "--workdir", "run", "--prompt", "x", "-n", "2000000000"],
        "-n: 2000000000 must be at most",
    ),
    (["convert", "autoencoder-in", "file", "--output", "new", "--name", "x"], "file"),
    (["scale", "plot", "--points", "paper", "--output", "/proc/x"], "cannot write to /proc/x"),
    (["scale", "run", "--ladder", LADDER, "--workdir", "new", "--launch", "slurm 'a"], "No closing quotation"),
    (["plan", "--config", DEBUG, "--topology", "v5e:99999999x2"], "at most 1,000,000 chips are planned for"),
    (["train", *NEW, "--config.name=\x1b[31mred", "--config.seed=x"], "seed must be of type int, not 'x'"),
    (["train", "--config", "\x1b[31mred", "--dry-run"], r"no config file \x1b[31mred"),
    (["train", *NEW, "--profile=--"], "-- is no value of an option"),
]


@pytest.mark.parametrize(("words", "said"), SAID)
def test_what_ended_in_a_traceback_ends_in_a_sentence(words, said, here, monkeypatch, capsys):
    def read_start(arguments, start, config, *rest):
        kept_statistics(start, Workdir(arguments.workdir), config)
        raise Reached

    monkeypatch.setattr(train, "_train", read_start)
    assert cli.main(words) in CODES
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
    assert not Path("new").exists()


def test_a_long_message_is_cut_and_a_list_keeps_its_lines():
    text = cut_lines(printable(f"no file {'x' * 9000}:\n  a\x07\n  b\u202e\r"))
    assert len(text) < 2100
    assert text.splitlines()[1:] == [r"  a\x07", r"  b\u202e\r"]


def test_an_empty_text_is_one_where_any_text_is(here, capsys):
    assert outcome(["sample", "--workdir", "run", "--prompt", "", "--output", "new.png"], capsys) is None
