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
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from service import database
from service.database.connection import SharedConnection
from service.errors import SourceMismatch, StudyhallError, UnknownStudy
from service.studies import provenance, registry
from service.studies.hall import Hall
from service.studies.provenance import Provenance
from service.studies.source import Source
from service.studies.study import Study
from service.workers import machine
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
    """Open the study, compare source and data, and work.

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
    source = study.read_source(assignment.permission)
    objective = study.spec.load(assignment.data_dir, assignment.permission)
    if source != study.read_source(assignment.permission):
        raise SourceMismatch("the objective's source changed while it was imported: start again")
    if warm_up := getattr(objective, "warm_up", None):
        warm_up()
    data = registry.data_of(objective)
    kept = patiently(lambda: _check(hall, study, source, data, assignment), patience)
    name, device, limits = assignment.worker, assignment.device, assignment.limits
    try:
        return Worker(study, hall, objective, name, device, limits, kept).run()
    except KeyError as error:
        _refuse_deleted(hall, study, error)
        raise


def _refuse_deleted(hall: Hall, study: Study, error: KeyError) -> None:
    """Raise UnknownStudy if that is why the study's rows are missing."""
    try:
        hall.study_of_id(study.study_id)
    except UnknownStudy:
        raise UnknownStudy(f"study {study.name!r} has been deleted") from error


def _check(
    hall: Hall,
    study: Study,
    source: Source | None,
    data: dict[str, Any] | None,
    assignment: Assignment,
) -> Provenance:
    """Compare source and data with the study's; keep this worker's provenance.

    Raises:
        SourceMismatch: The source differs, and may not.
        DataMismatch: The data differ, and may not.
    """
    allowed = assignment.permission.drift
    drift = {
        "source": study.check_source(source, allow_drift=allowed),
        "data": study.compare_data(data, allow_drift=allowed),
    }
    drift = {key: value for key, value in drift.items() if value}
    study.mark_drift(drift)
    found = provenance.gather(
        source,
        study.spec.to_json(),
        command=assignment.command,
        data=data,
        device=machine.describe(assignment.device),
        drift=drift,
    )
    with hall.engine.begin() as connection:
        found.store(connection)
    return found


if __name__ == "__main__":
    sys.exit(main())
