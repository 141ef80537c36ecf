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
from service.progress import Best, Progress
from service.settings import Settings
from service.spec import Budget, Spec
from service.study import Hall, Study, connect, storage

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
