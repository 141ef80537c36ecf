"""News: what of a study has changed since this process last looked, in one statement.

Nothing may be missed, and nothing that is known should be read again. Three facts carry it:

*New trials.* A trial's id is drawn from the sequence, and its row committed, under the row lock
on Optuna's line of the study; stock Optuna and ``service.create`` both do so. Within one study,
ids therefore become visible in their order, and "every id up to ``after`` has been seen" stays
true once it was: no slower transaction can slip in below.

*Changed rows.* Every row version carries the transaction that wrote it (``xmin``). Each look
notes the oldest transaction that was still open in its snapshot (the horizon). What a later look
can see and this one could not was written by a transaction open at this look or begun after it;
neither is older than the horizon. So the later look reads, among the trials that were unfinished,
those with a row no older than the horizon of the look before: too many at worst (what a
transaction between wrote and this look did see), never too few. Commits may be delayed and
overtake each other as they like: an id or a clock would miss those, a transaction's place does
not. Transactions that only read do not hold the horizon back.

*Vanished rows.* What was deleted leaves no row to see. Only ``service.forget`` and a lease's
take-over delete anything of a trial, and both rewrite the trial's own row, which is seen.

A trial of which anything is new is read again. A finished trial cannot change and is read once.
Children of WAITING trials are not looked at: by Optuna's contract nobody writes them. A study that
has never been read is read by the same statement, in portions.

Optuna's own readers get whole trials (`service.storage.trial_cache`). Our samplers and pruners read
digests (`service.storage.digest_cache`). The database makes a digest once, in the transaction that
makes it necessary. Pruners read digests of finished trials; TPE also reads the parameters of
running ones. With a hundred workers, no worker can afford to read every report of the others, or
to assemble their trials from the rows of five tables.
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
"""Trials that one statement brings at most, so that a large study passes through in a stream."""

MEANT = 32
"""So many shapes a reader says it knows; of more, it is told some again."""

NEWS = """-- Trials of this study that are not known here yet.
SELECT service.news(%(p_study)s, %(p_after)s, %(p_known)s::int[], %(p_since)s, %(p_depth)s,
                    %(p_limit)s)::text"""
LEARN = """-- Digests of this study's trials that are not known here yet.
SELECT service.learn(%(p_study)s, %(p_after)s, %(p_known)s::int[], %(p_since)s, %(p_running)s,
                     %(p_shapes)s::bigint[], %(p_limit)s)"""


def read(
    link: SharedConnection,
    study_id: int,
    trial_cache: TrialCache,
    own: Collection[int],
    *,
    running: bool,
) -> bool:
    """Bring whole trials up to the database's present; False if the study does not exist.

    Args:
        link: The database.
        study_id: Optuna's id of the study.
        trial_cache: What is known of it; altered.
        own: Trials that this process alone writes, and knows without reading.
        running: Whether news of unfinished trials is wanted too.
    """

    def take(answer: Any) -> None:
        _, _, after, unfinished, documents = answer
        trial_cache.position.advance(after, unfinished)
        for trial in rows.documents(documents):
            if trial._trial_id not in own:
                trial_cache.put(trial)

    asked = {
        "p_study": study_id,
        "p_depth": "all" if running else "finished",
        **trial_cache.position.question(own),
    }
    return _read(link, NEWS, asked, trial_cache.position, take, running)


def learn(
    link: SharedConnection, study_id: int, digest_cache: DigestCache, *, running: bool
) -> bool:
    """Bring digests up to the database's present; False if the study does not exist.

    Args:
        link: The database.
        study_id: Optuna's id of the study.
        digest_cache: What is known of it; altered.
        running: Whether the parameters of running trials are wanted too.
    """
    asked = question(study_id, digest_cache)
    return _read(
        link,
        LEARN,
        asked,
        digest_cache.position,
        lambda answer: take(answer, digest_cache),
        running,
    )


def question(study_id: int, digest_cache: DigestCache) -> dict[str, Any]:
    """The arguments of a statement that brings digests."""
    latest = itertools.islice(reversed(digest_cache.shapes), MEANT)
    return {
        "p_study": study_id,
        "p_shapes": f"{{{','.join(str(key) for key in latest if key is not None)}}}",
        **digest_cache.position.question(),
    }


def take(answer: Any, digest_cache: DigestCache) -> None:
    """Put the digests of an answer into the digest_cache."""
    _, _, after, unfinished, shapes, arrays = answer
    digest_cache.position.advance(after, unfinished)
    digest_cache.learn(digests.shapes(shapes))
    digest_cache.put(digests.digests(arrays, digest_cache.shapes))


def _read(
    link: SharedConnection,
    statement: str,
    asked: dict[str, Any],
    position: ReadPosition,
    take: Callable[[Any], None],
    running: bool,
) -> bool:
    asked |= {"p_since": position.since, "p_running": running, "p_limit": PORTION}
    answer = link.ask_json(statement, asked)
    if answer is None:
        return False
    since = answer[0]
    with _collector_at_rest(answer[1] == PORTION):
        take(answer)
        while answer[1] == PORTION:
            asked |= {"p_after": position.after, "p_known": "{}"}
            answer = link.ask_json(statement, asked)
            take(answer)
    if running:
        position.since = since
    return True


@contextmanager
def _collector_at_rest(large: bool) -> Iterator[None]:
    """Spare a large study the garbage collector, which would visit all trials over and over."""
    pause = large and gc.isenabled()
    if pause:
        gc.disable()
    try:
        yield
    finally:
        if pause:
            gc.enable()
