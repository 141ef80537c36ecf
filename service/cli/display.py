"""Display: a study, its trials and findings as tables, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from service.artifacts.garbage import Garbage
from service.doctor import Finding
from service.errors import counted, headline
from service.studies import drift
from service.studies.progress import Best, Progress, Unreadable, mark, spread
from service.studies.sweep import Sweep
from service.studies.usage import Usage, bytes_text
from service.studies.winner import Opening
from service.text import visible as visible


def to_json(value: Any) -> str:
    """Strict JSON: NaN and infinity become null."""
    return json.dumps(_strict(value), indent=2, default=str)


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value


def duration(seconds: float | None) -> str:
    """``1m15s`` for 75 seconds; a dash for None."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def parameters(params: Mapping[str, Any]) -> str:
    """Parameters in one line, floats to four digits."""
    return visible(
        ", ".join(
            f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
            for key, value in params.items()
        )
    )


def settings(values: Mapping[str, Any]) -> str:
    """Settings in one line, as ``--set`` takes them."""
    texts = {
        key: ",".join(map(str, value)) if isinstance(value, list) else str(value)
        for key, value in values.items()
    }
    words = {"True": "true", "False": "false", "None": "none"}
    return visible(" ".join(f"{key}={words.get(text, text)}" for key, text in texts.items()))


def best_line(best: Best | None, monitor: str | None, complete: int = 0) -> str:
    """The best trial in one line; without one, whether any trial is complete."""
    if best is None:
        return "no feasible trial is complete yet" if complete else "no trial is complete yet"
    epoch = "" if best.epoch is None else f" at epoch {best.epoch}"
    return (
        f"best trial {best.number}: {visible(monitor or 'value')} {best.value:.6g}"
        f"{spread(best.std)}{mark(best.synthetic, best.drift)}{epoch}"
    ) + (f", {parameters(best.params)}" if best.params else "")


def data_line(data: Mapping[str, Any]) -> str:
    """Where a study's data come from and how many examples each part has, in one line."""
    parts = f": {data['parts']}" if data.get("parts") else ""
    return visible(f"data: {data['name']} from {data['source']}{parts}")


def openings_line(openings: Sequence[Opening]) -> str:
    """How often the test set was opened, and the last result, in one line."""
    measured = [opening for opening in openings if opening.result is not None]
    if not measured:
        return "the test set was opened, but nothing was measured"
    last = measured[-1]
    times = "once" if len(measured) == 1 else f"{len(measured)} times"
    at = f"{last.opened_at:%Y-%m-%d %H:%M} by {visible(last.who)}"
    return f"test set opened {times}, last at {at}: trial {last.number}, {test_line(last)}"


def test_line(opening: Opening) -> str:
    """The metrics of an opening in one line, with the interval of a classifier's accuracy."""
    result = opening.result or {}
    line = ", ".join(f"{visible(k)} {v:.6g}" for k, v in result.get("metrics", {}).items())
    if classes := result.get("classes"):
        low, high = classes["interval"]
        line += f" (95 % interval of the accuracy: {low:.4f} to {high:.4f})"
    return line


def opening(opening: Opening, n_openings: int, synthetic: bool) -> RenderableType:
    """A measurement on the test set, as `studyhall evaluate` prints it."""
    result = opening.result or {}
    head = f"trial {opening.number} on {result['n']:,} test examples: {test_line(opening)}"
    grid = Table.grid()
    grid.add_row(Text(f"{head}{mark(synthetic)}"))
    if n_openings > 1:
        grid.add_row(Text(f"the test set has now been opened {n_openings} times"))
    if classes := result.get("classes"):
        grid.add_row(_per_class(classes))
        grid.add_row(_confusion(classes))
    return grid


def _per_class(classes: Mapping[str, Any]) -> Table:
    table = Table("class", "examples", "precision", "recall", "F1", box=box.SIMPLE_HEAD)
    for row in classes["per_class"]:
        rates = (row[key] for key in ("precision", "recall", "f1"))
        cells = ("-" if rate is None else f"{rate:.4f}" for rate in rates)
        table.add_row(str(row["label"]), str(row["n"]), *cells)
    return table


