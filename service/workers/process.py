"""Entry point of a worker process.

The pool starts ``python -m service.workers.process`` and writes an `Assignment` as the first line
of its standard input. The pool keeps that input open: when it closes, the pool is dead, and the
worker leaves.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from dataclasses import replace

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from service import database
from service.errors import StudyhallError, UnknownStudy
from service.studies.hall import Hall
from service.workers.assignment import Assignment
from service.workers.signals import signal_main_thread, use_signal_stack
from service.workers.worker import Worker

log = logging.getLogger("studyhall")


def main() -> int:
    """Run one worker; return its exit code."""
    use_signal_stack()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", ExperimentalWarning)
    assignment = read_assignment()
    threading.Thread(target=watch_pool, name="pool-watch", daemon=True).start()
    try:
        return run_worker(assignment)
    except StudyhallError as error:
        log.error("error: %s", error)
        return error.exit_code


def read_assignment() -> Assignment:
    """The first line of standard input, read without buffering anything after it."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(0, 1)):
        line += byte
    return Assignment.from_line(line)


def watch_pool() -> None:
    """Send SIGTERM to this process when the pool closes its standard input.

    Reads the bare descriptor: a daemon thread that waits inside ``sys.stdin`` holds its lock,
    and the interpreter cannot end.
    """
    while os.read(0, 1024):
        pass
    signal_main_thread(signal.SIGTERM)


def run_worker(assignment: Assignment) -> int:
    """Open the study, compare the data, and work.

    Raises:
        StudyhallError: This worker cannot work, or not any longer.
    """
    hall = Hall(assignment.settings)
    study = hall.study(assignment.study)
    study.spec = replace(study.spec, path=assignment.path or study.spec.path)
    objective = study.spec.load(assignment.data_dir)
    if warm_up := getattr(objective, "warm_up", None):
        warm_up()
    study.check_data(objective)
    name, device, limits = assignment.worker, assignment.device, assignment.limits
    try:
        return Worker(study, hall, objective, name, device, limits).run()
    except (SQLAlchemyError, StorageInternalError) as error:
        raise database.failure(hall.engine.url, error) from error
    except KeyError as error:
        if study.name in hall.names():
            raise
        raise UnknownStudy(f"study {study.name!r} has been deleted") from error


if __name__ == "__main__":
    sys.exit(main())
