"""The fingerprint of an objective's source: which files it covers, and what changes it."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path

import pytest

from service.errors import NotAllowed
from service.studies import source
from service.studies.permission import Permission
from service.studies.source import Source

PROJECT = {
    "mine_.py": "import helper_\nimport json, numpy, objectives\n\ndef objective(trial):\n"
    "    from pack_.deep import inner\n    return 1.0\n",
    "helper_.py": "from loose_ import part\n",
    "pack_/__init__.py": "",
    "pack_/deep/__init__.py": "from ... import nothing\nfrom . import inner\n",
    "pack_/deep/inner.py": "raise SystemExit('imported')\n",
    "pack_/unused.py": "x = 1\n",
    "loose_/part.py": "from .other import y\n",
    "loose_/other.py": "y = 2\n",
    "loose_/alone.py": "z = 3\n",
    "objectives.py": "not ours = ",
    "unrelated_.py": "w = 4\n",
    "table_.csv": "1,2\n",
}
COVERED = [
    "helper_.py",
    "loose_/other.py",
    "loose_/part.py",
    "mine_.py",
    "pack_/__init__.py",
    "pack_/deep/__init__.py",
    "pack_/deep/inner.py",
    "pack_/unused.py",
]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    for name, text in PROJECT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def read(folder: Path, reference: str = "mine_:objective") -> Source:
    before = [*sys.path], {*sys.modules}
    importlib.invalidate_caches()
    found = source.read(reference, Permission(path=str(folder)))
    sys.path[:] = before[0]
    assert {name for name in sys.modules if name.endswith("_")} <= before[1], "nothing is imported"
    assert found is not None
    return found


def test_it_covers_the_module_and_what_it_imports_from_the_same_folder(project: Path) -> None:
    assert [*read(project).files] == COVERED


@pytest.mark.parametrize("name", sorted(PROJECT))
def test_only_covered_files_change_it(project: Path, name: str) -> None:
    before = read(project)
    (project / name).write_text(PROJECT[name] + "# changed\n")
    after = read(project)
    assert (after.fingerprint != before.fingerprint) == (name in COVERED)
    words = [f"{name} changed"] if name in COVERED else []
    assert source.differences(after, before.to_json()) == words


def test_neither_the_folder_nor_line_endings_matter(project: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "checkout"
    shutil.copytree(project, other)
    for path in other.rglob("*.py"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    here, there = read(project), read(other)
    assert (here.fingerprint, here.files) == (there.fingerprint, there.files)
    assert here.folder != there.folder


def test_a_name_is_part_of_it(project: Path) -> None:
    before = read(project)
    (project / "pack_" / "unused.py").rename(project / "pack_" / "renamed.py")
    after = read(project)
    assert after.fingerprint != before.fingerprint
    words = ["pack_/renamed.py is new", "pack_/unused.py is missing"]
    assert source.differences(after, before.to_json()) == words


def test_many_differences_are_counted(project: Path) -> None:
    before = read(project)
    for path in project.rglob("*.py"):
        path.write_text(path.read_text() + "\n")
    words = source.differences(read(project), before.to_json())
    assert words == ["helper_.py changed", "loose_/other.py changed", "6 more files differ"]


def test_of_a_built_in_objective_it_covers_the_package_objectives() -> None:
    found = source.read("mnist-mlp", Permission())
    assert found is not None
    assert {name.split("/")[0] for name in found.files} == {"objectives"}
    assert {"objectives/mnist.py", "objectives/training/compiled/epoch.py"} <= {*found.files}


def test_an_installed_package_stands_alone(project: Path, tmp_path: Path) -> None:
    site = tmp_path / "site-packages"
    shutil.copytree(project, site)
    assert [*read(site).files] == ["mine_.py"]
    assert {name.split("/")[0] for name in read(site, "pack_.deep:x").files} == {"pack_"}


def test_links_are_followed_but_not_in_a_circle(project: Path, tmp_path: Path) -> None:
    (project / "pack_" / "again").symlink_to(project / "pack_")
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "__init__.py").write_text("")
    (project / "pack_" / "shared").symlink_to(shared)
    assert [*read(project).files] == sorted([*COVERED, "pack_/shared/__init__.py"])


def test_a_file_that_is_no_python_is_covered_too(project: Path) -> None:
    (project / "helper_.py").write_text("def (")
    assert "helper_.py" in read(project).files


def test_what_may_not_be_imported_is_not_read(project: Path) -> None:
    with pytest.raises(NotAllowed):
        source.read("mine_:objective", Permission())
    assert source.read("nowhere_:objective", Permission(("nowhere_",))) is None
