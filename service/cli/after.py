"""Commands around studies: delete, rename, copy, du, export-study, import-study, gc."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from service.cli import display
from service.cli.console import err, out, print_plain
from service.cli.options import Context, Duration, option
from service.cli.work import command
from service.errors import ConfigurationError, WorkFailed
from service.settings import without_credentials
from service.studies import transfer
from service.studies.housekeeping import refuse_live_workers
from service.studies.permission import Permission
from service.studies.sweep import Sweep
from service.studies.usage import bytes_text

yes_option = option("--yes", is_flag=True, help="Do not ask.")


def confirm(question: str, yes: bool) -> None:
    """Ask once on the terminal; end the command with exit code 1 unless the answer is yes.

    Args:
        question: What is going to be removed.
        yes: Whether the user has said so already, with ``--yes``.

    Raises:
        ConfigurationError: There is no terminal to ask on.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigurationError(f"{question} There is no terminal to ask on: add --yes")
    if not click.confirm(display.visible(question), err=True):
        say("nothing is removed", to_stderr=True)
        sys.exit(1)


def say(line: str, *, to_stderr: bool = False) -> None:
    """Print one line without control characters."""
    console = err if to_stderr else out
    console.print(display.visible(line), markup=False, soft_wrap=True)


@click.command()
@click.argument("names", metavar="STUDY...", nargs=-1, required=True)
@yes_option
@option("--force", is_flag=True, help="Stop the study's workers first, if it has some.")
@click.pass_obj
def delete(context: Context, names: tuple[str, ...], yes: bool, force: bool) -> None:
    """Delete studies with their trials, checkpoints and models; asks once."""
    hall = context.hall()
    chosen, known = list(dict.fromkeys(names)), set(hall.names())
    studies = [hall.study(name) for name in chosen if name in known or not hall.was_deleted(name)]
    for study in studies:
        if not force:
            refuse_live_workers(study.name, study.workers())
    trials = sum(study.progress().total for study in studies)
    what = f"{', '.join(chosen)} with {trials} trial{'' if trials == 1 else 's'}"
    confirm(f"Delete {what}? Nothing brings them back.", yes)
    for name in chosen:
        if hall.delete(name, force=force):
            say(f"{name} is deleted")
        else:
            say(f"{name} was deleted before; no file of it is left")


@click.command()
@click.argument("name", metavar="STUDY")
@click.argument("new", metavar="NEW")
@click.pass_obj
def rename(context: Context, name: str, new: str) -> None:
    """Rename a study; its workers go on."""
    context.hall().study(name).rename(new)
    say(f"{name} is called {new} now")


@click.command()
@click.argument("name", metavar="STUDY")
@click.argument("new", metavar="NEW")
@click.pass_obj
def copy(context: Context, name: str, new: str) -> None:
    """Copy a study with its trials, attempts and budget; workers may go on meanwhile."""
    made = context.hall().copy(name, new)
    progress = made.progress()
    say(f"{name} is copied to {new}: {progress.count_line}{_interrupted(progress.interrupted)}")
    say(f"go on with: {command('resume', made, Permission.of_environment())}")


def _interrupted(count: int) -> str:
    if not count:
        return ""
    trials = "1 trial that ran is" if count == 1 else f"{count} trials that ran are"
    return f"; {trials} interrupted there, to be continued from the beginning"


@click.command()
@click.argument("name", metavar="[STUDY]", required=False)
@option("--json", "as_json", is_flag=True, help="Print one object, in bytes.")
@click.pass_obj
def du(context: Context, name: str | None, as_json: bool) -> None:
    """Show how much a study takes, or each: rows, checkpoints, models; and the data cache."""
    usage = context.hall().usage(name)
    if as_json:
        print_plain(display.to_json(usage.to_json()))
    else:
        out.print(display.usage(usage))


@click.command("export-study")
@click.argument("name", metavar="STUDY")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.pass_obj
def export_study(context: Context, name: str, file: Path) -> None:
    """Write a whole study into one file: FILE.json, or FILE.json.gz, which is compressed."""
    study = context.hall().study(name)
    written = study.export_study(file)
    size = bytes_text(file.stat().st_size)
    say(f"{name} with {written.trials} trials is in {file} ({size})")


@click.command("import-study")
@click.argument("file", type=click.Path(dir_okay=False, exists=True, path_type=Path))
@option("--study", help="Name of the study here.  [default: the one in the file]")
@option("--plain", metavar="URL", help="Make the study in a storage of plain Optuna instead.")
@click.pass_obj
def import_study(context: Context, file: Path, study: str | None, plain: str | None) -> None:
    """Make a study of a file that export-study has written."""
    if plain is not None:
        made = transfer.import_plain(file, plain, study)
        failed = f"; {made.unfinished} that ran have failed there" if made.unfinished else ""
        where = without_credentials(plain)
        say(f"{made.name} with {made.trials} trials is in {where}{failed}")
        return
    progress = context.hall().import_study(file, study).progress()
    count = f"{progress.count_line}{_interrupted(progress.interrupted)}"
    say(f"{progress.study} is imported: {count}")


@click.command()
@yes_option
@option("--dry-run", is_flag=True, help="Only list what would be removed.")
@option(
    "--unclaimed",
    is_flag=True,
    help="Remove, too, what no study of this database has: no other database may use the store.",
)
@option(
    "--older-than",
    type=Duration(),
    help="Age of what is removed.  [default: 1d; 30d if unclaimed, and for the data cache]",
)
@click.pass_obj
def gc(
    context: Context, yes: bool, dry_run: bool, unclaimed: bool, older_than: float | None
) -> None:
    """Remove checkpoints and models that no study needs, and stale data; asks once."""
    hall = context.hall()
    found = hall.find_garbage(unclaimed=unclaimed, older_than=older_than)
    out.print(display.sweep(found), soft_wrap=True)
    if dry_run or not len(found):
        return
    confirm(f"Remove {_count(found)}?", yes)
    refused = hall.remove_garbage(found)
    if refused:
        raise WorkFailed(f"{len(refused)} could not be removed, the first one {refused[0]}")
    say(f"removed {_count(found)}")


def _count(found: Sweep) -> str:
    things = "1 thing" if len(found) == 1 else f"{len(found)} things"
    return f"{things} ({bytes_text(found.size)})"
