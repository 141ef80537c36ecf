"""Provenance: no passwords, git's state, versions; nothing there may hang or fail a start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service.studies import provenance
from service.studies.provenance import command_line, gather, hidden
from service.studies.source import Source

URLS = [
    "postgresql://ann:secret@db:5432/work",
    "postgresql://ann:sec'ret secret@db/work",
    "postgres://db/work?password=secret&sslmode=require",
    "s3://key:se/secret@bucket/prefix",
    "simplecache::ftp://u:secret@host/x",
    "https://host/data.npz?token=secret",
    "http://a:secret@one/x,http://b:secret@two/y",
    "host=db user=ann password=secret",
    "host=db password='a secret'",
]
PLACES = [
    ["--database-url", "{}", "run", "mine:objective"],
    ["--database-url={}", "run", "mine:objective"],
    ["run", "{}"],
    ["run", "mine:objective", "--data-dir", "{}"],
    ["run", "mine:objective", "--set", "url={}"],
    ["run", "mine:objective", "--sampler-arg={}"],
    ["run", "mine:objective", "--study", "name {} of"],
]


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("place", PLACES, ids=lambda place: " ".join(place))
def test_a_command_line_shows_no_password(url: str, place: list[str]) -> None:
    shown = command_line(["studyhall", *(word.format(url) for word in place)])
    assert "secret" not in shown
    assert shown.startswith("studyhall ") and " run " in f" {shown}"


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--set", "api_key=secret"], "--set 'api_key=***'"),
        (["--password", "secret"], "--password '***'"),
        (["--set", "max_tokens=7", "--set", "bypass=no"], "--set max_tokens=7 --set bypass=no"),
        (["run", "mine:f", "--trials", "3"], "run mine:f --trials 3"),
    ],
)
def test_what_a_name_says_is_secret_is_hidden_and_nothing_else(
    words: list[str], shown: str
) -> None:
    assert command_line(words) == shown


@pytest.mark.parametrize("url", URLS)
def test_no_part_of_a_document_shows_a_password(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", url)
    found = gather(
        None,
        {"objective": url, "settings": {"url": url, "list": [{"deep": url}], url: 1}, "seed": 3},
        command=command_line(["studyhall", url]),
        data={"name": url, "source": url, "fingerprint": "f" * 64},
        device={"name": url},
        drift={"data": url},
    )
    assert "secret" not in json.dumps(found.document)
    assert found.document["settings"]["list"] != []


def test_a_document_can_be_stored_whatever_is_in_its_texts() -> None:
    text = hidden("a\0b \udc80 é")
    assert text == "a\\x00b \\udc80 é"
    assert "\\u0000" not in json.dumps(text)


def git(folder: Path, *words: str) -> None:
    author = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *author, *words], cwd=folder, check=True, capture_output=True)


def state(folder: Path) -> dict[str, object] | None:
    provenance._git_state.cache_clear()
    return provenance.git_state(Source(str(folder), {"mine.py": "0" * 64}))


def test_git_names_the_commit_and_says_whether_it_is_what_ran(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("x = 1\n")
    assert state(tmp_path) is None, "no repository"
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    (tmp_path / "notes.txt").write_text("nobody asks git to keep this")
    clean = state(tmp_path)
    assert clean is not None and clean["dirty"] is False
    assert len(str(clean["commit"])) == 40

    (tmp_path / "mine.py").write_text("x = 2\n")
    assert state(tmp_path) == {**clean, "dirty": True}
    git(tmp_path, "rm", "--cached", "-f", "mine.py")
    git(tmp_path, "commit", "-m", "forgets it")
    found = state(tmp_path)
    assert found is not None and found["dirty"] is True, "the file is in no commit"
    (tmp_path / ".gitignore").write_text("mine.py\n")
    assert state(tmp_path) is None, "as a virtual environment in a repository"


def test_git_is_asked_once_and_a_slow_or_missing_one_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "bin" / "git"
    tool.parent.mkdir()
    counted = tmp_path / "asked"
    tool.write_text(
        f"#!/bin/sh\necho x >> {counted}\n"
        'case "$*" in *rev-parse*) echo abc;; *status*) exec sleep 60;; esac\n'
    )
    tool.chmod(0o755)
    monkeypatch.setattr(provenance, "GIT_SECONDS", 0.5)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    began = time.monotonic()
    assert state(tmp_path) == {"commit": "abc", "dirty": None}
    assert time.monotonic() - began < 5
    asked = counted.read_text()
    provenance.git_state(Source(str(tmp_path), {"mine.py": "0" * 64}))
    assert counted.read_text() == asked

    monkeypatch.setenv("PATH", str(tmp_path))
    assert state(tmp_path) is None


def test_versions_are_known_without_an_import() -> None:
    program = (
        "import sys\nfrom service.studies import provenance\nfound = provenance.versions()\n"
        "assert {'studyhall', 'optuna', 'keras', 'tensorflow', 'numpy'} <= {*found}, found\n"
        "print(sorted({'tensorflow', 'keras', 'scipy'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


def test_differences_name_the_place_and_both_values() -> None:
    one = {"a": 1, "packages": {"keras": "3.1", "numpy": "2"}, "gone": 0}
    other = {"a": 1, "packages": {"keras": "3.2", "numpy": "2"}, "new": [1]}
    assert provenance.differences(one, other) == {
        "packages.keras": ("3.1", "3.2"),
        "gone": (0, None),
        "new": (None, [1]),
    }
