"""Costs: what a study's search cost, what pruning spared, and what it may have lost.

An epoch is a reported step. Time is that of attempts; the time of one that was lost, whose end
nobody has seen, is estimated by its epochs. Trials without an attempt, which plain Optuna has
added or run, cost nothing here. All of it is computed from the digests of finished trials and two
statements, whatever the study's size.
"""

from __future__ import annotations

import logging
import math
import random
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import optuna
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial
from sqlalchemy import Connection, text

from service.sampling.factory import AUDIT_KEY
from service.storage.constraints import is_feasible
from service.storage.digests import Digest

log = logging.getLogger("studyhall")

ATTEMPTS = text(
    """-- The attempts of a study with their times; those of one trial stand together.
    SELECT trial_id, epochs, cause, ended_at IS NULL AS running,
           extract(epoch FROM coalesce(ended_at, started_at) - started_at)::float8 AS seconds
      FROM service.attempts WHERE study_id = :study_id ORDER BY trial_id, attempt"""
)
AUDITED = text(
    """-- The trials that ran on although the pruner would have ended them.
    SELECT trial_id FROM public.trial_system_attributes
     WHERE key = :key
       AND trial_id IN (SELECT trial_id FROM public.trials WHERE study_id = :study_id)"""
)
UNSEEN = ("lost", "expired")
"""Causes of attempts whose end was noticed later than it came."""

GOOD_SHARE = 0.1
"""A trial is good if it is as good as the best tenth of the complete trials."""

MIN_AUDITED = 5
"""With so many audited trials, these say how long a pruned trial would have run."""

MAX_IMPORTANCE_TRIALS = 2000
"""Importances are computed from a sample of so many complete trials."""


@dataclass(frozen=True)
class Work:
    """Trials, or attempts, with the epochs that they trained and the hours that these took."""

    trials: int = 0
    epochs: int = 0
    hours: float = 0.0


@dataclass(frozen=True)
class Pruning:
    """What pruning spared.

    Attributes:
        pruned: Trials that the pruner has ended.
        full_epochs: Epochs that such a trial is taken to run without a pruner.
        estimated_from: The trials whose mean that is: ``complete`` or ``audited`` ones.
        epochs: Epochs spared: for each pruned trial the rest up to ``full_epochs``.
        hours: The same in hours, at the complete trials' seconds an epoch.
    """

    pruned: int
    full_epochs: float | None
    estimated_from: str
    epochs: float | None
    hours: float | None


@dataclass(frozen=True)
class Audit:
    """What pruning lost, estimated from the trials that ran on although it would have ended them.

    The audited trials are a random sample of those that the pruner would end. The share of good
    ones among them, times the pruned trials, estimates how many good ones were lost. The interval
    is that of Clopper and Pearson (1934) for a binomial share, 95 %.

    Attributes:
        share: The share of the spec.
        audited: Trials that ran on and are complete.
        unfinished: Trials that ran on and have failed or not ended.
        threshold: The value from which on a trial is good: see `GOOD_SHARE`.
        good: How many of the audited ones are good.
        better_than_best: How many of them are better than every other complete trial.
        good_share: The share of good ones, with ``interval``.
        lost: Good trials that pruning has lost, estimated, with ``lost_interval``.
    """

    share: float
    audited: int
    unfinished: int
    threshold: float | None = None
    good: int = 0
    better_than_best: int = 0
    good_share: float | None = None
    interval: tuple[float, float] | None = None
    lost: float | None = None
    lost_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Costs:
    """What a search cost and saved.

    Attributes:
        trained: All attempts that have ended.
        complete: Of these, those of complete trials.
        pruned: Those of pruned trials.
        failed: Those of failed trials.
        repeated: Trials that lost epochs to a crash or takeover, and what was trained again.
        duplicates: Trials with the same parameters as an earlier trial.
        seconds_per_epoch: Of complete trials; None without reports.
        failures: Failed trials by cause.
        interruptions: Attempts that another attempt has continued, by cause.
        pruning: What pruning spared.
        audit: What it lost; None without ``--pruner-audit``.
        importances: The parameters' shares in good values, the most important first.
        importance_trials: Complete trials from which these were computed.
    """

    trained: Work
    complete: Work
    pruned: Work
    failed: Work
    repeated: Work
    duplicates: Work
    seconds_per_epoch: float | None
    failures: dict[str, int]
    interruptions: dict[str, int]
    pruning: Pruning
    audit: Audit | None
    importances: dict[str, float] = field(default_factory=dict)
    importance_trials: int = 0

    def to_json(self) -> dict[str, Any]:
        """As ``studyhall costs --json`` prints it."""
        return asdict(self)


