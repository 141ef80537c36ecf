"""Compares the digests of a study with the trials that stock Optuna reads."""

from __future__ import annotations

from typing import Any

from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from service import database
from service.storage.digests import Digest
from service.storage.storage import StudyStorage


def expected_digest(trial: FrozenTrial) -> dict[str, Any]:
    """The fields of a correct digest of a trial."""
    return {
        "number": trial.number,
        "state": trial.state,
        "values": trial.values or [],
        "params": {
            name: float(distribution.to_internal_repr(trial.params[name]))
            for name, distribution in trial.distributions.items()
        },
        "distributions": trial.distributions,
        # Stock reads them in the order of the table, which changes when rows are rewritten.
        "reports": dict(sorted(trial.intermediate_values.items()))
        if trial.state.is_finished()
        else {},
    }


def digest_fields(digest: Digest) -> dict[str, Any]:
    """The fields of a digest, as in `expected_digest`."""
    return {
        "number": digest.number,
        "state": digest.state,
        "values": [float(value) for value in digest.values],
        "params": {name: float(digest.param(name)) for name in digest.space.places},
        "distributions": digest.space.distributions,
        "reports": dict(zip(digest.steps, map(float, digest.reported), strict=True)),
    }


def check_digests(storage: StudyStorage, study_id: int) -> None:
    """Check that the digests of a study equal the trials that stock Optuna reads."""
    digest_cache = StudyStorage(storage._engine).digest_cache(study_id, running=True)
    digests = {digest.trial_id: digest_fields(digest) for digest in digest_cache.finished}
    digests |= {
        trial_id: digest_fields(digest) for trial_id, digest in digest_cache.running.items()
    }
    url = database.database_url_for_stock(database.full_url(storage._engine.url))
    trials = RDBStorage(url).get_all_trials(study_id)
    expected = {
        trial._trial_id: expected_digest(trial)
        for trial in trials
        if trial.state.is_finished() or (trial.state == TrialState.RUNNING and trial.params)
    }
    assert repr(sorted(digests.items())) == repr(sorted(expected.items()))
