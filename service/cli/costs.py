"""Command: costs, what a study's search cost and what pruning spared or lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import click
from rich.text import Text

from service.cli.console import out, print_plain
from service.cli.display import to_json, visible
from service.cli.options import Context, option
from service.studies.costs import Audit, Costs, Pruning, Work


@click.command()
@click.argument("name", metavar="STUDY")
@option("--json", "as_json", is_flag=True, help="Print one object.")
@click.pass_obj
def costs(context: Context, name: str, as_json: bool) -> None:
    """Show what a search cost: epochs, hours, failures, what pruning spared and may have lost."""
    study = context.hall().study(name)
    found = study.costs()
    if as_json:
        print_plain(to_json({"study": name, **found.to_json()}))
        return
    facts = facts_of(found, study.spec.monitor or "value", study.spec.direction)
    lines = [f"{name}: what the search cost", *(f"  {key:<13} {fact}" for key, fact in facts)]
    out.print(Text("\n".join(visible(line) for line in lines)), soft_wrap=True)


def facts_of(found: Costs, monitor: str, direction: str) -> Iterator[tuple[str, str]]:
    """Each fact in one line, under its name."""
    rate = found.seconds_per_epoch
    pace = "" if rate is None else f"; {rate:.3g} s an epoch"
    yield "trained", f"{work(found.trained)}{pace}"
    for name in ("complete", "pruned", "failed"):
        yield name, work(getattr(found, name))
    if found.failures:
        yield "failures", counts(found.failures)
    if found.interruptions:
        yield "interruptions", counts(found.interruptions)
    yield "trained twice", work(found.repeated)
    yield "duplicates", work(found.duplicates)
    yield "pruning", pruning_line(found.pruning)
    if found.audit is not None:
        yield "audit", audit_line(found.audit, monitor, direction)
    if found.importances:
        shares = ", ".join(f"{key} {share:.2f}" for key, share in found.importances.items())
        yield "importances", f"{shares} (of {found.importance_trials} complete trials)"


def work(found: Work) -> str:
    """Trials, epochs and hours."""
    trials = "1 trial" if found.trials == 1 else f"{found.trials} trials"
    epochs = "1 epoch" if found.epochs == 1 else f"{found.epochs} epochs"
    return f"{trials}, {epochs}, {found.hours:.3g} h"


def counts(found: Mapping[str, int]) -> str:
    """How often each cause occurred."""
    return ", ".join(f"{cause} {count}" for cause, count in found.items())


def pruning_line(found: Pruning) -> str:
    """What pruning spared, and how that is estimated."""
    if not found.pruned:
        return "ended no trial"
    if found.epochs is None:
        return f"ended {found.pruned} trials; no complete trial says what that spared"
    hours = "" if found.hours is None else f" and {found.hours:.3g} h"
    return (
        f"spared about {found.epochs:.0f} epochs{hours}, if each of its {found.pruned} trials had "
        f"run for {found.full_epochs:.3g} epochs, the mean of the {found.estimated_from} ones"
    )


def audit_line(found: Audit, monitor: str, direction: str) -> str:
    """What pruning lost, and how that is estimated."""
    ran_on = f"{found.audited} trials that the pruner would have ended ran on to their end"
    if found.good_share is None or found.lost_interval is None:
        return f"{ran_on}: too few for an estimate (share {found.share:g})"
    sign = ">=" if direction == "maximize" else "<="
    low, high = found.lost_interval
    return (
        f"{ran_on}, {found.good} of them to the best tenth of the others ({monitor} {sign} "
        f"{found.threshold:.6g}), {found.better_than_best} to a new best: pruning has lost about "
        f"{found.lost:.3g} such trials (95 % interval {low:.3g} to {high:.3g}, Clopper-Pearson)"
    )
