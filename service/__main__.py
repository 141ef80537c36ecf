"""Entry point: errors become one line and an exit code."""

from __future__ import annotations

import logging
import signal
import sys
import warnings

import click
import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from service import database
from service.cli import main as cli
from service.errors import StudyhallError


def main() -> None:
    """Run the command line and leave with its exit code."""
    # Asked to stop before there is anything to stop; a pool sets handlers of its own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", ExperimentalWarning)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.UsageError as error:
        sys.exit(cli.misused(error))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except StudyhallError as error:
        sys.exit(cli.fail(error))
    except (SQLAlchemyError, StorageInternalError) as error:
        sys.exit(cli.fail(database.failure(None, error)))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        sys.exit(cli.fail(StudyhallError(f"{error.strerror or error}: {error.filename or ''}")))


if __name__ == "__main__":
    main()
