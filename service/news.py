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

A trial of which anything is new is read again whole. A finished trial cannot change and is read
once. Children of WAITING trials are not looked at: by Optuna's contract nobody writes them.
A study that has never been read is read by the same statement, in portions.

Not everybody wants to know everything. A pruner asks for what has ended, and hears of other trials
only that they exist; a sampler asks for the parameters of those that run, which are written once;
with a hundred workers, nobody can afford to follow each other's every report. Each depth has a
horizon of its own, so what a shallow look has passed over, a deeper one still finds.
"""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from service import rows
from service.history import Depth, History
from service.link import Link

PORTION = 2000
"""Trials that one statement brings at most, so that a large study passes through in a stream."""

NEWS = """-- What of this study is not known here yet.
SELECT service.news(%(p_study)s, %(p_after)s, %(p_known)s::int[], %(p_since)s, %(p_depth)s,
                    %(p_limit)s)::text"""


def read(link: Link, study_id: int, history: History, own: Collection[int], depth: Depth) -> bool:
    """Bring a history up to the database's present; False if the study does not exist.

    Args:
        link: The database.
        study_id: Optuna's id of the study.
        history: What is known of it; altered.
        own: Trials that this process alone writes, and knows without reading.
        depth: What is wanted.
    """
    asked = question(study_id, history, own, depth) | {"p_depth": depth, "p_limit": PORTION}
    answer = link.ask_json(NEWS, asked)
    if answer is None:
        return False
    since = answer[0]
    with _collector_at_rest(answer[1] == PORTION):
        while take(answer, history, own) == PORTION:
            asked |= {"p_after": history.after, "p_known": "{}"}
            answer = link.ask_json(NEWS, asked)
    history.has_seen(depth, since)
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


def question(
    study_id: int, history: History, own: Collection[int], depth: Depth = "finished"
) -> dict[str, Any]:
    """The arguments of a statement that asks for news."""
    known = ",".join(str(trial_id) for trial_id in history.unfinished if trial_id not in own)
    return {
        "p_study": study_id,
        "p_after": history.after,
        "p_known": f"{{{known}}}",
        "p_since": history.since[depth],
    }


def take(answer: Any, history: History, own: Collection[int]) -> int:
    """Put the trials of an answer into the history; returns how many of them are new."""
    _, created, after, unfinished, documents = answer
    history.after = max(history.after, after or -1)
    history.unfinished.update(unfinished or ())
    for trial in rows.documents(documents):
        if trial._trial_id not in own:
            history.put(trial)
    return int(created)
