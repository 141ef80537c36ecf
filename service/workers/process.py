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
import time
import warnings

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from service import database
from service.database.connection import SharedConnection
from service.errors import StudyhallError, UnknownStudy
from service.studies.hall import Hall
from service.studies.study import Study
from service.workers.assignment import Assignment
from service.workers.limits import RECYCLE, own_code
from service.workers.outage import PAUSE_SECONDS, patiently
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
        code = run_worker(assignment)
    except StudyhallError as error:
        log.error("error: %s", error)
        code = error.exit_code
    return code if code in (0, RECYCLE) else own_code(code)


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
    patience = assignment.database_patience
    began = time.monotonic()
    hall = patiently(lambda: Hall(assignment.settings), patience)
    if (waited := time.monotonic() - began) > PAUSE_SECONDS:
        SharedConnection.of(hall.engine).note_outage(waited)
    try:
        return _work(hall, assignment)
    except (SQLAlchemyError, StorageInternalError) as error:
        raise database.failure(hall.engine.url, error) from error


def _work(hall: Hall, assignment: Assignment) -> int:
    patience = assignment.database_patience
    study = patiently(lambda: hall.study_of_id(assignment.study), patience)
    study.spec.require(assignment.permission)
    objective = study.spec.load(assignment.data_dir, assignment.permission)
    if warm_up := getattr(objective, "warm_up", None):
        warm_up()
    patiently(lambda: study.check_data(objective), patience)
    name, device, limits = assignment.worker, assignment.device, assignment.limits
    try:
        return Worker(study, hall, objective, name, device, limits).run()
    except KeyError as error:
        _refuse_deleted(hall, study, error)
        raise


def _refuse_deleted(hall: Hall, study: Study, error: KeyError) -> None:
    """Raise UnknownStudy if that is why the study's rows are missing."""
    try:
        hall.study_of_id(study.study_id)
    except UnknownStudy:
        raise UnknownStudy(f"study {study.name!r} has been deleted") from error


if __name__ == "__main__":
    sys.exit(main())
