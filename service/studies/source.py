"""Source: the fingerprint of an objective's Python files.

It covers the objective's module; the package that this lies in, all of it; and the modules and
packages of the same folder that these files import, however deep. A folder with ``__init__.py`` is
a package. An objective that is installed, by its name or in ``site-packages``, is covered by its
own package or module alone: the versions of packages say the rest. Imports are read from the text,
without running it, wherever they stand in it. Line endings do not count; names are relative to the
folder, so that machines may keep it in different places.

What Python cannot find in the text is not covered: data files, compiled modules, modules that a
string names, and folders elsewhere on the import path.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.studies import registry
from service.studies.permission import Permission

OURS = ("service", "objectives", "migrations")
"""Packages of studyhall: the version says what is in them, unless they hold the objective."""


@dataclass(frozen=True)
class Source:
    """The Python files of an objective.

    Attributes:
        folder: The folder that they lie in, on this machine.
        files: The SHA-256 of each, by its path below the folder with ``/``.
    """

    folder: str
    files: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the files with their names; independent of the folder."""
        listed = "".join(f"{name}\0{digest}\n" for name, digest in sorted(self.files.items()))
        return hashlib.sha256(listed.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """What the study stores."""
        return {"fingerprint": self.fingerprint, "files": dict(self.files)}


def read(reference: str, permission: Permission) -> Source | None:
    """Read the source files of an objective; nothing is imported.

    Args:
        reference: An installed name or ``package.module:attribute``.
        permission: What may be imported.

    Returns:
        None if the module cannot be found, or is no Python text.

    Raises:
        NotAllowed: The permission does not contain the module.
    """
    found = registry.locate(reference, permission)
    if found is None:
        return None
    module, top = found
    for folder in _folders(module, top.origin, top.submodule_search_locations):
        alone = registry.is_installed(reference) or _is_site(folder)
        texts = {path: path.read_bytes() for path in _files(folder, module, alone=alone)}
        if texts:
            named = {path.relative_to(folder).as_posix(): text for path, text in texts.items()}
            return Source(str(folder), {name: _digest(named[name]) for name in sorted(named)})
    return None


def _folders(module: str, origin: str | None, places: Iterable[str] | None) -> Iterator[Path]:
    """The folders in which the first part of the module's name may lie."""
    if places is not None:
        yield from (Path(place).parent for place in places)
    elif origin is not None and origin.endswith(".py"):
        yield Path(origin).parent


def _is_site(folder: Path) -> bool:
    """Whether installed packages, or Python's own modules, lie in the folder."""
    if folder.name in ("site-packages", "dist-packages"):
        return True
    return str(folder.resolve()) in {
        str(Path(path).resolve())
        for name, path in sysconfig.get_paths().items()
        if name in ("stdlib", "platstdlib", "purelib", "platlib")
    }


def _digest(text: bytes) -> str:
    return hashlib.sha256(text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")).hexdigest()


def _files(folder: Path, module: str, *, alone: bool) -> set[Path]:
    """The objective's files: its module or package, and what they import from the folder."""
    files: set[Path] = set()
    waiting = [*_resolve(folder, module)]
    if alone:
        return {*waiting}
    ours = {*OURS} - {module.partition(".")[0]}
    while waiting:
        path = waiting.pop()
        if path in files:
            continue
        files.add(path)
        for base, name in _imports(path):
            if base is None and name.partition(".")[0] not in ours:
                waiting += _resolve(folder, name)
            elif base is not None and base.is_relative_to(folder):
                waiting += _resolve(base, name)
    return files


def _resolve(folder: Path, name: str) -> Iterator[Path]:
    """The files that an import of a dotted name reads below a folder, whole packages at once."""
    place = folder
    for part in name.split(".") if name else ():
        if (place / part / "__init__.py").is_file():
            yield from _package(place / part)
        elif (place / f"{part}.py").is_file():
            yield place / f"{part}.py"
            return
        place = place / part
        if not place.is_dir():
            return


def _package(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """All Python files of a package and of the packages in it; a link may lead in a circle."""
    place = folder.resolve()
    if place in above:
        return
    for entry in sorted(folder.iterdir()):
        if entry.suffix == ".py" and entry.is_file():
            yield entry
        elif (entry / "__init__.py").is_file():
            yield from _package(entry, (*above, place))


def _imports(path: Path) -> Iterator[tuple[Path | None, str]]:
    """What a file imports: dotted names, each with the folder that a relative one starts from."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # its import fails, and says why
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((None, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            level = min(node.level, len(path.parents))
            base = path.parents[level - 1] if level else None
            module = f"{node.module}." if node.module else ""
            yield from ((base, f"{module}{alias.name}") for alias in node.names)


def differences(here: Source, stored: Mapping[str, Any]) -> list[str]:
    """How the files here differ from those of a study: ``mine.py changed``, at most three.

    Args:
        here: The files of this machine.
        stored: What `Source.to_json` has stored.
    """
    there: Mapping[str, str] = stored.get("files", {})
    words = [
        f"{name} {how}"
        for name in sorted({*there, *here.files})
        if (how := _difference(here.files.get(name), there.get(name)))
    ]
    return words if len(words) <= 3 else [*words[:2], f"{len(words) - 2} more files differ"]


def _difference(here: str | None, there: str | None) -> str | None:
    """How a file differs, by its hashes; None if it does not."""
    if here == there:
        return None
    return "is new" if there is None else "is missing" if here is None else "changed"
