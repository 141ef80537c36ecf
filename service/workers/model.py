"""TrialModel: keeps the model of a trial if the trial is among the study's best ones."""

from __future__ import annotations

import json
import logging
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from optuna.artifacts import ArtifactMeta
from sqlalchemy import Engine

from service.artifacts.models import ModelFiles
from service.artifacts.store import Store
from service.settings import without_credentials
from service.storage import kept_models
from service.storage.leases import Lease
from service.storage.storage import StudyStorage
from service.studies.study import Study

log = logging.getLogger("studyhall")


class TrialModel:
    """The model of one leased trial.

    Args:
        study: The study.
        engine: Its database.
        storage: The storage that writes the trial.
        store: The artifact store.
        lease: The trial's lease.
    """

    def __init__(
        self, study: Study, engine: Engine, storage: StudyStorage, store: Store, lease: Lease
    ) -> None:
        self._study = study
        self._engine = engine
        self._storage = storage
        self._files = ModelFiles(store)
        self._lease = lease
        self._maximize = study.spec.direction == "maximize"
        self._is_saved = False

    def save(
        self, value: float, write: Callable[[Path], Path], logs: Mapping[str, float] | None = None
    ) -> bool:
        """Save the model if the trial will be among the best; return whether it was saved.

        If the artifact store cannot be written, the model is lost, with a warning; the trial goes
        on.

        Args:
            value: The value with which the trial is about to end.
            write: Writes the model into a folder, which is deleted afterwards; returns its path.
            logs: The logs of the epoch that the weights are of.
        """
        keep, number = self._study.spec.keep, self._lease.number
        if not math.isfinite(value) or not kept_models.is_among_best(
            self._engine, self._study.study_id, number, value, keep, maximize=self._maximize
        ):
            return False
        with tempfile.TemporaryDirectory(prefix="studyhall-") as folder:
            path = write(Path(folder))
            name, content = path.name, path.read_bytes()
        suffix = name[name.index(".") :] if "." in name else ""
        artifact_id = f"{self._study.folder}-{number}-{self._lease.token}{suffix}"
        try:
            sha256 = self._files.write(artifact_id, content)
        except Exception as error:  # file systems and object stores raise many types
            reason = without_credentials(str(error))
            log.warning("trial %d: its model cannot be kept: %s", number, reason)
            return False
        replaced = kept_models.add(
            self._engine, self._lease, artifact_id, sha256, len(content), logs or {}
        )
        meta = ArtifactMeta(artifact_id, name, "application/octet-stream", None)
        self._storage.set_trial_system_attr(
            self._lease.trial_id, f"artifacts:{artifact_id}", json.dumps(asdict(meta))
        )
        self._is_saved = True
        self._remove([replaced] if replaced else [])
        return True

    def remove_others(self) -> None:
        """Once the trial has ended: remove the models of trials that are best no longer."""
        if self._is_saved:
            study_id, keep = self._study.study_id, self._study.spec.keep
            left = kept_models.drop_all_but_best(
                self._engine, study_id, keep, maximize=self._maximize
            )
            self._remove(left)

    def _remove(self, artifact_ids: list[str]) -> None:
        for artifact_id in artifact_ids:
            try:
                self._files.remove(artifact_id)
            except Exception as error:
                reason = without_credentials(str(error))
                log.warning("the model %s cannot be deleted: %s", artifact_id, reason)