def _confusion(classes: Mapping[str, Any]) -> RenderableType:
    """Rows are the classes, columns what they are taken for."""
    labels = [str(row["label"]) for row in classes["per_class"]]
    if len(labels) > 20:
        return Text(f"confusion matrix of {len(labels)} classes: --json")
    table = Table("class", *(f"as {label}" for label in labels), box=box.SIMPLE_HEAD)
    for label, row in zip(labels, classes["confusion"], strict=True):
        table.add_row(label, *map(str, row))
    return table


def exported(card: Mapping[str, Any], folder: Path) -> str:
    """What `studyhall export` has written, in one line."""
    pairs = ", ".join(
        f"{name} {card['reproduced'][name]:.6g}"
        for name in card["recorded"]
        if name in card["reproduced"]
    )
    return visible(
        f"{folder}/{card['model']['file']}: trial {card['number']}, reloaded in a fresh "
        f"process: {pairs}, as recorded{mark(card['synthetic'])}; see {folder}/card.md"
    )


def status(
    progress: Progress, monitor: str | None, openings: Sequence[Opening] = ()
) -> RenderableType:
    """One study in a few lines, as `studyhall status STUDY` prints it."""
    total = progress.n_trials
    head = Text.assemble(
        (visible(progress.study), "bold"),
        f"  {progress.state}",
        "" if progress.stop_reason is None else f" ({visible(progress.stop_reason)})",
        ", with no worker" if progress.state == "running" and not progress.workers else "",
    )
    counts = (
        f"{progress.count_line}: "
        f"{progress.complete} complete, {progress.pruned} pruned, {progress.failed} failed, "
        f"{progress.running} running, {progress.interrupted} interrupted"
        f"{f', {progress.waiting} waiting' if progress.waiting else ''}; "
        f"{counted(progress.workers, 'worker')}, ETA {duration(progress.eta_seconds)}"
    )
    bar = ProgressBar(
        total=total or max(1, progress.finished),
        completed=max(0, progress.finished - progress.added),
        width=60,
    )
    best = best_line(progress.best, monitor, progress.complete)
    grid = Table.grid()
    for line in (head, bar, Text(counts), Text(best)):
        grid.add_row(line)
    if progress.data is not None:
        grid.add_row(Text(data_line(progress.data)))
    if openings:
        grid.add_row(Text(openings_line(openings)))
    if progress.drift:
        grid.add_row(Text(visible(drift.line(progress.drift))))
    return grid


def studies(rows: Iterable[Progress | Unreadable], indented: Collection[str] = ()) -> Table:
    """A table of studies, one line each.

    Args:
        rows: Their progress.
        indented: The names of those that stand under the study to which they are linked.
    """
    columns = ("study", "state", "trials", "complete", "pruned", "failed", "workers", "best")
    table = Table(*columns, box=box.SIMPLE_HEAD)
    for row in rows:
        if isinstance(row, Unreadable):
            what = Text(visible(f"unreadable: {row.problem}"))
            table.add_row(Text(visible(row.study)), what, *["-"] * (len(columns) - 2))
            continue
        total = "?" if row.n_trials is None else row.n_trials
        table.add_row(
            Text(f"{'  ' if row.study in indented else ''}{visible(row.study)}"),
            f"{row.state}, no worker" if row.state == "running" and not row.workers else row.state,
            f"{row.finished}/{total}" if not row.added else f"{row.begun}/{total} +{row.added}",
            str(row.complete),
            str(row.pruned),
            str(row.failed),
            str(row.workers),
            "-"
            if row.best is None
            else f"{row.best.value:.6g}{mark(row.synthetic, row.best.drift)}",
        )
    return table


