"""Tables of named choices, one for each kind, to which a config file or an installed package can add.

    NOISE_SCHEDULES.add("sigmoid", sigmoid, help="…")  # or @NOISE_SCHEDULES.add("sigmoid") above the function

The same table checks the config, writes the help and gives the code its implementation. See docs/extending.md.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from transfusion_jax.errors import ConfigError, UserError, nearest, require

PACKAGE = Path(__file__).parents[1]
GUIDE = "docs/extending.md"


@dataclass(frozen=True)
class Origin:
    """The file that is being executed."""

    file: str = ""  # "": none that is a config or an extension
    kept: bool = False  # by a run, in its config; otherwise the user has named it


@dataclass(frozen=True)
class Entry:
    """One choice."""

    help: str  # one line
    find: Callable[[], Any]  # imports it
    source: Origin = Origin()  # of one that was added


class Choices(Mapping[str, Any]):
    """The choices of one kind by name.

    The package's own are found where their code is: they are the modules of a folder that define `attribute`, or
    the public functions of a file, and their help is the first line of their docstring. Names and help are read
    from the text; an implementation is imported when it is asked for.
    """

    def __init__(self, name: str, place: str, attribute: str = "") -> None:
        """The table that is called `name` in capitals, with the package's own choices at `place` in the package.

        Installed packages add to it by entry points of the group `transfusion_jax.NAME`.
        """
        self.name, self.place, self.attribute = name, place, attribute
        self._added: dict[str, Entry] = {}

    def add(self, name: str, implementation: Any = None, *, help: str = "") -> Any:
        """Adds a choice, and returns it; without `implementation`, a decorator.

        Args:
            name: what a config calls it.
            implementation: of the type that docs/extending.md gives for this table.
            help: one line; by default the first one of its docstring.

        Raises:
            ConfigError: the name is taken.
        """
        if implementation is None:
            return lambda found: self.add(name, found, help=help)
        new, old = _executing, self._added[name].source if name in self._added else None
        if old and new.kept and not old.kept:
            return implementation  # the user's own file has said what it is
        replaces = old and not new.kept and (old.kept or old.file == new.file != "")
        if name in self and not replaces:
            where = f"of {old.file}" if old and old.file else "added before" if old else "built in or installed"
            raise ConfigError(f"{self.name.upper()} has {name!r} already ({where}): choose another name")
        line = help or (implementation.__doc__ or "").strip().partition("\n")[0]
        self._added[name] = Entry(line, lambda: implementation, new)
        _additions.append(name)
        return implementation

    def check(self, field: str, value: str, *others: str) -> None:
        """Requires the name of a choice, or one of some others that the field has besides.

        Raises:
            ConfigError: it is none; the message names the nearest one, and says how to add one.
        """
        if value in others or value in self:
            return
        raise ConfigError(
            f"{field} is {value!r}; {nearest(value, (*others, *self))} (a config file adds one with "
            f"{self.name.upper()}.add: {GUIDE})"
        )

    @property
    def help(self) -> dict[str, str]:
        """A line on each choice, by name."""
        return {name: entry.help for name, entry in self._all().items()}

    def __getitem__(self, name: str) -> Any:
        """The implementation; a name that is none raises ConfigError, as `check` does."""
        self.check(self.name.replace("_", " ").removesuffix("s"), name)
        return self._entry(name).find()

    def __contains__(self, name: object) -> bool:
        return any(name in entries for entries in (self._added, self._own)) or name in self._installed

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _entry(self, name: str) -> Entry:
        return self._added.get(name) or self._own.get(name) or self._installed[name]

    def _all(self) -> dict[str, Entry]:
        return {**self._own, **self._installed, **self._added}

    @cached_property
    def _own(self) -> dict[str, Entry]:
        module = f"{PACKAGE.name}.{self.place.replace('/', '.').removesuffix('.py')}"
        path = PACKAGE / self.place
        if path.is_dir():
            texts = {file.stem: file.read_text() for file in sorted(path.glob("[!_]*.py"))}
            defines = re.compile(rf"^(class |def )?{self.attribute}\b", re.MULTILINE)
            return {
                name: Entry(_first_line(text), _Import(f"{module}.{name}", self.attribute))
                for name, text in texts.items()
                if defines.search(text)
            }
        return {
            node.name: Entry((ast.get_docstring(node) or "").partition("\n")[0], _Import(module, node.name))
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
        }

    @cached_property
    def _installed(self) -> dict[str, Entry]:
        """What installed packages add; looked up where a name is unknown, and for a list."""
        found = {}
        for point in metadata.entry_points(group=f"{PACKAGE.name}.{self.name}"):
            package = f"package {point.dist.name}" if point.dist else point.value
            require(
                point.name not in self._own,
                f"{package} adds {point.name!r} to {self.name.upper()}, which has it already: uninstall it",
            )
            found[point.name] = Entry(f"of {package}", point.load)
        return found


@dataclass(frozen=True)
class _Import:
    """Imports a module, and takes a name from it."""

    module: str
    name: str

    def __call__(self) -> Any:
        return getattr(import_module(self.module), self.name)


def _first_line(text: str) -> str:
    """Of a module's docstring, which begins its text."""
    return text.removeprefix('"""').partition("\n")[0].removesuffix('"""')


