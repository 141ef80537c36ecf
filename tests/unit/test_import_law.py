"""The import law of docs/architecture.md: arrows between modules run one way, by this table.

A new module gets a row that names what it may import of ours; everything may import `errors`.
"""

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

ALLOWED = {
    "errors": "",
    "settings": "",
    "models": "",
    "postgres": "",
    "gpus": "",
    "devices": "gpus",
    "crowd": "devices gpus",
    "limits": "",
    "registry": "",
    "samplers": "pruning sampling",
    "embedded": "postgres",
    "database": "embedded settings",
    "schema": "database models",
    "link": "",
    "rows": "",
    "writes": "rows",
    "frontier": "",
    "digests": "rows",
    "ledger": "digests frontier",
    "history": "frontier",
    "news": "digests frontier history ledger link rows",
    "shelf": "link",
    "leases": "link rows",
    "announcements": "",
    "held": "announcements leases rows writes",
    "workers": "link",
    "progress": "database models",
    "spec": "registry samplers",
    "trials": "history ledger link news rows shelf writes",
    "storage": "database held history leases ledger link news trials writes",
    "densities": "",
    "mixture": "densities",
    "observations": "digests ledger",
    "sampling": "announcements digests mixture observations storage",
    "pruning": "ledger storage",
    "checkpoints": "settings",
    "trial": "checkpoints leases samplers",
    "keeper": "leases link storage workers",
    "study": "checkpoints database leases models progress registry samplers schema settings "
    "spec storage workers",
    "worker": "checkpoints database devices keeper leases limits link registry samplers "
    "settings spec storage study trial workers",
    "pool": "crowd database devices leases limits progress settings spec study worker workers",
    "confirm": "pool progress settings spec study",
    "display": "doctor progress spec study",
    "doctor": "checkpoints database registry settings study",
    "cli": "confirm crowd database devices display doctor embedded limits pool registry samplers "
    "schema settings spec study",
    "__main__": "cli database",
    "__init__": "progress settings spec study",
}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every module that a syntax tree imports, by its full name, with the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((name.name, node.lineno) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield module, node.lineno
            yield from ((f"{module}.{name.name}", node.lineno) for name in node.names)


def rooms(tree: ast.AST, package: str) -> set[str]:
    """The modules of a package that a syntax tree imports, without the package's name."""
    dotted = (name.split(".") for name, _ in imports(tree))
    return {parts[1] for parts in dotted if parts[0] == package and len(parts) > 1}


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


@pytest.mark.parametrize("path", modules("service"), ids=lambda path: path.stem)
def test_a_module_of_the_service_imports_what_the_table_allows(path: Path) -> None:
    known = {file.stem for file in modules("service")}
    imported = rooms(parse(path), "service") & known - {"errors", path.stem}
    assert path.stem in ALLOWED, f"give service/{path.name} its row in {Path(__file__).name}"
    assert imported <= set(ALLOWED[path.stem].split())


def test_the_arrows_run_one_way() -> None:
    graphlib.TopologicalSorter({name: row.split() for name, row in ALLOWED.items()}).prepare()


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
    program = f"import sys, service.cli, objectives; print(sorted({loaded}))"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT
    )
    assert (result.stdout, result.returncode) == ("[]\n", 0), result.stderr


def test_the_law_sees_every_way_of_importing() -> None:
    tree = ast.parse(
        "import service.cli as c\n"
        "from service import pool\n"
        "from service.study import Hall\n"
        "def late():\n    import keras\n    from objectives import mnist\n"
    )
    assert {"cli", "pool", "study"} <= rooms(tree, "service")
    assert forbidden(tree, {"keras"}) == [5]
    assert set(forbidden(tree, {"objectives"})) == {6}
    assert forbidden(at_import(tree), {"keras", "objectives"}) == []
