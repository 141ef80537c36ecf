"""ReadPosition: how far a study has been read, so that the next look brings what is new."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field


@dataclass
class ReadPosition:
    """What a reader has seen of a study; `service.news` says how it serves.

    Attributes:
        after: Every trial with an id up to this one has been seen.
        since: A transaction id: what older ones did to unfinished trials has been seen; 0 where
            only finished trials were ever read.
        unfinished: Ids of the trials that may still change.
        looked: Whether anything was ever read.
    """

    after: int = -1
    since: int = 0
    unfinished: set[int] = field(default_factory=set)
    looked: bool = False

    def question(self, own: Collection[int] = ()) -> dict[str, object]:
        """The arguments that say what is known, for a statement that asks for more.

        Args:
            own: Trials of which the reader needs no news.
        """
        known = [trial_id for trial_id in self.unfinished if trial_id not in own]
        return {"p_after": self.after, "p_known": f"{{{','.join(map(str, known))}}}"}

    def advance(self, after: int | None, unfinished: Collection[int] | None) -> None:
        """Note the new trials of an answer."""
        self.looked = True
        if after is not None:
            self.after = max(self.after, after)
        self.unfinished.update(unfinished or ())
