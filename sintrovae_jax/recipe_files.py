"""Recipes: Python files with a function `get_config`, found by path or by name."""

import contextlib
import difflib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from sintrovae_jax import files
from sintrovae_jax.errors import UserError


class Recipe(NamedTuple):
    """A recipe's file, and the argument for its `get_config`; None: no argument."""

    file: Path
    argument: str | None = None

    def __str__(self) -> str:
        return str(self.file) if self.argument is None else f"{self.file}:{self.argument}"


def folder() -> Path:
    """The folder of recipes, in the installed package or in a checkout."""
    installed = Path(__file__).with_name("recipes")
    return installed if installed.is_dir() else Path(__file__).parents[1] / "configs"


def names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in folder().glob("*.py"))


def find(name: str) -> Recipe:
    """The recipe NAME, FILE, NAME:ARGUMENT or FILE:ARGUMENT. Raises `UserError` if there is none.

    Names of folders and arguments may contain colons too: the file's name ends at the first colon before which there is
    a file.
    """
    parts = name.split(":")
    for count in range(1, len(parts) + 1):
        file = _file(":".join(parts[:count]))
        if file.is_file():
            return Recipe(file, ":".join(parts[count:]) if count < len(parts) else None)
    before, py, _ = name.partition(".py:")
    raise UserError(_missing(f"{before}.py" if py else name))


def _file(name: str) -> Path:
    by_name = folder() / f"{name}.py"
    if Path(name).name == name and by_name.is_file():
        return by_name
    return files.place(name) if name.startswith("~") else Path(name)


def _missing(name: str) -> str:
    """Says why there is no recipe with this name."""
    path = Path(name)
    if path.is_dir():
        inside = next(iter(sorted(path.glob("*.py"))), None)
        return f"--config {name} is a folder: name a recipe" + (f" in it, such as {inside}" if inside else "")
    known = [*(str(file) for file in sorted(path.parent.glob("*.py"))), *names()]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    hint = f"did you mean {near[0]}?" if near else f"by name there are {', '.join(names())}"
    return f"no such config file: {name}; {hint}"


def call(recipe: Recipe) -> object:
    """The result of a recipe's `get_config()`. The recipe may import modules from its own folder.

    Raises `UserError`, with the line of the file, if the recipe cannot be run, and if it does not take the argument.
    """
    spec = importlib.util.spec_from_file_location("recipe", recipe.file)
    if spec is None or spec.loader is None:
        raise UserError(f"{recipe.file} is not a Python file")
    module, arguments = importlib.util.module_from_spec(spec), [] if recipe.argument is None else [recipe.argument]
    with _importing_from(recipe.file):
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise UserError(_described(error, recipe.file)) from error
        _check_takes(module, recipe, arguments)
        try:
            return module.get_config(*arguments)
        except Exception as error:
            raise UserError(_described(error, recipe.file)) from error


def _check_takes(module: ModuleType, recipe: Recipe, arguments: list[str]) -> None:
    try:
        inspect.signature(module.get_config).bind(*arguments)
    except (AttributeError, TypeError):
        how = f"takes {arguments[0]!r}" if arguments else "works without arguments"
        raise UserError(f"{recipe.file} is no recipe: it has no get_config() that {how}") from None


@contextlib.contextmanager
def _importing_from(file: Path) -> Iterator[None]:
    """Within the block, modules can also be imported from the folder of this file, as in a script."""
    place = str(file.resolve().parent)
    sys.path.insert(0, place)
    try:
        yield
    finally:
        sys.path.remove(place)


def _described(error: Exception, file: Path) -> str:
    """An error of a recipe as one line, with the number of the recipe's line that raised it."""
    if isinstance(error, SyntaxError):
        place = f"{error.filename or file}:{error.lineno}" if error.lineno else file
        return f"{place}: {type(error).__name__}: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    place = f"{file}:{lines[-1]}" if lines else file
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "  # recipes refuse with ValueError
    while len(error.args) == 1 and isinstance(error.args[0], Exception):  # as ml_collections wraps a KeyError
        error = error.args[0]
    text = error.args[0] if isinstance(error, KeyError) and len(error.args) == 1 else error  # str would quote it
    return f"{place}: {kind}{' '.join(str(text).split())}"
