"""News: reads what has changed in a study since this process last read it, in one statement.

No change may be missed, and nothing known should be read again. Three facts make this possible:

*New trials.* Optuna and ``service.create`` both draw a trial's id from the sequence and commit its
row while they hold the lock on Optuna's row of the study. Ids of one study therefore become
visible in ascending order, and "every id up to ``after`` has been seen" stays true once it is
true: no slower transaction can add a lower id.

*Changed rows.* Every row version names the transaction that wrote it (``xmin``). Each read notes
the oldest transaction that was still open in its snapshot (the horizon). What a later read can see
and this one could not was written by a transaction that was open at this read or began after it;
neither is older than the horizon. So the later read takes, among the trials that were unfinished,
those with a row no older than the horizon of the read before. It may read a trial twice (if a
transaction in between wrote what this read did see) but never misses one. Commits may be delayed
and overtake each other: an id or a clock would miss those, the number of a transaction does not.
Transactions that only read do not hold the horizon back. After a failover or a restore the server
may be another one with a lower horizon. So the first read of a new connection, and one whose last
horizon is above the server's, takes all unfinished trials.

*Deleted rows.* A deleted row leaves nothing to see. Only ``service.delete_reports`` deletes rows
of a trial. It also rewrites the trial's own row, so that readers read the trial again.

If anything of a trial is new, the whole trial is read again. A finished trial cannot change and is
read once. Rows that belong to WAITING trials are not looked at: by Optuna's contract nobody writes
them. The same statement reads a study for the first time, in portions.

Optuna's own readers get whole trials (`service.storage.trial_cache`). Our samplers and pruners
read digests (`service.storage.digest_cache`). The transaction that writes a trial also stores its
digest. Pruners read digests of finished trials; TPE also reads the parameters of running ones.
With a hundred workers, no worker can afford to read every report of the others, or to assemble
their trials from the rows of five tables.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from service.database.connection import SharedConnection
from service.storage import digests, rows
from service.storage.digest_cache import DigestCache
from service.storage.read_position import ReadPosition
from service.storage.trial_cache import TrialCache

PORTION = 2000
"""The most trials that one statement returns, so that a large study is read piece by piece."""

NAMED_SPACES = 32
"""How many parameter spaces a reader names as known; the answer repeats those beyond."""

READ_TRIALS = """-- Trials of this study that are not known here yet.
SELECT service.read_trials(%(p_study)s, %(p_after)s, %(p_known)s::int[], %(p_since)s,
                           %(p_running)s, %(p_limit)s)::text"""
READ_DIGESTS = """-- Digests of this study's trials that are not known here yet.
SELECT service.read_digests(%(p_study)s, %(p_after)s, %(p_known)s::int[], %(p_since)s,
                            %(p_running)s, %(p_spaces)s::bigint[], %(p_limit)s)"""


def read_trials(
    connection: SharedConnection,
    study_id: int,
    cache: TrialCache,
    own: Collection[int],
    *,
    running: bool,
) -> bool:
    """Bring a cache of whole trials up to date; False if the study does not exist.

    Args:
        connection: The database.
        study_id: Optuna's id of the study.
        cache: What is known of the study; altered.
        own: Trials that only this process writes, and knows without reading.
        running: Whether to read unfinished trials too.
    """

    def store(answer: Any) -> None:
        _, _, after, unfinished, documents = answer
        trials = [*rows.documents(documents)]  # if one cannot be read, none counts as read
        cache.position.advance(after, unfinished)
        for trial in trials:
            if trial._trial_id not in own:
                cache.put(trial)

    arguments = {"p_study": study_id, **cache.position.arguments(own)}
    return _read(connection, READ_TRIALS, arguments, cache.position, store, running)


def read_digests(
    connection: SharedConnection, study_id: int, cache: DigestCache, *, running: bool
) -> bool:
    """Bring a cache of digests up to date; False if the study does not exist.

    Args:
        connection: The database.
        study_id: Optuna's id of the study.
        cache: What is known of the study; altered.
        running: Whether to read the parameters of running trials too.
    """
    arguments = digest_arguments(study_id, cache)

    def store(answer: Any) -> None:
        store_digests(answer, cache)

    return _read(connection, READ_DIGESTS, arguments, cache.position, store, running)


def digest_arguments(study_id: int, cache: DigestCache) -> dict[str, Any]:
    """The arguments of a function that returns new digests, but for those of `_read`."""
    latest = itertools.islice(reversed(cache.spaces), NAMED_SPACES)
    return {
        "p_study": study_id,
        "p_spaces": f"{{{','.join(str(key) for key in latest if key is not None)}}}",
        **cache.position.arguments(),
    }


def store_digests(answer: Any, cache: DigestCache) -> None:
    """Put the digests of an answer into the cache."""
    _, _, after, unfinished, spaces, arrays = answer
    cache.add_spaces(digests.spaces(spaces))
    found = [*digests.digests(arrays, cache.spaces)]  # if one cannot be read, none counts as read
    cache.position.advance(after, unfinished)
    cache.put(found)


def _read(
    connection: SharedConnection,
    statement: str,
    arguments: dict[str, Any],
    position: ReadPosition,
    store: Callable[[Any], None],
    running: bool,
) -> bool:
    if position.generation != connection.generation:
        position.since = 0  # the number of a transaction says nothing to another server
    # If the query itself connects anew, the generation noted here is the old one, so that the next
    # read starts at 0 again; a read that started at 0 needs no repetition.
    arguments |= {"p_since": position.since, "p_running": running, "p_limit": PORTION}
    position.generation = connection.generation
    answer = connection.query_json(statement, arguments)
    if answer is None:
        return False
    since = answer[0]
    with _no_garbage_collection(answer[1] == PORTION):
        store(answer)
        while answer[1] == PORTION:
            arguments |= {"p_after": position.after, "p_known": "{}"}
            answer = connection.query_json(statement, arguments)
            store(answer)
    if running:
        if position.since == 0:
            position.generation = connection.generation
        position.since = since
    return True


@contextmanager
def _no_garbage_collection(is_large: bool) -> Iterator[None]:
    """Pause the garbage collector for a large study: it would visit all trials again and again."""
    pause = is_large and gc.isenabled()
    if pause:
        gc.disable()
    try:
        yield
    finally:
        if pause:
            gc.enable()
