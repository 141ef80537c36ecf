"""What is left of a history: journals of workers, the proxy's statements, harms, tables."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy
from adversary import Harm
from proxy import Statement
from sqlalchemy import Engine

WRITES = ("write_trial", "finish_leased", "delete_reports")
NOTES = ("loaded", "save", "report", "reported", "attribute", "returns")


@dataclass
class Call:
    """Something that a worker asked of the database, and what it learned.

    Attributes:
        what: The function: ``claim``, ``renew``, ``release``, ``abandon``, or one of `WRITES`.
        at: When it was sent; seconds of the monotonic clock.
        fields: Its arguments.
        outcome: ``answered``, ``raised``, or ``unknown``: the worker ended before an answer.
        answer: Of an answered call: the verdict, or a lease's numbers.
    """

    what: str
    at: float
    fields: dict[str, Any]
    outcome: str = "unknown"
    answer: Any = None

    @property
    def is_accepted(self) -> bool:
        """Whether the worker knows that it was done."""
        return self.outcome == "answered" and self.answer == "ok"


@dataclass
class Note:
    """Something that an objective did, noted by its worker."""

    what: str
    at: float
    fields: dict[str, Any]


@dataclass
class Process:
    """The journal of one worker process.

    Attributes:
        calls: In order.
        attempts: What it did in each trial that it leased, by trial id and token, in order.
    """

    pid: int
    calls: list[Call] = field(default_factory=list)
    attempts: dict[tuple[int, int], list[Call | Note]] = field(
        default_factory=lambda: defaultdict(list)
    )


def read_journal(path: Path) -> Process:
    """The journal of a process; a line that a SIGKILL has cut off is not counted."""
    process = Process(int(path.stem))
    sent: dict[int, Call] = {}
    for text in path.read_text().split("\n")[:-1]:
        line = json.loads(text)
        number, at, what = line.pop("line"), line.pop("at"), line.pop("what")
        if what in ("answered", "raised"):
            call = sent[line["of"]]
            call.outcome, call.answer = what, line.get("answer")
        elif what in NOTES:
            key = (line.pop("trial"), line.pop("token"))
            process.attempts[key].append(Note(what, at, line))
        else:
            call = sent[number] = Call(what, at, line.get("arguments", line))
            process.calls.append(call)
            if what in WRITES:
                key = (call.fields["p_trial"], call.fields["p_token"])
                process.attempts[key].append(call)
    return process


TABLES = {
    "budget": "SELECT n_trials, n_claimed, stop_reason FROM service.studies WHERE study_id = :id",
    "trials": "SELECT trial_id, number, state::text FROM trials WHERE study_id = :id",
    "leases": "SELECT trial_id, token, worker FROM service.leases WHERE study_id = :id",
    "attempts": """SELECT trial_id, attempt, worker, cause, ended_at FROM service.attempts
                    WHERE study_id = :id ORDER BY trial_id, attempt""",
    "params": """SELECT trial_id, param_name, param_value, distribution_json
                   FROM trial_params JOIN trials USING (trial_id) WHERE study_id = :id""",
    "user": """SELECT trial_id, key, value_json
                 FROM trial_user_attributes JOIN trials USING (trial_id) WHERE study_id = :id""",
    "system": """SELECT trial_id, key, value_json
                   FROM trial_system_attributes JOIN trials USING (trial_id)
                  WHERE study_id = :id""",
    "reports": """SELECT trial_id, step, intermediate_value, intermediate_value_type::text
                    FROM trial_intermediate_values JOIN trials USING (trial_id)
                   WHERE study_id = :id""",
    "values": """SELECT trial_id, value, value_type::text FROM trial_values
                   JOIN trials USING (trial_id) WHERE study_id = :id""",
    "digests": """SELECT t.trial_id, d.finished, d.digest, made.digest AS expected
                    FROM trials t LEFT JOIN service.digests d USING (trial_id)
                    LEFT JOIN service.make_digests(ARRAY(
                      SELECT trial_id FROM trials WHERE study_id = :id)) made USING (trial_id)
                   WHERE t.study_id = :id""",
}


@dataclass
class Evidence:
    """All that is known of a history.

    Attributes:
        processes: The journals of the worker processes, by process id.
        statements: What the proxy has seen, in order.
        harms: What the adversary did to processes and server.
        cuts: How many connections were cut or stalled.
        tables: The rows of the study in the database at the end, by the keys of `TABLES`.
        output: What the pools printed.
    """

    processes: dict[int, Process]
    statements: list[Statement]
    harms: list[Harm]
    cuts: int
    tables: dict[str, list[Any]]
    output: str

    def attempts(self) -> Iterator[tuple[int, int, Process, list[Call | Note]]]:
        """Every attempt that wrote something down: trial id, token, process, what it did."""
        for process in self.processes.values():
            for (trial_id, token), events in process.attempts.items():
                yield trial_id, token, process, events


def read_tables(engine: Engine, study_id: int) -> dict[str, list[Any]]:
    """The rows of a study."""
    with engine.connect() as connection:
        return {
            name: [*connection.execute(sqlalchemy.text(statement), {"id": study_id})]
            for name, statement in TABLES.items()
        }
