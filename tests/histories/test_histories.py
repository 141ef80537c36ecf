"""Histories: whatever is done to workers and their server, nothing is lost or done twice."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from checker import answered_claims, violations
from databases import execute, temporary_database, temporary_folder
from digest_comparison import check_digests
from evidence import Call, Evidence
from history import History

from service.database import embedded, schema
from service.storage.storage import StudyStorage


@pytest.fixture(scope="module")
def server() -> Iterator[Path]:
    """The folder of a server that survives everything but a failure of the machine."""
    with temporary_folder() as home:
        url = embedded.start(home)
        # Only this: a commit waits until the server's processes can no longer lose it.
        execute(url, "ALTER SYSTEM SET fsync = off")
        execute(url, "SELECT pg_reload_conf()")
        try:
            yield home
        finally:
            embedded.stop(home)


@pytest.mark.timeout(1800)
def test_a_history_has_no_violation(
    history_seed: int,
    history_seconds: float,
    history_workers: int,
    server: Path,
    tmp_path: Path,
) -> None:
    with temporary_database(embedded.start(server)) as url:
        schema.upgrade(url)
        history = History(history_seed, server, url, tmp_path, history_workers)
        began = time.monotonic()
        evidence = history.play(history_seconds)
        print(f"\n{summary(history_seed, evidence, time.monotonic() - began)}")
        found = violations(evidence)
        assert not found, f"{len(found)} violations:\n" + "\n".join(found[:40])
        check_digests(StudyStorage(history.hall.engine), history.study.study_id)
        history.hall.engine.dispose()
    begun = len(evidence.tables["trials"])
    assert len(answered_claims(evidence)) > begun, "nothing was taken over"


def summary(seed: int, evidence: Evidence, seconds: float) -> str:
    """What happened in a history, in one line."""
    harms = Counter(harm.kind for harm in evidence.harms)
    reports = sum(
        len(event.fields.get("p_steps") or ())
        for _, _, _, events in evidence.attempts()
        for event in events
        if isinstance(event, Call) and event.is_accepted
    )
    takeovers = sum(claim["attempt"] > 1 for claim in answered_claims(evidence))
    ended = Counter(row.state for row in evidence.tables["trials"])
    return (
        f"history {seed}: {harms['kill']} kills, {harms['suspend']} suspensions, "
        f"{evidence.cuts} connections cut or stalled, "
        f"{harms['fast'] + harms['immediate']} restarts, {harms['kill pool']} pools killed; "
        f"{reports} reports, {takeovers} takeovers, "
        f"{ended.total()} trials ({ended['COMPLETE']} complete, {ended['PRUNED']} pruned, "
        f"{ended['FAIL']} failed), {seconds:.0f} s"
    )
