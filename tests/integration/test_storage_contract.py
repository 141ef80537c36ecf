"""Optuna's own contract suite, on StudyStorage."""

from __future__ import annotations

import optuna
import pytest
from optuna.testing.pytest_storages import StorageTestCase
from sqlalchemy.engine import Engine

import service
from service.storage.storage import StudyStorage


class TestStudyStorage(StorageTestCase):
    @pytest.fixture
    def storage(self, engine: Engine) -> StudyStorage:
        return StudyStorage(engine)


def test_the_storage_alone_serves_plain_optuna_on_an_empty_database(
    empty_database_url: str,
) -> None:
    study = optuna.create_study(study_name="plain", storage=service.storage(empty_database_url))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=4)
    again = optuna.load_study(study_name="plain", storage=service.storage(empty_database_url))
    assert [trial.values for trial in again.trials] == [trial.values for trial in study.trials]
    stock = optuna.load_study(study_name="plain", storage=empty_database_url)
    assert stock.best_value == study.best_value
