"""Entry point: errors become one line and an exit code."""

from __future__ import annotations

import logging
import signal
import sys
import traceback
import warnings
from types import TracebackType

import click
import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from service import database, interrupt
from service.cli.console import err
from service.cli.display import visible
from service.cli.main import main as command
from service.errors import StudyhallError
from service.text import make_visible


def main() -> None:
    """Run the command line and leave with its exit code."""
    # For a SIGTERM before a pool exists; the pool sets its own handler.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", ExperimentalWarning)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.captureWarnings(True)
    for name in ("", "optuna"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(make_visible)
    sys.excepthook = print_traceback
    try:
        interrupt.end_guard()
        command.main(standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        err.print("studyhall: interrupted", markup=False)
        sys.exit(130)
    except click.UsageError as error:
        sys.exit(print_usage_error(error))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except StudyhallError as error:
        sys.exit(print_error(error))
    except (SQLAlchemyError, StorageInternalError) as error:
        sys.exit(print_error(database.failure(None, error)))
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        message = f"{error.strerror or error}: {error.filename or ''}"
        sys.exit(print_error(StudyhallError(message)))


def print_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print the traceback of a defect of ours; the error may quote a row of the database."""
    lines = "".join(traceback.format_exception(kind, error, trace))
    sys.stderr.write(visible(lines, "\n\t"))


def print_error(error: StudyhallError) -> int:
    """Print one line on stderr; return the exit code."""
    err.print(f"studyhall: {visible(str(error))}", markup=False, soft_wrap=True)
    return error.exit_code


def print_usage_error(error: click.UsageError) -> int:
    """Print on one line of stderr what is wrong with the arguments; return the exit code."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return error.exit_code
    path = error.ctx.command_path if error.ctx else "studyhall"
    message = error.format_message().replace("\n", " ").rstrip(".")
    line = f"studyhall: {message[:1].lower()}{message[1:]}; see {path} --help"
    err.print(visible(line), markup=False, soft_wrap=True)
    return error.exit_code


if __name__ == "__main__":
    main()
