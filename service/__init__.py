"""studyhall's service: many workers, one study.

from service import connect

hall = connect()
study = hall.study("mnist-mlp")
study.progress()
"""

from __future__ import annotations

from service.errors import (
    ConfigurationError,
    DatabaseError,
    DataMismatch,
    SchemaOutOfDate,
    SpecMismatch,
    StudyhallError,
    UnknownObjective,
    UnknownStudy,
    WorkFailed,
)
from service.settings import Settings
from service.studies.hall import Hall, connect, storage
from service.studies.progress import Best, Progress
from service.studies.spec import Budget, Spec
from service.studies.study import Study

__all__ = [
    "Best",
    "Budget",
    "ConfigurationError",
    "DataMismatch",
    "DatabaseError",
    "Hall",
    "Progress",
    "SchemaOutOfDate",
    "Settings",
    "Spec",
    "SpecMismatch",
    "Study",
    "StudyhallError",
    "UnknownObjective",
    "UnknownStudy",
    "WorkFailed",
    "connect",
    "storage",
]
