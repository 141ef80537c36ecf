"""Archive: a study as one JSON file, and the checks of a file that anybody may have written.

The file is one object: ``format``, ``version``, ``sha256`` and ``study``. The hash is that of the
study as JSON with sorted keys and without blanks; it finds damage, not intent. So every value is
checked before it becomes a row. A file is data: its study names an objective, and a worker imports
that only if the worker's own command allows it.

Attributes and distributions stand in the file as the JSON texts that Optuna's tables hold. NaN and
infinite numbers are the texts "NaN", "Infinity" and "-Infinity". Times are seconds since 1970.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import types
import typing
import zlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from sqlalchemy import Table

from service.database.models import AttemptRow, StudyRow
from service.errors import ConfigurationError
from service.storage import rows
from service.storage.leased import MAX_NAME
from service.studies.spec import Spec

FORMAT = "studyhall study"
VERSION = 1
MAX_BYTES = 2**30
"""A larger text is refused, however small its compressed file is."""

INT4 = 2**31
TEXTS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
LEFT_OUT = {"study_id", "trial_id", "uid", "created_at"}
"""Columns that the database that imports a study fills in."""

STUDY_TABLE = typing.cast(Table, StudyRow.__table__)
ATTEMPT_TABLE = typing.cast(Table, AttemptRow.__table__)


class RefusedFile(ConfigurationError):
    """The file is no study that can be imported."""


def write(path: Path, study: Mapping[str, Any]) -> int:
    """Write a study's file, compressed if its name ends in ``.gz``; the whole file or nothing.

    Args:
        path: The file; an existing one is replaced.
        study: The study, as `check` accepts it.

    Returns:
        The file's bytes.

    Raises:
        RefusedFile: The study could not be imported again.
        OSError: The file cannot be written.
    """
    check(study)
    canonical = _canonical(study)
    head = {"format": FORMAT, "version": VERSION, "sha256": _sha256(canonical)}
    content = (json.dumps(head)[:-1] + ', "study": ').encode() + canonical + b"}\n"
    if len(content) > MAX_BYTES:
        raise RefusedFile(
            f"the study has {len(content)} bytes as text, and a file has at most {MAX_BYTES}: "
            "take the whole database with studyhall db dump"
        )
    if path.suffix == ".gz":
        content = gzip.compress(content, 6, mtime=0)
    _write_whole(path, content)
    return len(content)


def read(path: Path) -> dict[str, Any]:
    """The study in a file, after all checks.

    Raises:
        RefusedFile: The file is damaged, of another version, or holds what no study has.
        OSError: The file cannot be read.
    """
    text = _read_text(path)
    try:
        found = json.loads(text, parse_constant=_no_constant)
        _expect(isinstance(found, dict) and found.get("format") == FORMAT, "it is no study's file")
        version = found.get("version")
        _expect(
            version == VERSION,
            f"it has the version {version!r:.40}, and this studyhall reads {VERSION}",
        )
        study = found.get("study")
        _expect(
            isinstance(study, dict) and found.get("sha256") == _sha256(_canonical(study)),
            "it is damaged: its content has another SHA-256 than when it was written",
        )
        check(study)
    except RefusedFile as error:
        raise RefusedFile(f"{path} cannot be imported: {error}") from None
    except (ValueError, RecursionError) as error:
        why = f"{error}".splitlines()[0][:200]
        raise RefusedFile(f"{path} cannot be imported: it is no JSON: {why}") from None
    return study  # type: ignore[no-any-return]


def check(study: Any) -> None:
    """Refuse what no study has, so that no process fails at a row that was imported.

    Raises:
        RefusedFile: The message says where, and what is wrong.
    """
    study = _fields(study, "the study", STUDY)
    _text(study["name"], "the study's name", 512)
    directions = study["directions"]
    known = {direction.name for direction in StudyDirection}
    _expect(bool(directions) and all(each in known for each in directions), "its directions")
    _attributes(study["user_attrs"], "the study's user attributes")
    _attributes(study["system_attrs"], "the study's system attributes")
    _row(study["row"], STUDY_TABLE, "the study's row")
    _spec(study["row"]["spec"])
    _data(study["row"].get("data"))
    _spaces(study["spaces"])
    for number, trial in enumerate(study["trials"]):
        _trial(trial, number, study["spaces"])
    _attempts(study["attempts"], len(study["trials"]))


def frozen_trials(study: Mapping[str, Any]) -> Iterator[FrozenTrial]:
    """The trials of a study's file, as Optuna reads them from the rows."""
    spaces = {str(key): space for key, space in enumerate(study["spaces"])}
    arrays = [
        [
            number,
            trial["number"],
            trial["state"],
            trial["start"],
            trial["end"],
            trial["values"],
            None if trial["space"] is None else str(trial["space"]),
            trial["params"],
            trial["user_attrs"],
            trial["system_attrs"],
            trial["reports"],
        ]
        for number, trial in enumerate(study["trials"])
    ]
    return rows.documents([spaces, arrays])


