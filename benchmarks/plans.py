"""The effect of the connection's planner settings and of its DISCARD PLANS.

    python benchmarks/plans.py                 everything, 10 to 16 minutes
    python benchmarks/plans.py --sizes 1000    a smaller study, about 3 minutes
    python benchmarks/plans.py --server URL    another server on this machine, such as one with JIT

The script changes the server's settings and drops databases: URL must name a server without data.

The first variant is what the service uses. Each variant has a database on one server. The script
measures one worker of 40, with the real storage on its one connection. It imports the trials of
the other workers. Every tenth has no digest, like a trial of stock Optuna. The variants take
turns, trial by trial.

A cell has two ratios to the first variant: the pages that the server touches for a trial (EXPLAIN
(BUFFERS) of each call), and the CPU time of the worker's server process (medians of calls). In
brackets: the function with the highest ratio, if that is high. Autovacuum is off, so only ANALYZE
makes statistics.
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
MEASURED_TRIALS = 24  # per row: pages are counted for one half, CPU time for the other
STORE_DIGESTS = """WITH peer AS (
  INSERT INTO service.attempts (trial_id, attempt, study_id, worker, ended_at)
  SELECT t, 1, %(study)s, 'peer', now() FROM unnest(%(ids)s::int[]) t RETURNING trial_id)
SELECT count(service.store_digest(trial_id)) FROM peer"""


class Variant(NamedTuple):
    """Settings of a connection, and whether it discards its plans."""

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


class VariantDatabase:
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

    def add_peer_trials(self, study: str, stock: int = 10) -> None:
        """Import the trials of the 39 other workers; every ``stock``-th has no digest."""
        study_id = self.storage.get_study_id_from_name(study)
        ids = self.storage.add_trials(study_id, PEERS)
        ours = [trial_id for index, trial_id in enumerate(ids, 1) if index % stock]
        self.connection.query(STORE_DIGESTS, {"study": study_id, "ids": ours})


def run_trials(
    targets: list[VariantDatabase], study: str, name: str, count: int, *kinds: str, stock: int = 10
) -> None:
    """Run trials of the worker in each database, and import the others' trials between them.

    Args:
        targets: The databases.
        study: Name of the study.
        name: Name of the worker.
        count: How many trials the worker runs in each database.
        *kinds: What to measure, "pages" or "cpu", in turns; nothing by default.
        stock: One in so many trials of the other workers has no digest.
    """
    for index in range(count):
        for target in targets[index % len(targets) :] + targets[: index % len(targets)]:
            if name not in target.workers:
                target.open(name, study)
            target.workers[name].measured = kinds[index % len(kinds)] if kinds else ""
            target.workers[name].trial()
            target.add_peer_trials(study, stock)


def print_costs(
    label: str, targets: list[VariantDatabase], study: str, name: str, stock: int = 10
) -> None:
    """Measure the worker's next trials and print their costs."""
    run_trials(targets, study, name, 1, stock=stock)
    first, *others = workers = [target.workers[name] for target in targets]
    for worker in workers:
        worker.clear()
    run_trials(targets, study, name, MEASURED_TRIALS, "pages", "cpu", stock=stock)
    pages, cpu = (first.total(kind) / (MEASURED_TRIALS / 2) for kind in ("pages", "cpu"))
    print_cells(
        label,
        f"{pages:.0f} pages, {cpu * 1e3:.1f} ms",
        *(worker.ratios_to(first) for worker in others),
    )


def print_cells(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def measure_growing_study(targets: list[VariantDatabase], start: str, sizes: list[int]) -> None:
    """Measure a connection that makes its first plans for an empty study, which then grows."""
    for target in targets:
        target.create("main")
    for size, goal in zip([0, *sizes], sizes, strict=False):
        run_trials(
            targets, "main", "first", (goal - size) // (len(PEERS) + 2) - MEASURED_TRIALS - 1
        )
        print_costs(f"{start}, {goal:,} trials", targets, "main", "first")


def measure_other_connections(targets: list[VariantDatabase]) -> None:
    """Measure other connections to the study, and connections to other studies beside it."""
    print_costs("a new connection, no statistics", targets, "main", "second")
    print_costs("the older, small study, no statistics", targets, "small", "third")
    for target in targets:
        execute(target.url, "ANALYZE")
        target.create("new")
    print_costs("the first connection after ANALYZE", targets, "main", "first")
    print_costs("a new connection after ANALYZE", targets, "main", "fourth")
    print_costs("the older, small study after ANALYZE", targets, "small", "third")
    print_costs("a new study beside them", targets, "new", "fifth")
    print_costs("the same, all others stock Optuna's", targets, "new", "fifth", stock=1)


def main() -> None:
    """Measure the variants and print the table."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1025, 2050, 20_000])
    parser.add_argument(
        "--server", help="URL of a server without data  [default: an embedded one]"
    )
    parser.add_argument(
        "--only", nargs="*", help="names of variants to compare with the first  [default: all]"
    )
    options = parser.parse_args()
    variants = [each for each in VARIANTS if each.name in (options.only or each.name)]
    variants = list(dict.fromkeys([VARIANTS[0], *variants]))
    with nullcontext(options.server) if options.server else server() as url:
        for setting in ("autovacuum", "fsync"):
            execute(url, f"ALTER SYSTEM SET {setting} = off")
        execute(url, "SELECT pg_reload_conf()")
        print_cells("", *(variant.name for variant in variants))
        print_cells(*["---"] * (len(variants) + 1))
        targets = [VariantDatabase(url, variant, "new") for variant in variants]
        for target in targets:
            target.create("small")
            target.add_peer_trials("small")
        measure_growing_study(targets, "from new tables", options.sizes)
        measure_other_connections(targets)
        targets = [VariantDatabase(url, variant, "vacuumed") for variant in variants]
        for target in targets:
            execute(target.url, "VACUUM ANALYZE")
        measure_growing_study(targets, "from vacuumed empty tables", options.sizes[:2])


if __name__ == "__main__":
    main()
