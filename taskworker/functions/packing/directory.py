"""A directory of code: its modules, their imports of each other, and which of its files are packed.

Imports are read from the source, including those inside functions. An import that the source does not show, such as one
whose name is computed at run time, is found when the bundle is imported in a sandbox.
"""

from __future__ import annotations

import ast
import stat
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from storage.errors import InvalidArgument
from taskworker.functions.packing.dependencies import PROVIDED

_LEFT_OUT = {"__pycache__", ".git", ".venv", "node_modules", ".mypy_cache", ".pytest_cache", ".ruff_cache"}
_LOADED_BEFORE = {"taskworker", *PROVIDED}
"""Modules that a sandbox has loaded already: it would not use a function's own modules of these names."""
_IMPORTING = ("import_module", "__import__")
_SPECIAL = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class CodeDirectory:
    """The code and data of a function's author.

    Args:
        root: the directory.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def travelling(self, module: str, modules: Collection[str], data: Collection[Path]) -> list[Path]:
        """The files to pack: modules, everything they import from this directory, and ``data``.

        Args:
            module: dotted name of the function's module.
            modules: further modules.
            data: further files.

        Raises:
            InvalidArgument: there is no such module, or a file is not a regular file.
        """
        self._require(module)
        taken: dict[Path, None] = dict.fromkeys(data)
        wanted = [module, *modules]
        wanted += (name for path in data for name in _imported_by(path))
        seen: set[str] = set()
        while wanted:
            top = wanted.pop().partition(".")[0]
            if top in seen:
                continue
            seen.add(top)
            for path in self._files_of(top):
                if path not in taken:
                    taken[path] = None
                    wanted += _imported_by(path)
        return sorted(taken)

    def has(self, module: str) -> bool:
        """Whether this directory has the module with this name, or its package."""
        return bool(self._files_of(module.partition(".")[0]))

    def included(self, patterns: Sequence[str]) -> list[Path]:
        """Find files by name, directory or pattern.

        Raises:
            InvalidArgument: nothing matches, a file is outside the directory, or it is not a regular file.
        """
        found: dict[Path, None] = {}
        for pattern in patterns:
            parts = Path(pattern).parts
            if not parts or Path(pattern).is_absolute() or ".." in parts:
                raise InvalidArgument(f"include {pattern!r}: name files in the function's directory, relative to it")
            matching = [file for path in sorted(self._root.glob(pattern)) for file in self._below(path)]
            if not matching:
                raise InvalidArgument(f"include {pattern!r}: there is no such file in {self._root}")
            found |= dict.fromkeys(matching)
        return list(found)

    def _below(self, path: Path) -> Iterator[Path]:
        for above in path.parents[: len(path.relative_to(self._root).parts) - 1]:
            _require_no_special(above)
        yield from _plain_files(path)

    def _require(self, module: str) -> None:
        top = module.partition(".")[0]
        if not self._files_of(top):
            raise InvalidArgument(
                f"there is no module {top!r} in {self._root}: neither {top}.py nor a directory {top} with modules"
            )
        within = self._root.joinpath(*module.split("."))
        if not within.with_suffix(".py").is_file() and not (within / "__init__.py").is_file():
            raise InvalidArgument(f"there is no module {module!r} in {self._root}")

    def _files_of(self, top: str) -> list[Path]:
        """The files of a top-level module or package, chosen as by an import; empty if it is not here."""
        package, single = self._root / top, self._root / f"{top}.py"
        if not top.isidentifier():  # such as ".plugins": the name before the dot is empty
            return []
        if top in _LEFT_OUT or top in _LOADED_BEFORE:
            return []
        if (package / "__init__.py").is_file():
            return list(_plain_files(package))
        if single.is_file():
            return list(_plain_files(single))
        if top not in sys.stdlib_module_names and package.is_dir() and any(package.rglob("*.py")):
            return list(_plain_files(package))
        return []


def _plain_files(path: Path) -> Iterator[Path]:
    """A file, or all files below a directory.

    Raises:
        InvalidArgument: one of them is neither a regular file nor a directory.
    """
    if path.name in _LEFT_OUT:
        return
    _require_no_special(path)
    if path.is_dir():
        for below in sorted(path.iterdir()):
            yield from _plain_files(below)
    else:
        yield path


def _require_no_special(path: Path) -> None:
    kind = stat.S_IFMT(path.lstat().st_mode)
    if kind not in (stat.S_IFREG, stat.S_IFDIR):
        raise InvalidArgument(
            f"{path} is {_SPECIAL.get(kind, 'a special file')}: only regular files and directories can be packed; "
            "replace it with a copy, or remove it"
        )


def _imported_by(path: Path) -> Iterator[str]:
    """Names of modules that a source file may import; none for other files."""
    if path.suffix != ".py":
        return
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # importing it will report the error
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
        elif isinstance(node, ast.Call) and _named(node.func) in _IMPORTING and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value


def _named(called: ast.expr) -> str:
    return called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