def number_text(value: float | str | None) -> float | str | None:
    """A number as the file holds it.

    Args:
        value: A number, or Optuna's or PostgreSQL's text for one that is not finite.
    """
    if value is None:
        return None
    number = rows.loaded(value)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def number_of(value: float | str) -> float:
    """The number that `number_text` wrote."""
    return TEXTS[value] if isinstance(value, str) else float(value)


# The file


def _write_whole(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_text(path: Path) -> bytes:
    """The whole text; a compressed one is refused before it fills the memory."""
    with open(path, "rb") as file:
        is_compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        try:
            text = (gzip.GzipFile(fileobj=file) if is_compressed else file).read(MAX_BYTES + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            raise RefusedFile(
                f"{path} cannot be imported: it is damaged: it cannot be unpacked"
            ) from None
    if len(text) > MAX_BYTES:
        raise RefusedFile(f"{path} cannot be imported: it has more than {MAX_BYTES} bytes")
    return text


def _canonical(study: Any) -> bytes:
    return json.dumps(study, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


# The checks

STUDY: dict[str, type] = {
    "name": str,
    "directions": list,
    "user_attrs": dict,
    "system_attrs": dict,
    "row": dict,
    "spaces": list,
    "trials": list,
    "attempts": list,
}
TRIAL: dict[str, type | tuple[type, ...]] = {
    "number": int,
    "state": str,
    "start": (int, float, type(None)),
    "end": (int, float, type(None)),
    "values": (list, type(None)),
    "space": (int, type(None)),
    "params": (list, type(None)),
    "user_attrs": (dict, type(None)),
    "system_attrs": (dict, type(None)),
    "reports": (dict, type(None)),
}


def _expect(condition: bool, problem: str) -> None:
    if not condition:
        raise RefusedFile(problem)


def _fields(found: Any, where: str, needed: Mapping[str, Any]) -> dict[str, Any]:
    """An object with these keys, whose values have these types."""
    _expect(isinstance(found, dict), f"{where} is no object")
    for key, kind in needed.items():
        _expect(key in found, f"{where} has no {key}")
        value = found[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise RefusedFile(f"{where}: {key} is {value!r:.60}")
    return found  # type: ignore[no-any-return]


def _text(value: Any, where: str, limit: int | None = None) -> None:
    """A text that PostgreSQL can hold."""
    _expect(isinstance(value, str), f"{where} is no text: {value!r:.60}")
    _expect("\0" not in value, f"{where} contains NUL")
    _expect(limit is None or len(value) <= limit, f"{where} has more than {limit} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RefusedFile(f"{where} contains half a character") from None


def _json(value: Any, where: str) -> None:
    """A value that PostgreSQL can hold as jsonb."""
    if isinstance(value, str):
        _text(value, where)
    elif isinstance(value, dict):
        for key, item in value.items():
            _text(key, where)
            _json(item, where)
    elif isinstance(value, list):
        for item in value:
            _json(item, where)


def _number(value: Any, where: str) -> None:
    if type(value) is float or (isinstance(value, str) and value in TEXTS):
        return
    if type(value) is not int:
        raise RefusedFile(f"{where} is no number: {value!r:.60}")
    try:
        float(value)
    except OverflowError:
        raise RefusedFile(f"{where} is no number of 64 bits") from None


def _attributes(found: Mapping[str, Any] | None, where: str) -> None:
    for key, text in (found or {}).items():
        _text(key, f"{where}: a key", MAX_NAME)
        _text(text, f"{where}: {key[:60]!r}")
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            raise RefusedFile(f"{where}: {key[:60]!r} is no JSON") from None


def _row(found: Any, table: Table, where: str) -> None:
    """A row of one of our tables; keys that are no columns belong to a newer version."""
    _expect(isinstance(found, dict), f"{where} is no object")
    for column in table.columns:
        if column.name in LEFT_OUT:
            continue
        value, name = found.get(column.name), f"{where}: {column.name}"
        if value is None:
            missing_is_filled_in = column.name not in found and column.server_default is not None
            _expect(bool(column.nullable) or missing_is_filled_in, f"{name} is missing")
            continue
        _cell(value, column.type.python_type, name)


def _cell(value: Any, kind: type, where: str) -> None:
    if kind is datetime:
        _text(value, where)
        try:
            moment = datetime.fromisoformat(value)
            _expect(moment.astimezone(UTC).year > 1, where)
        except (ValueError, OverflowError):
            raise RefusedFile(f"{where} is no time: {value!r:.60}") from None
    elif kind is float:
        _number(value, where)
        _expect(not isinstance(value, str), f"{where} is not finite")
    else:
        fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        _expect(fits, f"{where} is {value!r:.60}")
        _expect(kind is not int or 0 <= value < INT4, f"{where} is {value!r:.60}")
        _json(value, where)


def _spec(found: Any) -> None:
    """A spec whose values have the types of `Spec`'s attributes."""
    where = "the spec"
    _expect(isinstance(found.get("objective"), str), f"{where} has no objective")
    for name, hint in typing.get_type_hints(Spec).items():
        if name in found:
            fits = _fits(found[name], hint)
            _expect(fits, f"{where}: {name} is {found[name]!r:.60}")
    try:
        Spec.from_json(found)
    except (ConfigurationError, TypeError) as error:
        raise RefusedFile(f"{where}: {error}") from None
    _expect(found.get("direction", "minimize") in ("minimize", "maximize"), f"{where}: direction")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of JSON has a type such as ``dict[str, Any] | None``."""
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    kinds = typing.get_args(hint) if is_union else (hint,)
    allowed = {typing.get_origin(kind) or kind for kind in kinds}
    for wide, narrow in ((float, int), (tuple, list)):
        if wide in allowed:
            allowed.add(narrow)
    return type(value) in allowed


def _data(found: Any) -> None:
    """What `Study.check_data` compares, and the commands print."""
    for key in ("name", "source", "fingerprint") if found is not None else ():
        _text(found.get(key), f"the study's data: {key}")


def _spaces(found: list[Any]) -> None:
    for space in found:
        _expect(isinstance(space, list) and bool(space), "a parameter space is empty")
        names = set()
        for pair in space:
            _expect(isinstance(pair, list) and len(pair) == 2, "a parameter space is no pairs")
            name, text = pair
            _text(name, "a parameter's name", MAX_NAME)
            _text(text, f"the distribution of {name[:60]!r}")
            _expect(name not in names, f"the parameter {name[:60]!r} occurs twice")
            names.add(name)
            try:
                rows.distribution(text, name)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                why = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
                raise RefusedFile(f"the distribution of {name[:60]!r}: {why}") from None


def _trial(found: Any, number: int, spaces: list[Any]) -> None:
    where = f"trial {number}"
    trial = _fields(found, where, TRIAL)
    _expect(trial["number"] == number, f"{where} has the number {trial['number']!r:.40}")
    _expect(trial["state"] in rows.STATES, f"{where}: its state is {trial['state']!r:.40}")
    for key in ("start", "end"):
        try:
            rows.local(trial[key])
        except (ValueError, OverflowError, OSError):
            raise RefusedFile(f"{where}: its {key} is no time: {trial[key]!r:.40}") from None
    for value in trial["values"] or ():
        _number(value, f"{where}: a value")
    for step, value in (trial["reports"] or {}).items():
        if not _is_step(step):
            raise RefusedFile(f"{where}: {step!r:.40} is no step")
        _number(value, f"{where}: the report at step {step}")
    _attributes(trial["user_attrs"], f"{where}: user attributes")
    _attributes(trial["system_attrs"], f"{where}: system attributes")
    _params(trial, where, spaces)


def _is_step(text: str) -> bool:
    try:
        return str(int(text)) == text and -INT4 <= int(text) < INT4
    except ValueError:
        return False


def _params(trial: Mapping[str, Any], where: str, spaces: list[Any]) -> None:
    space, params = trial["space"], trial["params"] or []
    known = isinstance(space, int) and 0 <= space < len(spaces)
    _expect(known or space is None, f"{where} has the parameter space {space!r:.40}")
    pairs = [] if space is None else spaces[space]
    _expect(len(params) == len(pairs), f"{where} has {len(params)} of {len(pairs)} parameters")
    for (name, text), value in zip(pairs, params, strict=True):
        _number(value, f"{where}: the parameter {name[:60]!r}")
        try:
            rows.distribution(text, name).to_external_repr(number_of(value))
        except (ValueError, IndexError, OverflowError, TypeError):
            raise RefusedFile(
                f"{where}: the parameter {name[:60]!r} is {value!r:.40}, outside its distribution"
            ) from None


def _attempts(found: list[Any], trials: int) -> None:
    known = set()
    for row in found:
        _row(row, ATTEMPT_TABLE, "an attempt")
        number = row.get("trial")
        fits = type(number) is int and 0 <= number < trials
        _expect(fits, f"an attempt at the trial {number!r:.40}, which is not in the file")
        key = number, row["attempt"]
        _expect(key not in known, f"attempt {key[1]} at trial {number} occurs twice")
        known.add(key)
