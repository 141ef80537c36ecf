"""Drift: a worker whose objective's source, or whose data, are not the study's.

It is refused. With `--allow-drift` it works; its trials and the study are marked. Real and
generated data never mix, whatever is allowed, nor is a cache used whose content was changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.errors import DataMismatch, SourceMismatch
from service.studies import source
from service.studies.progress import is_synthetic
from service.studies.source import Source

OPTION = "--allow-drift"


def of_source(
    study: str, here: Source | None, there: Mapping[str, Any], *, allowed: bool
) -> list[str] | None:
    """Compare the objective's source with the study's.

    Args:
        study: The study's name.
        here: The files of this machine; None if there are none to read.
        there: What the study has stored.
        allowed: Whether they may differ.

    Returns:
        How they differ; None if they do not.

    Raises:
        SourceMismatch: They differ, and may not.
    """
    if here is None:
        differences, place = ["no Python file of it is found here"], ""
    elif here.fingerprint == there.get("fingerprint"):
        return None
    else:
        differences, place = source.differences(here, there), f" (in {here.folder})"
    if not allowed:
        raise SourceMismatch(
            f"the objective's source is not the one of study {study!r} any more: "
            f"{', '.join(differences)}{place}. Its values would not be comparable: "
            f"choose another --study for the new code, or add {OPTION} to mix them here"
        )
    return differences


def of_data(
    study: str, here: Mapping[str, Any], there: Mapping[str, Any], *, allowed: bool
) -> str | None:
    """Compare the data with the study's.

    Args:
        study: The study's name.
        here: Name, source, fingerprint and kind of the data of this machine.
        there: Those that the study has stored.
        allowed: Whether their fingerprints may differ; their kinds never may.

    Returns:
        Where the data here come from, if they differ; else None.

    Raises:
        DataMismatch: They differ, and may not.
    """
    if is_synthetic(here) != is_synthetic(there):
        raise DataMismatch(
            f"the data of study {study!r} are {_kind(there)} (from {there['source']}), and those "
            f"here are {_kind(here)} (from {here['source']}): these never mix; choose another "
            "--study"
        )
    if here["fingerprint"] != there["fingerprint"]:
        if allowed:
            return f"{here['fingerprint'][:16]} from {here['source']}"
        raise DataMismatch(
            f"the data here differ from those of study {study!r}: "
            f"here {here['fingerprint'][:16]} from {here['source']}, "
            f"there {there['fingerprint'][:16]} from {there['source']}; "
            f"pass the study's data with --data-dir, or choose another --study, or add {OPTION} "
            "to mix them here"
        )
    contents = here.get("content"), there.get("content")
    if None not in contents and contents[0] != contents[1]:
        raise DataMismatch(
            f"the data here claim the fingerprint of study {study!r}, but their content "
            f"differs from the study's: {here['source']} or a cache of it was changed; remove "
            "the folder STUDYHALL_CACHE on the machine whose data are wrong"
        )
    return None


def _kind(data: Mapping[str, Any]) -> str:
    return "synthetic" if is_synthetic(data) else "real"


def line(drift: Mapping[str, Any]) -> str:
    """What workers with `--allow-drift` have brought into a study, in one line."""
    parts = []
    if drift.get("source"):
        parts.append(f"another source ({', '.join(drift['source'])})")
    if drift.get("data"):
        parts.append(f"other data ({drift['data']})")
    return f"drift: some trials ran with {' and with '.join(parts)}, allowed by {OPTION}"
