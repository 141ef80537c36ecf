"""Provenance: where a result comes from, as one document that a study or an attempt names.

Git is asked once a process, with a time limit, and only reads: it takes no lock in the user's
repository. Versions come from the packages' metadata, without importing them. Every text passes
`hidden`, so that no document holds a password.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
import shlex
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sqlalchemy import Connection, text

from service.errors import ConfigurationError
from service.settings import without_credentials
from service.studies.source import Source

GIT_SECONDS = 2.0
"""How long git may take for each answer: the status of a huge repository is left out."""

PACKAGES = (
    "studyhall",
    "optuna",
    "keras",
    "tensorflow",
    "tensorflow-cpu",
    "jax",
    "jaxlib",
    "torch",
    "numpy",
    "scipy",
    "cmaes",
)
"""The packages whose version may change a result."""

VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "KERAS_BACKEND",
    "OMP_NUM_THREADS",
    "PYTHONHASHSEED",
    "TF_DETERMINISTIC_OPS",
    "TF_ENABLE_ONEDNN_OPTS",
    "TF_NUM_INTEROP_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "XLA_FLAGS",
)
"""The variables of the environment that may change a result."""

SECRET = re.compile(
    r"password|passwd|passphrase|pwd|secret|credential|api_?key|database.url"
    r"|(?<![a-z])token(?![a-z])",
    re.IGNORECASE,
)
"""Names of options and settings whose values are never kept."""

PAIR = re.compile(r"(?i)(password|passwd|pwd|secret|token)=('[^']*'|[^\s&]+)")
"""A secret in a connection string such as ``host=db password=x``."""

STORE = text(
    """-- Keep a document under its SHA-256.
    INSERT INTO service.provenances (sha256, document)
    VALUES (:sha256, CAST(:document AS jsonb)) ON CONFLICT (sha256) DO NOTHING"""
)
READ = text(
    """-- Documents by their SHA-256.
    SELECT sha256, document FROM service.provenances WHERE sha256 = ANY (:names)"""
)
STUDY = text(
    """-- Where a study comes from, and what its workers must share.
    SELECT provenance, source, data, drift, created_at
      FROM service.studies WHERE study_id = :study_id"""
)
ATTEMPTS = text(
    """-- How many attempts of a study each provenance has; NULL for those without one.
    SELECT provenance, count(*) AS attempts, min(started_at) AS first
      FROM service.attempts WHERE study_id = :study_id GROUP BY provenance ORDER BY first"""
)
TRIAL = text(
    """-- The attempts at one trial, with the study's own provenance.
    SELECT a.attempt, a.worker, a.started_at, a.ended_at, a.cause, a.provenance,
           s.provenance AS created
      FROM public.trials t JOIN service.studies s USING (study_id)
      LEFT JOIN service.attempts a USING (trial_id)
     WHERE t.study_id = :study_id AND t.number = :number ORDER BY a.attempt"""
)
DRIFT_OF = text(
    """-- What the workers of one trial have brought that differs from the study.
    SELECT p.document->'drift' AS drift
      FROM service.attempts a JOIN service.provenances p ON p.sha256 = a.provenance
     WHERE a.trial_id = :trial_id"""
)
DRIFTED = text(
    """-- The provenances of a study that have drift.
    SELECT sha256, document->'drift' AS drift FROM service.provenances
     WHERE sha256 = ANY (:names) AND document->'drift' <> '{}'"""
)


@dataclass(frozen=True)
class Provenance:
    """Where a result comes from.

    Attributes:
        sha256: The name of the document: the hash of its text.
        document: JSON: command, git, source, data, objective, settings, seed, python, packages,
            host, system, device, environment, and what `--allow-drift` has allowed, as drift.
    """

    sha256: str
    document: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Provenance:
        """The provenance of a document, under its own name."""
        return cls(hashlib.sha256(_text(document).encode()).hexdigest(), document)

    def store(self, connection: Connection) -> str:
        """Keep the document; return its name."""
        connection.execute(STORE, {"sha256": self.sha256, "document": _text(self.document)})
        return self.sha256


def _text(document: Mapping[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def read(connection: Connection, names: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """The documents of these names."""
    rows = connection.execute(READ, {"names": [*names]})
    return {row.sha256: row.document for row in rows}


def of_study(connection: Connection, study_id: int, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Where a study comes from: see `service.studies.study.Study.provenance`."""
    row = connection.execute(STUDY, {"study_id": study_id}).one()
    counted = connection.execute(ATTEMPTS, {"study_id": study_id}).all()
    documents = read(connection, [*filter(None, (row.provenance, *(of for of, *_ in counted)))])
    created = documents.get(row.provenance, {})
    return {
        "created_at": row.created_at.isoformat(),
        "created_by": created or None,
        "spec": hidden(spec),
        "source": row.source,
        "data": hidden(row.data),
        "drift": row.drift,
        "workers": [
            {
                "provenance": name,
                "attempts": attempts,
                "first_at": first.isoformat(),
                **_compared(created, documents.get(name)),
            }
            for name, attempts, first in counted
        ],
    }