class Attempts(NamedTuple):
    """The attempts at one trial together.

    Attributes:
        epochs: The epochs that the ended ones have trained.
        seconds: The time of those whose end was seen.
        unseen_epochs: The epochs of the others.
        causes: The causes of all of them, the last one's last.
    """

    epochs: int
    seconds: float
    unseen_epochs: int
    causes: tuple[str | None, ...]

    @property
    def cause(self) -> str | None:
        """Why the trial ended as it did, or None."""
        return self.causes[-1]


class Spent(NamedTuple):
    """A finished trial with its attempts."""

    digest: Digest
    attempts: Attempts

    @property
    def is_pruned(self) -> bool:
        """Whether the pruner has ended it; the end of the study's time is no verdict."""
        return self.digest.state is TrialState.PRUNED and self.attempts.cause is None

    @property
    def repeated(self) -> int:
        """Epochs that were trained more than once."""
        return max(0, self.attempts.epochs - len(self.digest.steps))


def costs(
    connection: Connection,
    study_id: int,
    finished: Sequence[Digest],
    direction: StudyDirection,
    audit_share: float = 0.0,
) -> Costs:
    """Compute what a study's search cost.

    Args:
        connection: The database.
        study_id: Optuna's id of the study.
        finished: The digests of its finished trials.
        direction: Whether high or low values are good.
        audit_share: The spec's ``pruner_audit``.
    """
    attempts = read_attempts(connection, study_id)
    arguments = {"study_id": study_id, "key": AUDIT_KEY}
    audited = {*connection.execute(AUDITED, arguments).scalars()}
    spent = [Spent(d, attempts[d.trial_id]) for d in finished if d.trial_id in attempts]
    spent.sort(key=lambda trial: trial.digest.number)
    complete = [trial for trial in spent if trial.digest.state is TrialState.COMPLETE]
    pruned = [trial for trial in spent if trial.digest.state is TrialState.PRUNED]
    failed = [trial for trial in spent if trial.digest.state is TrialState.FAIL]
    rate = _rate(complete)
    ended = {trial.digest.trial_id for trial in spent}
    unfinished = [of for trial_id, of in attempts.items() if trial_id not in ended]
    everything = [*(trial.attempts for trial in spent), *unfinished]
    repeated = [trial for trial in spent if trial.repeated]
    epochs_again = sum(trial.repeated for trial in repeated)
    importances, used = _importances(finished, direction)
    is_audited = audit_share > 0 or bool(audited)
    return Costs(
        trained=_work(everything, rate),
        complete=_work((trial.attempts for trial in complete), rate),
        pruned=_work((trial.attempts for trial in pruned), rate),
        failed=_work((trial.attempts for trial in failed), rate),
        repeated=Work(len(repeated), epochs_again, _hours(epochs_again * (rate or 0.0))),
        duplicates=_work((trial.attempts for trial in _duplicates(spent)), rate),
        seconds_per_epoch=rate,
        failures=_counted(trial.attempts.cause or "unknown" for trial in failed),
        interruptions=_counted(
            cause or "unknown" for of in everything for cause in of.causes[:-1]
        ),
        pruning=_pruning(spent, complete, audited, rate),
        audit=_audit(spent, audited, audit_share, direction) if is_audited else None,
        importances=importances,
        importance_trials=used,
    )


def read_attempts(connection: Connection, study_id: int) -> dict[int, Attempts]:
    """The attempts at each trial of a study, by Optuna's trial id."""
    grouped: dict[int, list[Any]] = {}
    for row in connection.execute(ATTEMPTS, {"study_id": study_id}):
        grouped.setdefault(row.trial_id, []).append(row)
    return {trial_id: _together(rows) for trial_id, rows in grouped.items()}


def _together(rows: Sequence[Any]) -> Attempts:
    seen = [row for row in rows if not row.running and row.cause not in UNSEEN]
    return Attempts(
        sum(row.epochs or 0 for row in rows),
        sum(row.seconds for row in seen),
        sum(row.epochs or 0 for row in rows if row.cause in UNSEEN),
        tuple(row.cause for row in rows),
    )


def _rate(complete: Iterable[Spent]) -> float | None:
    """Seconds an epoch, in the complete trials whose attempts all were seen to end."""
    whole = [t.attempts for t in complete if not t.attempts.unseen_epochs and t.attempts.epochs]
    epochs = sum(of.epochs for of in whole)
    return sum(of.seconds for of in whole) / epochs if epochs else None


def _work(attempts: Iterable[Attempts], rate: float | None) -> Work:
    listed = [*attempts]
    unseen = sum(of.unseen_epochs for of in listed) * (rate or 0.0)
    return Work(
        len(listed),
        sum(of.epochs for of in listed),
        _hours(sum(of.seconds for of in listed) + unseen),
    )


def _hours(seconds: float) -> float:
    return seconds / 3600


