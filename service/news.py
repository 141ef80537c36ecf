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

Not everybody wants to know everything. Whoever asks Optuna for trials gets them whole
(`service.history`). Samplers and pruners of ours go by digests (`service.ledger`), which the
database makes once, with the write that makes them necessary: pruners hear of what has ended, TPE
also of the parameters of what runs. With a hundred workers, nobody can afford to follow each
other's every report, nor to put each other's trials together from their rows.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from service import digests, rows
from service.frontier import Frontier
from service.history import History
from service.ledger import Ledger
from service.link import Link

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
    link: Link, study_id: int, history: History, own: Collection[int], *, running: bool
) -> bool:
    """Bring whole trials up to the database's present; False if the study does not exist.

    Args:
        link: The database.
        study_id: Optuna's id of the study.
        history: What is known of it; altered.
        own: Trials that this process alone writes, and knows without reading.
        running: Whether news of unfinished trials is wanted too.
    """

    def take(answer: Any) -> None:
        _, _, after, unfinished, documents = answer
        history.frontier.advance(after, unfinished)
        for trial in rows.documents(documents):
            if trial._trial_id not in own:
                history.put(trial)

    asked = {
        "p_study": study_id,
        "p_depth": "all" if running else "finished",
        **history.frontier.question(own),
    }
    return _read(link, NEWS, asked, history.frontier, take, running)


def learn(link: Link, study_id: int, ledger: Ledger, *, running: bool) -> bool:
    """Bring digests up to the database's present; False if the study does not exist.

    Args:
        link: The database.
        study_id: Optuna's id of the study.
        ledger: What is known of it; altered.
        running: Whether the parameters of running trials are wanted too.
    """
    asked = question(study_id, ledger)
    return _read(link, LEARN, asked, ledger.frontier, lambda answer: take(answer, ledger), running)


def question(study_id: int, ledger: Ledger) -> dict[str, Any]:
    """The arguments of a statement that brings digests."""
    latest = itertools.islice(reversed(ledger.shapes), MEANT)
    return {
        "p_study": study_id,
        "p_shapes": f"{{{','.join(str(key) for key in latest if key is not None)}}}",
        **ledger.frontier.question(),
    }


def take(answer: Any, ledger: Ledger) -> None:
    """Put the digests of an answer into the ledger."""
    _, _, after, unfinished, shapes, arrays = answer
    ledger.frontier.advance(after, unfinished)
    ledger.learn(digests.shapes(shapes))
    ledger.put(digests.digests(arrays, ledger.shapes))


def _read(
    link: Link,
    statement: str,
    asked: dict[str, Any],
    frontier: Frontier,
    take: Callable[[Any], None],
    running: bool,
) -> bool:
    asked |= {"p_since": frontier.since, "p_running": running, "p_limit": PORTION}
    answer = link.ask_json(statement, asked)
    if answer is None:
        return False
    since = answer[0]
    with _collector_at_rest(answer[1] == PORTION):
        take(answer)
        while answer[1] == PORTION:
            asked |= {"p_after": frontier.after, "p_known": "{}"}
            answer = link.ask_json(statement, asked)
            take(answer)
    if running:
        frontier.since = since
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