def of_trial(connection: Connection, study_id: int, number: int) -> dict[str, Any]:
    """Where a trial comes from: see `service.studies.study.Study.provenance`.

    Raises:
        ConfigurationError: There is no trial of that number.
    """
    rows = connection.execute(TRIAL, {"study_id": study_id, "number": number}).all()
    if not rows:
        raise ConfigurationError(f"there is no trial {number}")
    names = {row.provenance for row in rows} | {rows[0].created}
    documents = read(connection, [*filter(None, names)])
    created = documents.get(rows[0].created, {})
    return {
        "attempts": [
            {
                "attempt": row.attempt,
                "worker": row.worker,
                "started_at": row.started_at.isoformat(),
                "ended_at": row.ended_at and row.ended_at.isoformat(),
                "cause": row.cause,
                "provenance": row.provenance,
                **_compared(created, documents.get(row.provenance)),
            }
            for row in rows
            if row.attempt is not None
        ]
    }


def _compared(created: Mapping[str, Any], document: Mapping[str, Any] | None) -> dict[str, Any]:
    """A document, and where it differs from the one that created the study."""
    if document is None:
        return {"document": None, "differs": {}}
    differs = differences(created, document) if created else {}
    return {"document": document, "differs": differs}


def drift_of(connection: Connection, trial_id: int) -> tuple[str, ...]:
    """What differed from the study as a trial was run: ``source``, ``data``; mostly nothing."""
    found = connection.execute(DRIFT_OF, {"trial_id": trial_id}).scalars()
    return tuple(sorted({kind for drifted in found for kind in drifted or ()}))


