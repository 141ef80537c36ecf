"""The checker: proves from the evidence of a history that nothing went wrong, or says what did."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from evidence import Call, Evidence, Note
from history_objective import OUT_OF_MEMORY
from model import KINDS, TrialModel, rows_of
from proxy import Statement

CLOCK_TOLERANCE = 0.05
"""Seconds by which the server's clock and ours may drift apart within a lease."""

FINISHED = ("COMPLETE", "PRUNED", "FAIL")


def violations(evidence: Evidence) -> list[str]:
    """Everything that must not be; each line begins with the name of its rule."""
    rules: dict[str, Callable[[Evidence], Iterator[str]]] = {
        "budget": budget,
        "claims": claims,
        "one writer": one_writer,
        "living lease": living_lease,
        "rows": rows,
        "dropped": dropped,
        "end": ends,
        "checkpoint": checkpoints,
        "digest": digests,
        "cause": causes,
        "output": output,
    }
    return [f"{name}: {line}" for name, rule in rules.items() for line in rule(evidence)]


def budget(evidence: Evidence) -> Iterator[str]:
    """The budget is exact, numbers have no gaps, and everything has ended."""
    ((n_trials, n_claimed, stop_reason),) = evidence.tables["budget"]
    numbers = sorted(row.number for row in evidence.tables["trials"])
    if not n_trials == n_claimed == len(numbers):
        yield f"{n_trials} trials were allowed, {n_claimed} counted, {len(numbers)} begun"
    if numbers != list(range(len(numbers))):
        gaps = sorted(set(range(len(numbers))) ^ set(numbers))
        twice = [number for number, count in Counter(numbers).items() if count > 1]
        yield f"trials are not numbered from 0 without gaps: {gaps}, twice {twice}"
    for row in evidence.tables["trials"]:
        if row.state not in FINISHED:
            yield f"trial {row.number} is {row.state}"
    for row in evidence.tables["leases"]:
        yield f"a lease is left over: {row}"
    if stop_reason:
        yield f"the study was stopped: {stop_reason}"
    first = {claim["trial"] for claim in answered_claims(evidence) if claim["attempt"] == 1}
    if len(first) > n_trials:
        yield f"workers began {len(first)} trials, {n_trials} were allowed"


def answered_claims(evidence: Evidence) -> list[dict[str, Any]]:
    """The claims that returned a trial, as the server answered them, by token."""
    found = []
    for statement in evidence.statements:
        if statement.kind == "claim" and statement.answer and statement.answered:
            trial, token, attempt, *_ = json.loads(statement.answer)
            found.append(
                {
                    "trial": trial,
                    "token": token,
                    "attempt": attempt,
                    "worker": statement.fields["worker"],
                    "seconds": float(statement.fields["seconds"]),
                    "forwarded": statement.forwarded,
                    "answered": statement.answered,
                }
            )
    return sorted(found, key=lambda claim: claim["token"])


def claims_by_trial(evidence: Evidence) -> dict[int, list[dict[str, Any]]]:
    """The answered claims of each trial, by token."""
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for claim in answered_claims(evidence):
        found[claim["trial"]].append(claim)
    return found


def claims(evidence: Evidence) -> Iterator[str]:
    """No token and no attempt is given twice; later tokens have later attempts."""
    tokens = Counter(claim["token"] for claim in answered_claims(evidence))
    for token, count in tokens.items():
        if count > 1:
            yield f"token {token} was given {count} times"
    for trial, found in claims_by_trial(evidence).items():
        attempts = [claim["attempt"] for claim in found]
        if attempts != sorted(set(attempts)):
            yield f"trial {trial}: attempts {attempts} in the order of tokens"


def one_writer(evidence: Evidence) -> Iterator[str]:
    """Nothing is accepted under a token after a claim of a newer one was answered."""
    newer = claims_by_trial(evidence)

    def overtaken(trial: int, token: int, sent: float) -> dict[str, Any] | None:
        late = (c for c in newer[trial] if c["token"] > token and c["answered"] < sent)
        return next(late, None)

    for statement in evidence.statements:
        if statement.kind in ("claim", "free") or not _is_done(statement):
            continue
        trial, token = int(statement.fields["trial"]), int(statement.fields["token"])
        if claim := overtaken(trial, token, statement.forwarded):
            delay = statement.forwarded - claim["answered"]
            yield (
                f"a {statement.kind} of trial {trial} under token {token} was accepted "
                f"{delay:.3f} s after token {claim['token']} was given"
            )
    for process in evidence.processes.values():
        for call in process.calls:
            if call.what != "renew" or call.outcome != "answered":
                continue
            lease = call.fields["argument_0"]
            if overtaken(lease["trial_id"], lease["token"], call.at):
                yield f"a renewal under the old token {lease['token']} was accepted"


def _is_done(statement: Statement) -> bool:
    if statement.answered is None:
        return False
    return statement.answer is not None if statement.kind == "renew" else statement.verdict == "ok"


