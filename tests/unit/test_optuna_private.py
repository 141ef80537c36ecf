"""Optuna's private names: one module lists them, checks them, and says what does not fit."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from service import optuna_private
from service.errors import UnsupportedOptuna

ROOT = Path(__file__).parents[2]
OWN = ROOT / "service" / "optuna_private.py"
MODULES = sorted(path for path in (ROOT / "service").rglob("*.py") if path != OWN)
LISTED = {
    name
    for names in (
        *optuna_private.STORAGE_ATTRIBUTES.values(),
        *optuna_private.SAMPLING_ATTRIBUTES.values(),
    )
    for dotted in names
    for name in dotted.split(".")
} | optuna_private.FROZEN_TRIAL


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )


def private_imports(tree: ast.AST) -> Iterator[str]:
    """What a syntax tree imports of Optuna that has a leading underscore anywhere in its name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{name.name}" for name in node.names]
        else:
            continue
        yield from (n for n in names if n.startswith("optuna") and "._" in n)


def private_attributes(tree: ast.AST) -> set[str]:
    """The private attributes that a syntax tree reads."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
        if node.attr.startswith("_") and not node.attr.startswith("__")
    }


def private_definitions(tree: ast.AST) -> Iterator[str]:
    """The private methods and attributes that a syntax tree's own classes have."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def test_everything_that_is_listed_exists() -> None:
    assert optuna_private.is_tested()
    assert optuna_private.MISSING == []
    optuna_private.require()
    for name in optuna_private.__all__:
        assert getattr(optuna_private, name) is not None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_module_imports_a_private_name(path: Path) -> None:
    assert [*private_imports(ast.parse(path.read_text()))] == []


def test_the_private_attributes_in_use_are_our_own_or_listed() -> None:
    trees = {path: ast.parse(path.read_text()) for path in MODULES}
    own = {name for tree in trees.values() for name in private_definitions(tree)}
    others = {"_asdict", "_replace", "_exit"}  # of the standard library
    found = {path.name: private_attributes(tree) for path, tree in trees.items()}
    unlisted = {file: names - own - LISTED - others for file, names in found.items()}
    assert {file: names for file, names in unlisted.items() if names} == {}


def test_nothing_is_listed_that_nobody_uses() -> None:
    text = "".join(path.read_text() for path in MODULES)
    assert {name for name in LISTED - optuna_private.FROZEN_TRIAL if name not in text} == set()


@pytest.mark.parametrize(
    ("removal", "message"),
    [
        ("import optuna.study._frozen as m; del m.FrozenStudy", "no optuna.study._frozen.Froz"),
        (
            "import optuna.samplers._tpe._erf as m; del m.erf",
            "no optuna.samplers._tpe._erf.erf",
        ),
        (
            "import optuna; del optuna.samplers.TPESampler._sample_relative",
            "no TPESampler._sample_relative",
        ),
        (
            "import optuna.study.study as m; del m._ThreadLocalStudyAttribute.cached_all_trials",
            "no Study._thread_local.cached_all_trials",
        ),
        (
            """if True:
            from optuna.trial import FrozenTrial
            made = FrozenTrial.__init__
            FrozenTrial.__init__ = lambda t, *a, **k: made(t, *a, **k) or setattr(t, '_rung', 0)
            """,
            "a new FrozenTrial._rung",
        ),
        (
            "import optuna.samplers._tpe.sampler as m; m._RELATIVE_PARAMS_KEY = 'tpe:relative'",
            "_RELATIVE_PARAMS_KEY is not 'tpe:relative_params'",
        ),
    ],
)
def test_a_missing_name_is_one_clear_error(removal: str, message: str) -> None:
    result = run(
        f"{removal}\n"
        "from service import optuna_private\n"
        "from service.errors import StudyhallError\n"
        "try: optuna_private.require()\n"
        "except StudyhallError as error: print(error, error.exit_code, sep='|')\n"
    )
    assert result.returncode == 0, result.stderr
    text, code = result.stdout.strip().split("|")
    assert message in text, result.stderr
    assert "\n" not in text
    assert text.startswith("Optuna 5.0.") and text.endswith("install optuna 5.0.x")
    assert int(code) == UnsupportedOptuna.exit_code == 2


def test_an_untested_optuna_needs_no_private_name_of_tpe() -> None:
    result = run(
        "import optuna, optuna.samplers._tpe._erf as m; del m.erf\n"
        "optuna.__version__ = '5.1.0'\n"
        "from service import optuna_private\n"
        "from service.sampling import factory\n"
        "optuna_private.require()\n"
        "print(factory.make_sampler('tpe', {}, 0, 0).__class__.__module__)\n"
    )
    assert result.stdout == "optuna.samplers._tpe.sampler\n", result.stderr


def test_the_lock_has_a_tested_optuna() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    locked = dict(line.split("==") for line in lines if "==" in line)
    for name in ("optuna", "optuna-integration"):
        assert locked[name] in wanted[name]
        assert f"{optuna_private.TESTED}.9" in wanted[name]
        assert "5.1.0" not in wanted[name]
