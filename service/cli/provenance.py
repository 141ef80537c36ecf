"""Command: provenance, where a study or a trial comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click
from rich.text import Text

from service.cli.console import out, print_plain
from service.cli.display import to_json, visible
from service.cli.options import Context, option


@click.command()
@click.argument("name", metavar="STUDY")
@option("--trial", type=click.IntRange(min=0), metavar="N", help="Show one trial's attempts.")
@option("--json", "as_json", is_flag=True, help="Print one object with everything.")
@click.pass_obj
def provenance(context: Context, name: str, trial: int | None, as_json: bool) -> None:
    """Show where a study or a trial comes from: code, data, versions, machine, command."""
    found = context.hall().study(name).provenance(trial)
    if as_json:
        print_plain(to_json(found))
        return
    lines = study_lines(found) if trial is None else trial_lines(found)
    out.print(Text("\n".join(visible(line) for line in lines)), soft_wrap=True)


def study_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """A study's provenance, one fact a line."""
    yield f"{found['study']}, created at {found['created_at']}"
    yield from document_lines(found["created_by"])
    for worker in found["workers"]:
        count = f"{worker['attempts']} attempt{'' if worker['attempts'] == 1 else 's'}"
        if worker["document"] is None:
            yield f"{count} without a provenance"
            continue
        where = worker["document"]
        yield f"{count} since {worker['first_at']} on {where.get('host')}, {device(where)}"
        yield from differing_lines(worker)


def trial_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """A trial's provenance: each attempt with all its facts."""
    yield f"{found['study']}, trial {found['number']}, seed {found['seed']}"
    for attempt in found["attempts"]:
        cause = f" ({attempt['cause']})" if attempt["cause"] else ""
        yield f"attempt {attempt['attempt']} by {attempt['worker']}{cause}"
        yield from document_lines(attempt["document"])
        yield from differing_lines(attempt)


def document_lines(document: Mapping[str, Any] | None) -> Iterator[str]:
    """The facts of a document."""
    if document is None:
        yield "  no provenance was kept"
        return
    git, source, data = (document.get(key) for key in ("git", "source", "data"))
    facts = {
        "command": document.get("command"),
        "git": git and f"{git['commit']}{dirtiness(git['dirty'])}",
        "source": source and f"{source['fingerprint'][:16]} in {source['folder']}",
        "data": data and f"{data['name']} {data['fingerprint'][:16]} from {data['source']}",
        "seed": document.get("seed"),
        "settings": pairs(document.get("settings")),
        "versions": f"{document.get('python')}, {pairs(document.get('packages'), ' ')}",
        "machine": f"{document.get('host')}, {document.get('system')}",
        "device": document.get("device") and device(document),
        "environment": pairs(document.get("environment")),
        "drift": pairs(document.get("drift")),
    }
    for name, fact in facts.items():
        if fact not in (None, ""):
            yield f"  {name:<12} {fact}"


def dirtiness(dirty: bool | None) -> str:
    """What stands behind a commit."""
    words = {None: ", changes unknown", True: ", with changes that are not in it"}
    return words.get(dirty, ", clean")


def device(document: Mapping[str, Any]) -> str:
    """The device of a document in a few words."""
    found = document.get("device") or {}
    model = found.get("gpu") or found.get("cpu") or "unknown"
    driver = f", driver {found['driver']}" if "driver" in found else ""
    return f"{found.get('name', '-')}: {model}{driver}"


def pairs(found: Mapping[str, Any] | None, equals: str = "=") -> str:
    """A mapping in one line."""
    return ", ".join(f"{key}{equals}{value}" for key, value in (found or {}).items())


def differing_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """What differs from the document that created the study; a worker always has a device."""
    for key, (before, now) in found["differs"].items():
        if key.partition(".")[0] not in ("device", "data", "command", "environment", "drift"):
            yield f"  {key} differs: {now} (the study's: {before})"
