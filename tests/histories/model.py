"""The model: what the rows of a trial may be, given what its workers sent and what they learned.

An accepted write is in the database. A write without an answer may be, at the place in the order
at which it was sent: the lease's token forbids it any later. So every key of a trial has a set of
values that it may have, and an accepted write leaves one. `ABSENT` is such a value.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from evidence import Call, Note

ABSENT = "absent"
KINDS = ("params", "user", "system", "reports")


class TrialModel:
    """The possible rows of one trial. Feed it the events of all attempts, in the order of tokens.

    Attributes:
        possible: By kind of row and key: the values that it may have.
        sent: By kind and key: all values that were ever sent.
    """

    def __init__(self) -> None:
        self.possible: dict[str, dict[Any, set[Any]]] = {
            kind: defaultdict(lambda: {ABSENT}) for kind in KINDS
        }
        self.sent: dict[str, dict[Any, set[Any]]] = {kind: defaultdict(set) for kind in KINDS}

    def apply(self, event: Call | Note) -> None:
        """Note what an event may have done to the rows."""
        if isinstance(event, Note):
            if event.what == "loaded":
                # The attempt goes on after this epoch: no later report of earlier ones stays.
                self._delete(event.fields["epoch"] + 1, is_certain=True)
        elif event.what == "delete_reports":
            self._delete(event.fields["p_step"], is_certain=event.is_accepted)
        else:
            for kind, key, value in sent_rows(event.fields):
                self._write(kind, key, value, is_certain=event.is_accepted)

    def _delete(self, step: int, *, is_certain: bool) -> None:
        for key, values in self.possible["reports"].items():
            if key >= step:
                self.possible["reports"][key] = {ABSENT} if is_certain else values | {ABSENT}

    def _write(self, kind: str, key: Any, value: Any, *, is_certain: bool) -> None:
        self.sent[kind][key].add(value)
        before = self.possible[kind][key]
        # The first value of a parameter stays; of everything else, the last.
        after = (
            {value if old == ABSENT else old for old in before} if kind == "params" else {value}
        )
        self.possible[kind][key] = after if is_certain else before | after

    def differences(self, kind: str, rows: dict[Any, Any]) -> Iterator[str]:
        """What in the rows of a kind the model does not allow.

        Args:
            kind: One of `KINDS`.
            rows: The database's values by key.
        """
        for key in {*rows, *self.possible[kind]}:
            value, possible = rows.get(key, ABSENT), self.possible[kind][key]
            if value in possible:
                continue
            if value == ABSENT:
                yield f"lost: {kind} {key}: {possible} was accepted and is not there"
            elif value in self.sent[kind][key]:
                yield f"stale: {kind} {key} is {value}, and must be one of {possible}"
            else:
                yield f"not sent: {kind} {key} is {value}, which nobody has sent"


def sent_rows(arguments: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """The rows that a statement writes: kind, key, value as `rows_of` has them."""
    columns = (
        ("params", "p_names", ("p_params", "p_distributions")),
        ("user", "p_user_keys", ("p_user_values",)),
        ("system", "p_system_keys", ("p_system_values",)),
        ("reports", "p_steps", ("p_reported", "p_kinds")),
    )
    for kind, keys, values in columns:
        if arguments.get(keys) is not None:
            columns_of_values = [arguments[name] for name in values]
            for key, *value in zip(arguments[keys], *columns_of_values, strict=True):
                yield kind, key, tuple(value)


def rows_of(tables: dict[str, list[Any]], kind: str) -> dict[int, dict[Any, tuple[Any, ...]]]:
    """The database's rows of a kind: by trial id, then by key."""
    found: dict[int, dict[Any, tuple[Any, ...]]] = defaultdict(dict)
    for trial_id, key, *value in tables[kind]:
        found[trial_id][key] = tuple(value)
    return found