def trials(records: list[dict[str, Any]]) -> Table:
    """A table of trials; the cause of a failure with the headline of its traceback."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("number", "state", "value", "epoch", "time", "attempts"):
        table.add_column(column, no_wrap=True)
    for column in ("params", "cause", "worker"):
        table.add_column(column, overflow="fold")
    for row in records:
        table.add_row(
            str(row["number"]),
            row["state"],
            _value(row),
            "-" if row["epoch"] is None else str(row["epoch"]),
            duration(row["duration_seconds"]),
            str(row["attempts"]),
            Text(parameters(row["params"])),
            Text(visible(_cause(row))),
            Text(visible(row["worker"] or "-")),
        )
    return table


def _value(row: Mapping[str, Any]) -> str:
    if row["value"] is None:
        return "-"
    infeasible = "" if row["feasible"] else " infeasible"
    marks = mark(row["synthetic"], row["drift"])
    return f"{row['value']:.6g}{spread(row['std'])}{marks}{infeasible}"


def _cause(row: Mapping[str, Any]) -> str:
    if row["cause"] is None:
        return "-"
    detail = f": {headline(row['detail'])}" if row["detail"] else ""
    return f"{row['cause']}{detail}"


def trials_csv(records: list[dict[str, Any]]) -> str:
    """Trials as CSV: parameters in columns ``params_…``, the reported values as their count."""
    names = sorted({name for row in records for name in row["params"]})
    nested = ("params", "constraints", "intermediate_values", "history")
    plain = [key for key in records[0] if key not in nested] if records else ["number"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*plain, "n_reported", *(visible(f"params_{name}") for name in names)])
    for row in records:
        row = {**row, "drift": " ".join(row["drift"])}
        params = [row["params"].get(name) for name in names]
        cells = [*(row[key] for key in plain), len(row["intermediate_values"]), *params]
        writer.writerow(
            [visible(cell, "\n\t") if isinstance(cell, str) else cell for cell in cells]
        )
    return out.getvalue().rstrip("\n")


def findings(rows: list[Finding]) -> RenderableType:
    """The doctor's findings, each with its cure."""
    lines = [] if any(row.wrong for row in rows) else ["nothing is wrong"]
    lines += [
        f"{visible(row.about)}: {visible(row.problem)}\n    -> {visible(row.cure)}" for row in rows
    ]
    return Text("\n".join(lines))


def usage(found: Usage) -> RenderableType:
    """Bytes of each study, and of what belongs to none."""
    columns = ("study", "trials", "database", "checkpoints", "models", "total")
    table = Table(*columns, box=box.SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    for study in found.studies:
        sizes = (study.database, study.checkpoints, study.models, study.total)
        table.add_row(Text(visible(study.study)), str(study.trials), *map(bytes_text, sizes))
    others = ""
    if found.other_artifacts:
        others = f", {bytes_text(found.other_artifacts)} of no study of this database"
    lines = [
        f"tables of all studies, with indexes: {bytes_text(found.tables)}",
        f"artifact store: {found.store}{others}",
        f"data cache of this machine: {found.cache}, {bytes_text(found.cache_bytes)}",
    ]
    return Group(table, Text(visible("\n".join(lines), "\n")))


def sweep(found: Sweep) -> RenderableType:
    """What may be removed, and what is kept although no study of this database has it."""
    lines = [
        f"{each.name}  {bytes_text(each.size)}  {duration(each.age)} old  {each.reason}"
        for each in found.garbage
    ]
    lines += [f"rows of study {study_id}, deleted by plain Optuna" for study_id in found.rows]
    lines += [
        f"{entry.path}  {bytes_text(entry.size)}  {duration(entry.age)} unused"
        for entry in found.entries
    ]
    young = [each for each in found.kept if each.certain]
    unclaimed = [each for each in found.kept if not each.certain]
    lines = lines or ["there is nothing to remove"]
    if young:
        lines.append(f"kept: {_sum(young)} of ended trials, younger than --older-than")
    if unclaimed:
        lines.append(
            f"kept: {_sum(unclaimed)} that no study of this database has; another database may. "
            "If none uses this store: studyhall gc --unclaimed"
        )
    return Text(visible("\n".join(lines), "\n"))


def _sum(garbage: list[Garbage]) -> str:
    folders = "1 folder" if len(garbage) == 1 else f"{len(garbage)} folders"
    return f"{folders} ({bytes_text(sum(each.size for each in garbage))})"