def _counted(causes: Iterable[str]) -> dict[str, int]:
    """How often each cause occurs, the most frequent one first."""
    return dict(Counter(causes).most_common())


def _duplicates(spent: Iterable[Spent]) -> list[Spent]:
    """The trials whose parameters an earlier one has."""
    known: set[Any] = set()
    found = []
    for trial in spent:
        digest = trial.digest
        point = (*digest.space.places, *digest.params)
        if point in known:
            found.append(trial)
        elif point:
            known.add(point)
    return found


def _pruning(
    spent: Sequence[Spent], complete: Sequence[Spent], audited: set[int], rate: float | None
) -> Pruning:
    """What pruning spared."""
    pruned = [trial for trial in spent if trial.is_pruned]
    ran_on = [t for t in complete if t.digest.trial_id in audited]
    others = [t for t in complete if t.digest.trial_id not in audited]
    use_audit = len(ran_on) >= MIN_AUDITED
    lengths = [len(t.digest.steps) for t in (ran_on if use_audit else others) if t.digest.steps]
    source = "audited" if use_audit else "complete"
    if not lengths:
        return Pruning(len(pruned), None, source, None, None)
    full = sum(lengths) / len(lengths)
    epochs = sum(max(0.0, full - len(trial.digest.steps)) for trial in pruned)
    hours = None if rate is None else _hours(epochs * rate)
    return Pruning(len(pruned), full, source, epochs, hours)


def _audit(
    spent: Sequence[Spent],
    audited: set[int],
    share: float,
    direction: StudyDirection,
) -> Audit:
    """What pruning lost."""
    sign = -1.0 if direction == StudyDirection.MAXIMIZE else 1.0
    values: dict[bool, list[float]] = {True: [], False: []}
    for trial in spent:
        digest = trial.digest
        if digest.state is TrialState.COMPLETE:
            counts = is_feasible(digest.notes) and not math.isnan(digest.values[0])
            value = sign * digest.values[0] if counts else math.inf
            values[digest.trial_id in audited].append(value)
    ran_on, others = values[True], sorted(values[False])
    n_ran_on = len(ran_on)
    unfinished = len(audited) - n_ran_on
    if not others or not n_ran_on:
        return Audit(share, n_ran_on, unfinished)
    threshold = others[math.ceil(GOOD_SHARE * len(others)) - 1]
    good = sum(value <= threshold and value < math.inf for value in ran_on)
    low, high = binomial_interval(good, n_ran_on)
    pruned = sum(trial.is_pruned for trial in spent)
    return Audit(
        share,
        n_ran_on,
        unfinished,
        sign * threshold,
        good,
        sum(value < others[0] for value in ran_on),
        good / n_ran_on,
        (low, high),
        good / n_ran_on * pruned,
        (low * pruned, high * pruned),
    )


def binomial_interval(hits: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share, by Clopper and Pearson, Biometrika 26 (1934), 404.

    Args:
        hits: How many of the trials have what is counted.
        trials: How many trials there are, at least one.
        level: How often such an interval contains the share, at least.
    """
    from scipy.special import betaincinv  # a fifth of a command's start

    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else float(betaincinv(hits, trials - hits + 1, tail))
    high = 1.0 if hits == trials else float(betaincinv(hits + 1, trials - hits, 1 - tail))
    return low, high


def _importances(
    finished: Sequence[Digest], direction: StudyDirection
) -> tuple[dict[str, float], int]:
    """Optuna's importances, and the number of complete trials from which they come."""
    complete = [
        digest
        for digest in finished
        if digest.state is TrialState.COMPLETE
        and digest.params
        and math.isfinite(digest.values[0])
    ]
    if len(complete) < 2:
        return {}, 0
    if len(complete) > MAX_IMPORTANCE_TRIALS:
        complete.sort(key=lambda digest: digest.number)
        complete = random.Random(0).sample(complete, MAX_IMPORTANCE_TRIALS)
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Rare parameters are inaccurate, as the docs say; a warning each helps nobody.
            warnings.simplefilter("ignore")
            study = optuna.create_study(direction=direction)
            study.add_trials([_frozen(digest) for digest in complete])
            found = optuna.importance.get_param_importances(study)
    except (RuntimeError, ValueError) as error:  # its own words for trials that say nothing
        log.info("no importances: %s", error)
        return {}, 0
    finally:
        optuna.logging.set_verbosity(verbosity)
    return dict(found), len(complete)


def _frozen(digest: Digest) -> optuna.trial.FrozenTrial:
    distributions: Mapping[str, Any] = digest.space.distributions
    return create_trial(
        params={
            name: of.to_external_repr(value)
            for (name, of), value in zip(distributions.items(), digest.params, strict=True)
        },
        distributions=dict(distributions),
        value=digest.values[0],
    )