def living_lease(evidence: Evidence) -> Iterator[str]:
    """No trial is taken over before its lease has expired or was ended."""
    renewals: dict[int, list[float]] = defaultdict(list)
    released: dict[int, list[float]] = defaultdict(list)
    freed: dict[str, list[float]] = defaultdict(list)
    for statement in evidence.statements:
        if statement.kind == "renew" and _is_done(statement):
            renewals[int(statement.fields["token"])].append(statement.forwarded)
        elif statement.kind == "release":
            released[int(statement.fields["token"])].append(statement.forwarded)
        elif statement.kind == "free":
            freed[statement.fields["worker"]].append(statement.forwarded)
    for trial, found in claims_by_trial(evidence).items():
        for old, new in itertools.pairwise(found):
            if new["attempt"] != old["attempt"] + 1:
                continue  # the answer of a claim in between has never arrived
            ends = [*released[old["token"]], *freed[old["worker"]]]
            if any(old["forwarded"] < end < new["answered"] for end in ends):
                continue
            begun = max([old["forwarded"], *renewals[old["token"]]])
            left = begun + old["seconds"] - new["answered"]
            if left > CLOCK_TOLERANCE:
                yield f"trial {trial} was taken over {left:.3f} s before its lease expired"


def rows(evidence: Evidence) -> Iterator[str]:
    """Accepted rows are there, and nothing else, but for what takeovers delete."""
    models: dict[int, TrialModel] = defaultdict(TrialModel)
    for trial, _, _, events in sorted(evidence.attempts(), key=lambda attempt: attempt[1]):
        for event in events:
            models[trial].apply(event)
    for kind in KINDS:
        found = rows_of(evidence.tables, kind)
        for trial in {*models, *found}:
            for line in models[trial].differences(kind, found[trial]):
                yield f"trial {trial}: {line}"


def last_attempts(evidence: Evidence) -> dict[int, list[Call | Note]]:
    """For each trial, the events of the attempt that has ended it."""
    found: dict[int, tuple[bool, int, list[Call | Note]]] = {}
    for trial, token, _, events in evidence.attempts():
        finishes = [e for e in events if isinstance(e, Call) and e.what == "finish_leased"]
        if finishes:
            candidate = (any(call.is_accepted for call in finishes), token, events)
            if trial not in found or candidate[:2] > found[trial][:2]:
                found[trial] = candidate
    return {trial: events for trial, (_, _, events) in found.items()}


def dropped(evidence: Evidence) -> Iterator[str]:
    """What the objective of the last attempt has reported and set is in the database."""
    reports, attributes = rows_of(evidence.tables, "reports"), rows_of(evidence.tables, "user")
    for trial, events in last_attempts(evidence).items():
        for event in events:
            if event.what == "reported":
                step, value = event.fields["step"], event.fields["value"]
                if reports[trial].get(step) != (value, "FINITE"):
                    yield f"trial {trial}: step {step} was reported as {value}"
            elif event.what == "attribute":
                key, value = event.fields["key"], event.fields["value"]
                if attributes[trial].get(key) != (json.dumps(value),):
                    yield f"trial {trial}: the attribute {key} was set to {value}"


def ends(evidence: Evidence) -> Iterator[str]:
    """Each trial has ended once, as its last owner sent it, and under its newest token."""
    accepted: dict[int, set[int]] = defaultdict(set)
    sent: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for trial, token, _, events in evidence.attempts():
        for event in events:
            if isinstance(event, Call) and event.what == "finish_leased":
                if event.is_accepted:
                    accepted[trial].add(token)
                sent[trial].append(event.fields)
    values: dict[int, list[Any]] = defaultdict(list)
    for trial, value, kind in evidence.tables["values"]:
        values[trial].append((value, kind))
    attempts = attempts_by_trial(evidence)
    newest = {trial: found[-1]["token"] for trial, found in claims_by_trial(evidence).items()}
    for row in evidence.tables["trials"]:
        trial = row.trial_id
        if len(accepted[trial]) > 1:
            yield f"trial {trial} was ended under the tokens {sorted(accepted[trial])}"
        candidates = [
            fields
            for fields in sent[trial]
            if not accepted[trial] or fields["p_token"] in accepted[trial]
        ]
        last = attempts[trial][-1]
        matching = [
            fields
            for fields in candidates
            if fields["p_state"] == row.state
            and _sent_values(fields) == _shown(values[trial])
            and (fields["p_attempt"], fields["p_cause"]) == (last.attempt, last.cause)
            and last.ended_at is not None
        ]
        if not matching:
            shown = f"{row.state} {values[trial]}, attempt {last.attempt}, cause {last.cause}"
            yield f"trial {trial} ended as {shown}; sent were {candidates}"
        elif all(fields["p_token"] < newest.get(trial, 0) for fields in matching):
            yield f"trial {trial} was ended although token {newest[trial]} was given"


def _sent_values(fields: dict[str, Any]) -> list[Any]:
    return _shown([*zip(fields["p_values"] or [], fields["p_value_kinds"] or [], strict=True)])


