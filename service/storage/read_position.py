"""ReadPosition: how much of a study a process has read, so that the next read brings only news."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field


@dataclass
class ReadPosition:
    """What a reader has seen of a study; `service.storage.news` explains the method.

    Attributes:
        after: Every trial with an id up to this one has been seen.
        since: A transaction id: every change to unfinished trials by an older transaction has been
            seen; 0 if only finished trials were ever read.
        unfinished: Ids of the seen trials that may still change.
        has_read: Whether anything was ever read.
        generation: The connection on which ``since`` was read.
    """

    after: int = -1
    since: int = 0
    unfinished: set[int] = field(default_factory=set)
    has_read: bool = False
    generation: int = 0

    def arguments(self, own: Collection[int] = ()) -> dict[str, object]:
        """What is known already, as arguments of a function that reads news.

        Args:
            own: Trials of which the reader needs no news.
        """
        known = [trial_id for trial_id in self.unfinished if trial_id not in own]
        return {"p_after": self.after, "p_known": f"{{{','.join(map(str, known))}}}"}

    def advance(self, after: int | None, unfinished: Collection[int] | None) -> None:
        """Note the new trials of an answer.

        Args:
            after: The highest id of the answer's new trials; None if there are none.
            unfinished: Ids of those new trials that are unfinished.
        """
        self.has_read = True
        if after is not None:
            self.after = max(self.after, after)
        self.unfinished.update(unfinished or ())
