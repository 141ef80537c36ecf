"""The import law of docs/architecture.md: arrows between rooms point one way, without a circle."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRAINING_LIBRARIES = {"tensorflow", "keras"}

LAW = {
    "service": "__main__ > __init__ > cli > doctor > workers > studies > sampling > artifacts, "
    "storage > database > settings > optuna_private > errors, "
    "interrupt > text",
    "objectives": "__init__ > cifar10, mnist > architectures > objective > evaluation, training > "
    "data > settings, space > errors",
}
"""Rooms of a package, the highest first. A room imports only rooms to its right; a comma joins
rooms that do not know each other."""


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def dotted(path: Path) -> str:
    """The module's full name; a package's is that of its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every module that a syntax tree imports, by its full name, with the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((name.name, node.lineno) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield module, node.lineno
            yield from ((f"{module}.{name.name}", node.lineno) for name in node.names)


def room(module: str) -> str:
    """``service.storage.rows`` stands in ``storage``; what ``service`` itself has, in __init__."""
    return module.split(".")[1] if "." in module else "__init__"


def ranks(package: str) -> dict[str, int]:
    """How far to the right each room of a package stands."""
    levels = [level.split(", ") for level in LAW[package].split(" > ")]
    return {name: rank for rank, level in enumerate(levels) for name in level}


def imported_modules(path: Path, known: set[str]) -> set[str]:
    """The modules of its own package that a file imports."""
    package = path.relative_to(ROOT).parts[0]
    names = {name for name, _ in imports(parse(path)) if name.split(".")[0] == package}
    # `from service.storage import rows` names the folder and the module: the module counts.
    folders = {name for name in names if any(other.startswith(name + ".") for other in names)}
    return (names & known) - (folders - leaves(known)) - {dotted(path)}


def leaves(known: set[str]) -> set[str]:
    return {name for name in known if not any(other.startswith(name + ".") for other in known)}


def forbidden(tree: ast.AST, packages: set[str]) -> list[int]:
    """The lines that import one of the packages."""
    return [line for name, line in imports(tree) if name.split(".")[0] in packages]


def at_import(tree: ast.Module) -> ast.Module:
    """The tree without the bodies of its functions: what runs when the module is imported."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
            return None

    return Strip().visit(tree)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


@pytest.mark.parametrize(
    "path", [*modules("service"), *modules("objectives")], ids=lambda path: dotted(path)
)
def test_a_room_imports_only_rooms_to_its_right(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    rank, own = ranks(package), room(dotted(path))
    assert own in rank, f"give {own} its place in LAW"
    known = {dotted(module) for module in modules(package)}
    others = {room(name) for name in imported_modules(path, known)} - {own}
    assert {other for other in others if rank[other] <= rank[own]} == set()


@pytest.mark.parametrize("package", LAW)
def test_no_modules_import_each_other_in_a_circle(package: str) -> None:
    paths = {dotted(path): path for path in modules(package)}
    graph = {name: imported_modules(path, {*paths}) for name, path in paths.items()}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    ("package", "others"),
    [
        ("service", {"objectives", "migrations", *TRAINING_LIBRARIES}),
        ("objectives", {"service", "migrations"}),
        ("migrations", {"objectives", *TRAINING_LIBRARIES}),
    ],
)
def test_a_package_does_not_know_the_others(package: str, others: set[str]) -> None:
    found = {path.name: forbidden(parse(path), others) for path in modules(package)}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize("path", modules("objectives"), ids=lambda path: path.stem)
def test_the_objectives_import_keras_inside_functions_only(path: Path) -> None:
    assert forbidden(at_import(parse(path)), TRAINING_LIBRARIES) == []


@pytest.mark.parametrize("package", ["service", "objectives", "migrations"])
def test_no_import_is_relative(package: str) -> None:
    found = [(path.name, *found) for path in modules(package) for found in imports(parse(path))]
    assert [(file, line) for file, name, line in found if name.startswith(".")] == []


def test_neither_the_command_nor_the_objectives_load_tensorflow() -> None:
    loaded = "{'tensorflow', 'keras'} & {*sys.modules}"
    program = f"import sys, service.__main__, objectives; print(sorted({loaded}))"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT
    )
    assert (result.stdout, result.returncode) == ("[]\n", 0), result.stderr


def test_the_law_sees_every_way_of_importing(tmp_path: Path) -> None:
    tree = ast.parse(
        "import service.cli as c\n"
        "from service.workers import pool\n"
        "from service.studies.study import Study\n"
        "def late():\n    import keras\n    from objectives import mnist\n"
    )
    names = {name for name, _ in imports(tree)}
    assert {"service.cli", "service.workers.pool", "service.studies.study"} <= names
    assert {room(name) for name in names if name.startswith("service.")} == {
        "cli",
        "workers",
        "studies",
    }
    assert forbidden(tree, {"keras"}) == [5]
    assert set(forbidden(tree, {"objectives"})) == {6}
    assert forbidden(at_import(tree), {"keras", "objectives"}) == []