def _shown(values: list[Any]) -> list[Any]:
    return [("nan" if v is not None and math.isnan(v) else v, kind) for v, kind in values]


def attempts_by_trial(evidence: Evidence) -> dict[int, list[Any]]:
    """The rows of the attempts at each trial, the first one first."""
    found: dict[int, list[Any]] = defaultdict(list)
    for row in evidence.tables["attempts"]:
        found[row.trial_id].append(row)
    return found


def checkpoints(evidence: Evidence) -> Iterator[str]:
    """No attempt goes on from a checkpoint that was saved after a newer attempt had begun."""
    loaded: dict[int, dict[int, Note]] = defaultdict(dict)
    saved: dict[tuple[int, int, int], float] = {}
    for trial, token, _, events in evidence.attempts():
        for event in events:
            if isinstance(event, Note) and event.what == "loaded":
                loaded[trial][token] = event
            elif isinstance(event, Note) and event.what == "save":
                saved[trial, token, event.fields["epoch"]] = event.at
    for trial, notes in loaded.items():
        for token, note in notes.items():
            by, epoch = note.fields["by"], note.fields["epoch"]
            if by is None:
                continue
            at = saved.get((trial, by, epoch))
            if at is None:
                yield f"trial {trial}: token {token} loaded epoch {epoch}, which {by} never saved"
            elif any(by < other < token and notes[other].at < at for other in notes):
                yield f"trial {trial}: token {token} loaded a stale worker's epoch {epoch}"


def digests(evidence: Evidence) -> Iterator[str]:
    """Each trial's digest is stored, and says what its rows say."""
    for row in evidence.tables["digests"]:
        if row.digest != row.expected or not row.finished:
            yield f"trial {row.trial_id}: {row.digest}, and not {row.expected}"


def causes(evidence: Evidence) -> Iterator[str]:
    """The causes of attempts fit what was done to their workers."""
    kinds = Counter(harm.kind for harm in evidence.harms)
    is_undisturbed = not evidence.cuts and not sum(kinds.values())
    numbers = {row.trial_id: row.number for row in evidence.tables["trials"]}
    for trial, found in attempts_by_trial(evidence).items():
        if [row.attempt for row in found] != list(range(1, len(found) + 1)):
            yield f"trial {trial} has the attempts {[row.attempt for row in found]}"
        for row in found[:-1]:
            fits = {
                "lost": not is_undisturbed,
                "expired": not is_undisturbed,
                "preempted": kinds["kill pool"] > 0,
                "oom": row.attempt == 1 and numbers[trial] % OUT_OF_MEMORY[0] == OUT_OF_MEMORY[1],
            }
            if not fits.get(row.cause, False):
                yield f"trial {trial}: attempt {row.attempt} of {row.worker} ended by {row.cause}"
    yield from _causes_of_the_killed(evidence)
    yield from _causes_of_the_living(evidence)


def _causes_of_the_killed(evidence: Evidence) -> Iterator[str]:
    """A worker that was killed in a trial has lost it."""
    by_attempt = {(row.trial_id, row.attempt): row for row in evidence.tables["attempts"]}
    for pid in {harm.pid for harm in evidence.harms if harm.kind == "kill"}:
        process = evidence.processes.get(pid)
        leases = [
            call.answer
            for call in (process.calls if process else [])
            if call.what == "claim" and isinstance(call.answer, dict)
        ]
        if process is None or not leases:
            continue
        lease = leases[-1]
        left = any(
            call.what in ("release", "abandon")
            and call.fields["argument_0"]["token"] == lease["token"]
            for call in process.calls
        )
        events = process.attempts.get((lease["trial_id"], lease["token"]), [])
        if left or any(event.what == "finish_leased" for event in events):
            continue
        row = by_attempt[lease["trial_id"], lease["attempt"]]
        if row.cause != "lost":
            yield f"the killed worker {row.worker} has an attempt that ended by {row.cause}"


def _causes_of_the_living(evidence: Evidence) -> Iterator[str]:
    """A worker that has said that it left a trial which was taken over has not lost it."""
    by_attempt = {(row.trial_id, row.attempt): row for row in evidence.tables["attempts"]}
    taken = claims_by_trial(evidence)
    for process in evidence.processes.values():
        for call in process.calls:
            if call.what != "abandon" or call.outcome != "answered":
                continue
            lease = call.fields["argument_0"]
            row = by_attempt[lease["trial_id"], lease["attempt"]]
            was_taken = any(
                claim["token"] > lease["token"] and claim["answered"] < call.at
                for claim in taken[lease["trial_id"]]
            )
            if was_taken and row.cause == "lost":
                yield f"{row.worker} lived, and its attempt at trial {row.trial_id} is lost"


def output(evidence: Evidence) -> Iterator[str]:
    """No process ended with a traceback, and no pool gave up."""
    for sign in ("Traceback", "giving up"):
        if sign in evidence.output:
            start = evidence.output.index(sign)
            yield evidence.output[max(0, start - 500) : start + 3000]
