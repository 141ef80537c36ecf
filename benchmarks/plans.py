"""What the connection's planner settings and its DISCARD PLANS are good for.

    python benchmarks/plans.py                 everything, 10 to 16 minutes
    python benchmarks/plans.py --sizes 1000    a smaller study, about 3 minutes
    python benchmarks/plans.py --server URL    on another server to spare here, one with JIT say

The service ships the first variant; each has a database of its own on one server. One worker of 40
is measured: the real storage on its one connection. The others' trials are imported, every tenth
without a digest, as stock Optuna leaves it. The variants take turns, trial by trial.

A cell has two ratios to the first variant: pages that the server touches for a trial (EXPLAIN
(BUFFERS) around each call), and CPU time of the worker's server process (medians of calls); then
the function that stands out, with its own ratio. Autovacuum is off: only ANALYZE makes statistics.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import optuna
from metered import MeteredWorker
from sqlalchemy.dialects.postgresql import insert
from storage import SPEC, execute, past_trials, server

from service import database
from service.database import schema
from service.database.connection import SharedConnection
from service.database.models import StudyRow
from service.settings import normalize_url
from service.storage.storage import StudyStorage

PEERS = past_trials(39)
ROUNDS = 24  # trials of a row: every other one counts pages, the others CPU time
PEER = """WITH peer AS (
  INSERT INTO service.attempts (trial_id, attempt, study_id, worker, ended_at)
  SELECT t, 1, %(study)s, 'peer', now() FROM unnest(%(ids)s::int[]) t RETURNING trial_id)
SELECT count(service.store_digest(trial_id)) FROM peer"""


class Variant(NamedTuple):
    """A connection with other settings, or without discarding."""

    name: str
    options: str = ""
    discard: bool = True


VARIANTS = (
    Variant("as shipped"),
    Variant("jit on", "-c jit=on"),
    Variant("plan cache auto", "-c plan_cache_mode=auto"),
    Variant("no DISCARD", discard=False),
    Variant("none of the three", "-c jit=on -c plan_cache_mode=auto", discard=False),
    Variant("seqscan off", "-c enable_seqscan=off"),
)


class Side:
    """A variant's database and its workers."""

    def __init__(self, server_url: str, variant: Variant, tag: str) -> None:
        name = f"plans {tag} {variant.name}"
        execute(server_url, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        execute(server_url, f'CREATE DATABASE "{name}"')
        url = normalize_url(server_url).set(database=name)
        self.url, self.variant = url.render_as_string(hide_password=False), variant
        schema.upgrade(self.url)
        self.engine = database.create_engine(self.url)
        self.storage, self.connection = StudyStorage(self.engine), SharedConnection.of(self.engine)
        self.workers: dict[str, MeteredWorker] = {}

    def open(self, worker: str, study: str) -> None:
        self.workers[worker] = MeteredWorker(
            self.url, study, discard=self.variant.discard, options=self.variant.options
        )

    def create(self, study: str) -> None:
        study_id = optuna.create_study(study_name=study, storage=self.storage)._study_id
        with self.engine.begin() as connection:
            connection.execute(insert(StudyRow).values(study_id=study_id, spec=SPEC))

    def fill(self, study: str, stock: int = 10) -> None:
        """Trials of the 39 other workers; every so many-th is stock Optuna's."""
        study_id = self.storage.get_study_id_from_name(study)
        ids = self.storage.add_trials(study_id, PEERS)
        ours = [trial_id for place, trial_id in enumerate(ids, 1) if place % stock]
        self.connection.query(PEER, {"study": study_id, "ids": ours})


def work(
    sides: list[Side], study: str, name: str, count: int, *kinds: str, stock: int = 10
) -> None:
    """Let each side's worker of this name do so many trials, among those of the others."""
    for place in range(count):
        for side in sides[place % len(sides) :] + sides[: place % len(sides)]:
            if name not in side.workers:
                side.open(name, study)
            side.workers[name].measured = kinds[place % len(kinds)] if kinds else ""
            side.workers[name].trial()
            side.fill(study, stock)


def row(what: str, sides: list[Side], study: str, name: str, stock: int = 10) -> None:
    """Measure the worker's next trials, and print what they cost."""
    work(sides, study, name, 1, stock=stock)
    first, *others = workers = [side.workers[name] for side in sides]
    for worker in workers:
        worker.clear()
    work(sides, study, name, ROUNDS, "pages", "cpu", stock=stock)
    pages, cpu = (first.total(kind) / (ROUNDS / 2) for kind in ("pages", "cpu"))
    line(
        what,
        f"{pages:.0f} pages, {cpu * 1e3:.1f} ms",
        *(worker.beside(first) for worker in others),
    )


def line(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def grow(sides: list[Side], how: str, sizes: list[int]) -> None:
    """A connection that begins with an empty study, which grows."""
    for side in sides:
        side.create("main")
    for size, goal in zip([0, *sizes], sizes, strict=False):
        work(sides, "main", "first", (goal - size) // (len(PEERS) + 2) - ROUNDS - 1)
        row(f"{how}, {goal:,} trials", sides, "main", "first")


def reopen(sides: list[Side]) -> None:
    """Connections to the study that has grown, and to others in the same database."""
    row("a new connection, no statistics", sides, "main", "second")
    row("the older, small study, no statistics", sides, "small", "third")
    for side in sides:
        execute(side.url, "ANALYZE")
        side.create("new")
    row("the first connection after ANALYZE", sides, "main", "first")
    row("a new connection after ANALYZE", sides, "main", "fourth")
    row("the older, small study after ANALYZE", sides, "small", "third")
    row("a new study beside them", sides, "new", "fifth")
    row("the same, all others stock Optuna's", sides, "new", "fifth", stock=1)


def main() -> None:
    """Print the table."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1025, 2050, 20_000])
    parser.add_argument("--server", help="URL of a server to spare  [default: an embedded one]")
    parser.add_argument("--only", nargs="*", help="names of variants beside the first")
    given = parser.parse_args()
    variants = [each for each in VARIANTS if each.name in (given.only or each.name)]
    variants = list(dict.fromkeys([VARIANTS[0], *variants]))
    with nullcontext(given.server) if given.server else server() as url:
        for setting in ("autovacuum", "fsync"):
            execute(url, f"ALTER SYSTEM SET {setting} = off")
        execute(url, "SELECT pg_reload_conf()")
        line("", *(variant.name for variant in variants))
        line(*["---"] * (len(variants) + 1))
        sides = [Side(url, variant, "new") for variant in variants]
        for side in sides:
            side.create("small")
            side.fill("small")
        grow(sides, "from new tables", given.sizes)
        reopen(sides)
        sides = [Side(url, variant, "vacuumed") for variant in variants]
        for side in sides:
            execute(side.url, "VACUUM ANALYZE")
        grow(sides, "from vacuumed empty tables", given.sizes[:2])


if __name__ == "__main__":
    main()
