"""Which files a run reads: of data, of models, and of Python functions with the local modules that they import."""

import ast
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import klimb

Files = dict[str, Path]
"""Files by their names for messages, which stay the same where all of them are moved together."""

# What a model's folder is read for; weights in other formats are never read.
_OF_MODELS = {
    ".bpe", ".jinja", ".json", ".model", ".py", ".safetensors", ".spm", ".tiktoken", ".txt", ".vocab",
}  # fmt: skip
_OF_SUBFOLDERS = {".jinja", ".py"}  # more chat templates, and packages of code
_CACHE = "cache-"  # what `datasets` writes beside a data set that it transforms


def files_of_data(place: Path) -> Files:
    """Find a file by the name `content`, or all that a folder holds, hidden files and caches of `datasets` left out."""
    if place.is_file():
        return {"content": place}
    return {name: file for name, file in _walk(place) if not file.name.startswith(_CACHE)}


def files_of_model(place: Path) -> Files:
    """Find what loading a model or its tokenizer reads: a file by the name `content`, or those of a folder."""
    if place.is_file():
        return {"content": place}
    return {
        name: file
        for name, file in _walk(place)
        if file.suffix in (_OF_MODELS if file.parent == place else _OF_SUBFOLDERS)
    }


def files_of_function(where: str) -> Files:
    """Find the file of a module, by the name `content`, and those of the local modules that it imports, and so on.

    Local is what does not come with Python or from a package index; of a module from there its own package is looked
    at. Imports count wherever they stand, also within functions.

    Args:
        where: A module's name, or a file that ends in .py.
    """
    roots = [Path.cwd(), *map(Path, sys.path)]
    if where.endswith(".py"):
        found = [Path(where).resolve()] if Path(where).is_file() else []
        roots = [Path(where).resolve().parent, *roots]
    else:
        found = list(_module(where, roots))
    if not found:
        return {}
    first, outermost = found[-1], found[0].parent
    waiting = list(found)
    while waiting:
        for file in _imports(waiting.pop(), roots):
            is_own = _is_local(file) if _is_local(first) else file.is_relative_to(outermost)
            if is_own and file not in found:
                found.append(file)
                waiting.append(file)
    return {"content" if file == first else os.path.relpath(file, first.parent): file for file in found}


def files_of_package(package: str, names: Iterable[str]) -> Files:
    """Find some files of an installed package by their names; those that it has."""
    spec = importlib.util.find_spec(package)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    return {
        name: Path(folder) / name for folder in folders for name in names if (Path(folder) / name).is_file()
    }


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    for at, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__pycache__")))
        for name in sorted(names):
            file = Path(at) / name
            if not name.startswith(".") and file.is_file():
                yield file.relative_to(folder).as_posix(), file


def _imports(file: Path, roots: Sequence[Path]) -> Iterator[Path]:
    """Files of the modules that a file imports."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # which loading it tells
        return
    for node in ast.walk(tree):
        folders = roots
        if isinstance(node, ast.ImportFrom) and node.level:
            folders = [file.parents[node.level - 1]]
        for name in _names(node):
            yield from _module(name, folders)


def _names(node: ast.AST) -> list[str]:
    """Names of modules that a piece of code imports; some may be names of what is in them."""
    match node:
        case ast.Import(names=aliases):
            return [alias.name for alias in aliases]
        case ast.ImportFrom(module=module, names=aliases):
            inner = [f"{module}.{alias.name}" if module else alias.name for alias in aliases]
            return [module, *inner] if module else inner
        case ast.Call(
            func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
            args=[ast.Constant(value=str(name)), *_],
        ):
            return [name]
    return []


def _module(name: str, roots: Sequence[Path]) -> Iterator[Path]:
    """The files of the packages that a module is in, from the outermost on, and its own, in the first root with any."""
    parts = name.split(".")
    for root in roots:
        places = [root.joinpath(*parts[:count]) for count in range(1, len(parts) + 1)]
        files = [
            file
            for place in places
            for file in (place / "__init__.py", Path(f"{place}.py"))
            if file.is_file()
        ]
        if files:
            yield from (file.resolve() for file in files)
            return


def _is_local(file: Path) -> bool:
    installed = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    ours = Path(klimb.__file__).parent  # its version is part of the recorded environment
    return not any(file.is_relative_to(place.resolve()) for place in (*installed, ours))