def drifted(connection: Connection, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """What differed from the study, for those of these provenances that have drift."""
    rows = connection.execute(DRIFTED, {"names": [*names]})
    return {name: tuple(sorted(drift)) for name, drift in rows}


def gather(
    source: Source | None,
    spec: Mapping[str, Any],
    *,
    command: str | None = None,
    data: Mapping[str, Any] | None = None,
    device: Mapping[str, Any] | None = None,
    drift: Mapping[str, Any] | None = None,
) -> Provenance:
    """The provenance of what this process does.

    Args:
        source: The objective's files.
        spec: What the study is made of, as JSON.
        command: The command line, with `command_line`'s care.
        data: Name, source, fingerprint and kind of the data.
        device: What it runs on.
        drift: What differs from the study and is allowed.
    """
    return Provenance.of(
        hidden(
            {
                "command": command,
                "git": None if source is None else git_state(source),
                "source": None
                if source is None
                else {"folder": source.folder, "fingerprint": source.fingerprint},
                "data": data,
                "objective": spec.get("objective"),
                "settings": spec.get("settings"),
                "seed": spec.get("seed"),
                "python": f"{platform.python_implementation()} {platform.python_version()}",
                "packages": versions(),
                "host": socket.gethostname(),
                "system": platform.platform(),
                "device": device,
                "environment": {key: os.environ[key] for key in VARIABLES if key in os.environ},
                "drift": drift or {},
            }
        )
    )


def command_line(arguments: Sequence[str]) -> str:
    """A command line as it may be kept: without passwords, tokens, and users of URLs."""
    shown: list[str] = []
    for argument in arguments:
        before = shown[-1] if shown else ""
        is_value = before.startswith("-") and "=" not in before
        if is_value and SECRET.search(before):
            shown.append("***")
        else:
            shown.append(_hidden_text(_hidden_value(argument)))
    return shlex.join(shown)


def _hidden_value(argument: str) -> str:
    """``NAME=VALUE`` without a value that the name says is secret."""
    name, equals, _ = argument.partition("=")
    return f"{name}=***" if equals and "://" not in name and SECRET.search(name) else argument


def hidden(value: Any) -> Any:
    """A JSON document without what URLs in it, and names in it, say is secret."""
    if isinstance(value, str):
        return _hidden_text(value)
    if isinstance(value, Mapping):
        return {
            _hidden_text(str(key)): "***"
            if isinstance(item, str) and SECRET.search(str(key))
            else hidden(item)
            for key, item in value.items()
        }
    return [hidden(item) for item in value] if isinstance(value, list | tuple) else value


def _hidden_text(shown: str) -> str:
    """A text that a JSON column takes, with no user and no query in its URLs.

    A URL that stands alone may have quotes and blanks in its password.
    """
    shown = PAIR.sub(r"\1=***", shown)
    shown = shown.replace("\0", "\\x00").encode(errors="backslashreplace").decode()
    scheme, there, rest = shown.partition("://")
    if there and "@" in rest and not re.search(r"\s\S+://", rest):
        rest = f"***@{rest.rpartition('@')[2]}"
    return without_credentials(f"{scheme}{there}{rest}")


@functools.cache
def versions() -> dict[str, str]:
    """The versions of the installed packages of `PACKAGES`; none of them is imported."""
    return dict(_versions())


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def git_state(source: Source) -> dict[str, Any] | None:
    """Commit and dirtiness of the repository that holds the objective's files.

    Returns:
        None where there is no repository or no git. ``dirty`` is None if git took too long;
        it is True if a tracked file has changes, or an objective's file is in no commit.
    """
    return _git_state(source.folder, tuple(sorted(source.files)))


@functools.cache
def _git_state(folder: str, files: tuple[str, ...]) -> dict[str, Any] | None:
    head = _git(folder, "rev-parse", "--verify", "HEAD")
    if head is None or head.returncode:
        return None
    tracked = _git(folder, "ls-files", "--error-unmatch", "-z", "--", *files[:500])
    if tracked is not None and tracked.returncode and _is_ignored(folder, files[0]):
        return None  # installed packages in a folder that the repository ignores
    status = _git(folder, "status", "--porcelain", "--untracked-files=no", "-z")
    dirty: bool | None = None
    if tracked is not None and tracked.returncode:
        dirty = True
    elif status is not None and not status.returncode:
        dirty = bool(status.stdout)
    return {"commit": head.stdout.strip(), "dirty": dirty}


def _is_ignored(folder: str, file: str) -> bool:
    done = _git(folder, "check-ignore", "-q", "--", file)
    return done is not None and done.returncode == 0


def _git(folder: str, *words: str) -> subprocess.CompletedProcess[str] | None:
    """What git says about a folder; None without git, or if it takes too long."""
    # A repository's own settings must run nothing, and no lock may disturb the user's git.
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", folder, *words]
    elsewhere = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")
    environment = {key: value for key, value in os.environ.items() if key not in elsewhere}
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env={**environment, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"},
            timeout=GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Where two documents differ: ``packages.keras`` with both values.

    Args:
        one: A document, as `Provenance` has it.
        other: The document that it is compared with.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for key in [*one, *(key for key in other if key not in one)]:
        left, right = one.get(key), other.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            below = differences(left, right)
            found |= {f"{key}.{name}": values for name, values in below.items()}
        elif left != right:
            found[key] = left, right
    return found
