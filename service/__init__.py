"""studyhall's service: many workers, one study.

from service import connect

hall = connect()
study = hall.study("mnist-mlp")
study.progress()
"""

from __future__ import annotations

from service import interrupt  # isort: skip

interrupt.guard_imports()

from service.errors import (  # noqa: E402
    ConfigurationError,
    DatabaseError,
    DataMismatch,
    SchemaOutOfDate,
    SourceMismatch,
    SpecMismatch,
    StudyhallError,
    UnknownObjective,
    UnknownStudy,
    UnreadableRow,
    WorkFailed,
)
from service.settings import Settings  # noqa: E402
from service.studies.confirmation import Candidate, Confirmation  # noqa: E402
from service.studies.hall import Hall, connect, storage  # noqa: E402
from service.studies.progress import Best, Progress  # noqa: E402
from service.studies.reproduction import Reproduction  # noqa: E402
from service.studies.spec import Budget, Spec  # noqa: E402
from service.studies.study import Study  # noqa: E402

__all__ = [
    "Best",
    "Budget",
    "Candidate",
    "ConfigurationError",
    "Confirmation",
    "DataMismatch",
    "DatabaseError",
    "Hall",
    "Progress",
    "Reproduction",
    "SchemaOutOfDate",
    "Settings",
    "SourceMismatch",
    "Spec",
    "SpecMismatch",
    "Study",
    "StudyhallError",
    "UnknownObjective",
    "UnknownStudy",
    "UnreadableRow",
    "WorkFailed",
    "connect",
    "storage",
]
