"""Tables of what was trained again: a confirmation, a reproduction."""

from __future__ import annotations

import shlex

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from service.cli.display import parameters, visible
from service.studies.confirmation import Candidate, Confirmation
from service.studies.progress import mark
from service.studies.reproduction import TOLERANCE, WITHIN_NOISE, Comparison, Reproduction


def confirmation(found: Confirmation) -> RenderableType:
    """The candidates, the best one first, and the winner."""
    table = Table(box=box.SIMPLE_HEAD)
    right = ("mean", "std", "runs", "P(best)", "tuned", "drop")
    for column in ("trial", "mean", "std", "95 % interval", *right[2:], "race"):
        table.add_column(column, no_wrap=True, justify="right" if column in right else "left")
    table.add_column("params", overflow="fold")
    for one in found.candidates:
        table.add_row(*_candidate(one))
    lines = [
        "mean, std, interval: over seeds; 95 % interval of the mean by Student's t",
        "drop: the winner's curse, by how much the tuned value was better than the mean",
        *_conclusion(found),
    ]
    return Group(Text(visible(_head(found)), "bold"), table, Text("\n".join(lines)))


def _head(found: Confirmation) -> str:
    splits = ", each with a split of its own" if found.resplit else ""
    return (
        f"{found.study}: {len(found.candidates)} best trials on {found.seeds} fresh seeds"
        f"{splits}{mark(found.synthetic)} ({found.linked}: {found.state})"
    )


def _candidate(one: Candidate) -> list[str | Text]:
    total = one.complete + one.failed + one.unfinished
    failed = f", {one.failed} failed" if one.failed else ""
    low, high = number(one.low), number(one.high)
    out = "in" if one.withdrawn is None else f"out after {one.withdrawn.seeds}"
    return [
        str(one.number),
        number(one.mean),
        number(one.std, 3),
        "-" if one.low is None else f"{low} to {high}",
        f"{one.complete}/{total}{failed}",
        "-" if one.p_best is None else f"{one.p_best:.3f}",
        number(one.tuned),
        number(one.drop, 3),
        out,
        Text(parameters(one.params)),
    ]


def _conclusion(found: Confirmation) -> list[str]:
    lines = []
    winner = found.winner
    if winner is not None:
        value = f"{visible(found.monitor or 'value')} {number(winner.mean)}{mark(found.synthetic)}"
        lines.append(f"winner: trial {winner.number}, {value}, by validation alone")
    elif not found.is_final:
        name = ("resume", found.linked) if found.state == "stopped" else ("confirm", found.study)
        again = shlex.join(["studyhall", *name])
        lines.append(visible(f"not every run has ended; go on with: {again}"))
    if found.missing:
        numbers = ", ".join(map(str, found.missing))
        lines.append(
            f"the search has gone on: {numbers} are among its best trials now, and not confirmed"
        )
    return lines


def reproduction(found: Reproduction) -> RenderableType:
    """Every value of the trial beside its repetition, and the verdict."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("step", "recorded", "repeated", "difference"):
        table.add_column(column, no_wrap=True, justify="right")
    table.add_column("verdict", no_wrap=True)
    for one in found.comparisons:
        table.add_row(*_comparison(one))
    lines = [f"trial {found.number} of {found.study}: {found.verdict}"]
    first = found.first_difference
    if first is not None:
        where = "the final value" if first.step is None else f"step {first.step}"
        lines.append(f"the first value that is not identical: {where}")
    if found.state != found.repeated_state:
        cause = f" ({found.cause})" if found.cause else ""
        lines.append(f"it was {found.state}, and now is {found.repeated_state}{cause}")
    lines += found.changes
    if found.verdict == WITHIN_NOISE:
        lines.append(f"within noise: at most {TOLERANCE:.0%} of the larger value")
    return Group(table, Text("\n".join(map(visible, lines))))


def _comparison(one: Comparison) -> list[str]:
    return [
        "value" if one.step is None else str(one.step),
        "-" if one.recorded is None else repr(one.recorded),
        "-" if one.repeated is None else repr(one.repeated),
        f"{one.difference:.2g}" if one.difference else "0",
        one.verdict,
    ]


def number(value: float | None, digits: int = 6) -> str:
    """A number in a cell; a dash for None."""
    return "-" if value is None else f"{value:.{digits}g}"