_executing = Origin()
_additions: list[str] = []  # names in the order in which they were added
_extensions: dict[str, ModuleType] = {}  # files that added something, by a hash of their text


def execute(file: str, text: str, kept: bool = False) -> tuple[ModuleType, bool]:
    """A Python file as a module, and whether it adds to a table; one that does is executed once in a process.

    Where a file that the user names and a run's `kept` one add the same name, the user's counts.
    """
    global _executing
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    if digest in _extensions:
        return _extensions[digest], True
    module, before = ModuleType(f"extension_{digest}"), (_executing, len(_additions))
    module.__file__ = file
    sys.modules[module.__name__] = module  # dataclasses look their module up
    _executing = Origin(file, kept)
    try:
        with errors_of(file):
            exec(compile(text, file, "exec"), module.__dict__)
    finally:
        _executing = before[0]
    if added := len(_additions) > before[1]:
        _extensions[digest] = module
    return module, added


@contextmanager
def errors_of(file: str) -> Iterator[None]:
    """Raises ConfigError, with the line, for whatever a Python file of the user's raises within."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        if isinstance(error, SyntaxError) and error.filename == file:
            lines = [error.lineno]
        where = f"{file}, line {lines[-1]}" if lines else file
        what = str(error.msg if isinstance(error, SyntaxError) else error)
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise ConfigError(f"{where}: {kind}{what}") from error


def extend(named: Any) -> dict[str, str]:
    """Loads extensions, and returns them as a config keeps them: texts by file name, "" for a module's name.

    Args:
        named: modules and .py files as the user names them, or what this has returned before.

    Raises:
        ConfigError: there is no such module or file.
    """
    kept = isinstance(named, Mapping)
    words = [*named, *named.values()] if kept else named
    require(
        isinstance(words, list | tuple) and all(isinstance(word, str) for word in words),
        f"extensions must be a list of modules and .py files, not {named!r}",
    )
    found: dict[str, str] = {}
    for name in named:
        text = named[name] if kept else _text_of(name)
        if text:
            execute(name, text, kept)
        else:
            with errors_of(f"extensions: {name} cannot be imported"):
                import_module(name)
        key = Path(name).name if text else name
        require(key not in found, f"extensions: two files are called {key}: rename one")
        found[key] = text
    return found


def _text_of(name: str) -> str:
    if not name.endswith(".py"):
        return ""
    require(Path(name).is_file(), f"extensions: there is no file {name}")
    return read_source(Path(name))


def read_source(path: Path) -> str:
    """The text of a Python file.

    Raises:
        ConfigError: it is not UTF-8.
    """
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no Python file: it is not UTF-8 text ({error.reason})") from error


ATTENTION = Choices("attention", "kernels/attention", "attention")
AUTOENCODERS = Choices("autoencoders", "autoencoder/kinds", "from_name")
HOOKS = Choices("hooks", "commands/hooks", "hook")
IMAGES = Choices("images", "tasks/families.py")
IMPORTERS = Choices("importers", "conversion/importers.py")
NOISE_SCHEDULES = Choices("noise_schedules", "diffusion/noise_schedules.py")
OBJECTIVES = Choices("objectives", "diffusion/objectives.py")
OPTIMIZERS = Choices("optimizers", "training/step/optimizers.py")
PATCH_CODERS = Choices("patch_coders", "model/coders", "PatchCoder")
RATE_SCHEDULES = Choices("rate_schedules", "training/step/rate_schedules.py")
READERS = Choices("readers", "data/readers", "FORMAT")
REMAT_POLICIES = Choices("remat_policies", "model/remat.py")
ROPE_SCALINGS = Choices("rope_scalings", "model/rope_scalings.py")
SUITES = Choices("suites", "evaluation/suites", "SUITE")
TIMESTEPS = Choices("timesteps", "diffusion/timesteps.py")
