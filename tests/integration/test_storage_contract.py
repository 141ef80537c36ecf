"""Optuna's own contract suite, on StudyStorage."""

from __future__ import annotations

import pytest
from optuna.testing.pytest_storages import StorageTestCase
from sqlalchemy.engine import Engine

from service.storage import StudyStorage


class TestStudyStorage(StorageTestCase):
    @pytest.fixture
    def storage(self, engine: Engine) -> StudyStorage:
        return StudyStorage(engine)
