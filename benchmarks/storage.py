"""StudyStorage beside Optuna's RDBStorage, on one PostgreSQL server, in one run.

    make bench-storage                                    everything, about 25 minutes
    python benchmarks/storage.py --short                  the same in small, about 2 minutes
    python benchmarks/storage.py --only fleet --seconds 60

Stock Optuna runs with its own TPESampler and MedianPruner, our storage with the service's classes
of the same names, which make the same choices. The server is an embedded one with PostgreSQL's
default settings: ``fsync`` and ``synchronous_commit`` on, ``max_connections`` 100. The parts are
named trial, join, fleet, progress, import.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import optuna
import psycopg2
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.dialects.postgresql import insert

from service import Hall, Settings, Spec, database
from service.database import embedded, schema
from service.database.models import StudyRow
from service.sampling import pruners, tpe
from service.settings import normalize_url
from service.storage import leases
from service.storage.storage import StudyStorage

NAME = "benchmark"
EPOCHS = 10
SPEC = Spec("benchmarks:none", direction="minimize").to_json()
SPACE: dict[str, BaseDistribution] = {
    "rate": FloatDistribution(1e-5, 1e-1, log=True),
    "decay": FloatDistribution(1e-8, 1e-2, log=True),
    "dropout": FloatDistribution(0.0, 0.6),
    "momentum": FloatDistribution(0.0, 1.0),
    "layers": IntDistribution(1, 8),
    "units": IntDistribution(16, 512, log=True),
    "optimizer": CategoricalDistribution(("adam", "sgd", "rmsprop")),
    "activation": CategoricalDistribution(("relu", "gelu", "tanh", "elu")),
}


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    stock: str
    ours: str
    ratio: float | None
    target: str

    def __str__(self) -> str:
        ratio = "" if self.ratio is None else f"{self.ratio:.1f}x"
        return f"| {self.what} | {self.stock} | {self.ours} | {ratio} | {self.target} |"


# What is measured


def run_trial(
    trial: optuna.Trial, epoch_seconds: float, prune: bool
) -> tuple[TrialState, float | None, int]:
    """Suggest eight parameters and report ten epochs, or fewer if the trial is pruned.

    Args:
        trial: The trial.
        epoch_seconds: How long an epoch sleeps.
        prune: Whether the trial ends when the pruner says so.

    Returns:
        The trial's final state, its value, its number of epochs.
    """
    values = [trial._suggest(name, distribution) for name, distribution in SPACE.items()]
    level = abs(float(values[2]) - 0.3) + abs(float(values[3]) - 0.5)
    noise = random.Random(trial.number)
    for epoch in range(EPOCHS):
        if epoch_seconds:
            time.sleep(epoch_seconds)
        trial.report(level + 1 / (epoch + 1) + noise.random() * 0.2, epoch)
        if trial.should_prune() and prune:
            return TrialState.PRUNED, None, epoch + 1
    return TrialState.COMPLETE, level, EPOCHS


class StockWorker:
    """A plain Optuna study on RDBStorage."""

    name = "stock"

    def __init__(self, url: str) -> None:
        self.study = optuna.load_study(study_name=NAME, storage=RDBStorage(url))

    def trial(self, epoch_seconds: float = 0.0, prune: bool = False) -> int:
        trial = self.study.ask()
        state, value, epochs = run_trial(trial, epoch_seconds, prune)
        self.study.tell(trial, value, state)
        return epochs


class LeasedWorker:
    """A worker of the service, with leases."""

    name = "ours"

    def __init__(self, url: str) -> None:
        self.engine = database.create_engine(url)
        self.storage = StudyStorage(self.engine)
        self.study = optuna.load_study(
            study_name=NAME, storage=self.storage, pruner=pruners.MedianPruner()
        )
        self.worker = f"{os.getpid()}"

    def trial(self, epoch_seconds: float = 0.0, prune: bool = False) -> int:
        lease = leases.claim(self.engine, self.study._study_id, self.worker, 60.0)
        assert lease is not None
        self.storage.hold(lease)
        self.study.sampler = tpe.TPESampler(seed=lease.number)
        self.study._thread_local.cached_all_trials = None
        trial = optuna.Trial(self.study, lease.trial_id)
        state, value, epochs = run_trial(trial, epoch_seconds, prune)
        self.study.tell(trial, value, state)
        self.storage.drop(lease)
        return epochs


class PlainWorker:
    """A plain Optuna study on our storage, without leases."""

    name = "plain"

    def __init__(self, url: str) -> None:
        self.study = optuna.load_study(
            study_name=NAME,
            storage=StudyStorage(database.create_engine(url)),
            sampler=tpe.TPESampler(),
            pruner=pruners.MedianPruner(),
        )

    trial = StockWorker.trial


WORKERS: dict[str, Callable[[str], Any]] = {
    "stock": StockWorker,
    "ours": LeasedWorker,
    "plain": PlainWorker,
}


# Databases


@contextmanager
def server() -> Iterator[str]:
    """An embedded PostgreSQL with default settings, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="studyhall-bench-") as folder:
        url = embedded.start(Path(folder))
        try:
            yield url
        finally:
            embedded.stop(Path(folder))


def past_trials(count: int) -> list[FrozenTrial]:
    """Finished trials, two fifths of them pruned."""
    chance = random.Random(0)
    return [past_trial(chance) for _ in range(count)]


def past_trial(chance: random.Random) -> FrozenTrial:
    pruned = chance.random() < 0.4
    epochs = chance.randint(1, EPOCHS - 1) if pruned else EPOCHS
    return create_trial(
        state=TrialState.PRUNED if pruned else TrialState.COMPLETE,
        value=chance.random(),
        params={name: random_value(chance, each) for name, each in SPACE.items()},
        distributions=SPACE,
        intermediate_values={epoch: chance.random() for epoch in range(epochs)},
    )


def random_value(chance: random.Random, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return chance.choice(distribution.choices)
    if isinstance(distribution, IntDistribution):
        return chance.randint(distribution.low, distribution.high)
    assert isinstance(distribution, FloatDistribution)
    return chance.uniform(distribution.low, distribution.high)


def create_database(server_url: str, name: str, trials: int, stock: bool) -> str:
    """Create a database that has a study with finished trials.

    Args:
        server_url: The server.
        name: The database's name.
        trials: How many finished trials the study has.
        stock: Whether the database has Optuna's tables and indexes only.

    Returns:
        The database's URL.
    """
    execute(server_url, f'CREATE DATABASE "{name}"')
    url = normalize_url(server_url).set(database=name)
    text = url.render_as_string(hide_password=False)
    schema.upgrade(text)
    engine = database.create_engine(text)
    storage = StudyStorage(engine)
    study = optuna.create_study(study_name=NAME, storage=storage)
    with engine.begin() as connection:
        connection.execute(insert(StudyRow).values(study_id=study._study_id, spec=SPEC))
    if trials:
        storage.add_trials(study._study_id, past_trials(trials))
    engine.dispose()
    storage.remove_session()
    if stock:
        execute(text, "DROP SCHEMA service CASCADE")
        for index in ("trials_by_study", "trials_unfinished", "trial_values_ranked"):
            execute(text, f"DROP INDEX studyhall_{index}")
    execute(text, "VACUUM ANALYZE")
    return text


def execute(url: str, statement: str) -> None:
    """Execute a statement outside of any transaction."""
    parsed = normalize_url(url)
    connection = psycopg2.connect(
        parsed.set(drivername="postgresql").render_as_string(hide_password=False)
    )
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(statement)
    connection.close()


# Measurements


def timed(action: Callable[[], object]) -> float:
    """How many seconds the action takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def bench_trial(url: str, size: int, repeats: int) -> list[Row]:
    """The median time of a trial whose epochs take no time: storage and sampling."""
    cost = {}
    for name in ("stock", "ours", "plain"):
        target = create_database(url, f"trial_{name}_{size}", size, stock=name == "stock")
        runner = WORKERS[name](target)
        runner.trial()
        count = repeats if name == "stock" else repeats * 4
        cost[name] = median(timed(runner.trial) for _ in range(count)) * 1e3
    target_ratio = "5x" if size <= 1000 else "8x"
    what = f"storage and sampling a trial, {size:,} trials in the study"
    return [
        Row(
            label,
            f"{cost['stock']:.0f} ms",
            f"{cost[name]:.1f} ms",
            cost["stock"] / cost[name],
            wanted,
        )
        for label, name, wanted in (
            (what, "ours", target_ratio),
            (f"{what}, plain Optuna on our storage", "plain", ""),
        )
    ]


def bench_join(url: str, size: int) -> list[Row]:
    """The time in which a new process opens and loads the study and suggests its first trial."""
    cost = {}
    for name in ("stock", "ours"):
        target = create_database(url, f"join_{name}", size, stock=name == "stock")
        cost[name] = min(float(run_worker_process("join", name, target)) for _ in range(2))
    ratio = cost["stock"] / cost["ours"]
    what = f"joining a study of {size:,} trials (load, first ask)"
    return [Row(what, f"{cost['stock']:.2f} s", f"{cost['ours']:.2f} s", ratio, "10x")]


def time_join(name: str, url: str) -> float:
    """Seconds in which a worker loads the study and suggests a trial, after all imports."""
    optuna.samplers.TPESampler(), tpe.TPESampler()

    def load_and_suggest() -> None:
        runner = WORKERS[name](url)
        if name == "ours":
            lease = leases.claim(runner.engine, runner.study._study_id, "w", 60.0)
            runner.storage.hold(lease)
            runner.study.sampler = tpe.TPESampler()
            trial = optuna.Trial(runner.study, lease.trial_id)
        else:
            trial = runner.study.ask()
        for parameter, distribution in SPACE.items():
            trial._suggest(parameter, distribution)

    return timed(load_and_suggest)


@dataclass(frozen=True)
class Throughput:
    """Trials and epochs that a fleet finishes in a second, and how many of its workers died."""

    trials: float
    epochs: float
    died: int

    def __str__(self) -> str:
        died = f", {self.died} workers died" if self.died else ""
        return f"{self.trials:.1f} trials/s ({self.epochs:.0f} epochs/s){died}"


@dataclass(frozen=True)
class Fleet:
    """Workers on a new study.

    Attributes:
        workers: How many.
        epoch: Seconds of an epoch.
        prune: Whether trials end when the pruner says so.
    """

    workers: int
    epoch: float
    prune: bool = True

    def __str__(self) -> str:
        work = f"{self.epoch * 1e3:g} ms epochs" if self.epoch else "no work"
        return f"{self.workers} workers, {work}" + ("" if self.prune else ", nothing pruned")


def bench_fleet(url: str, fleet: Fleet, duration: float, stock: bool) -> Throughput:
    """Run a fleet with stock Optuna or with our service."""
    name = "stock" if stock else "ours"
    target = create_database(url, f"fleet_{name}_{fleet}", 0, stock)
    command = [sys.executable, __file__, "--worker", "fleet", name, target]
    processes = [
        subprocess.Popen(
            [*command, str(fleet.epoch), str(duration), str(int(fleet.prune))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(fleet.workers)
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()  # ready, or dead
    for process in processes:
        if process.poll() is None and process.stdin:
            process.stdin.write("go\n")
            process.stdin.flush()
    counts = [finished_counts(process) for process in processes]
    trials, epochs = (sum(count[i] for count in counts if count) / duration for i in (0, 1))
    return Throughput(trials, epochs, counts.count(None))


def finished_counts(process: subprocess.Popen[str]) -> tuple[int, int] | None:
    """How many trials and epochs a worker has finished; None if it died."""
    out, err = process.communicate()
    if process.returncode != 0:
        last = (err.strip().splitlines() or ["no message"])[-1]
        print(f"  a worker died: {last[:160]}", file=sys.stderr)
        return None
    trials, epochs = out.strip().splitlines()[-1].split()
    return int(trials), int(epochs)


def run_fleet_worker(name: str, url: str, epoch: float, duration: float, prune: float) -> str:
    """Run one worker of a fleet: the number of trials and epochs that it finishes in time."""
    runner = WORKERS[name](url)
    print("ready", flush=True)
    sys.stdin.readline()
    deadline, trials, epochs = time.monotonic() + duration, 0, 0
    while time.monotonic() < deadline:
        more = runner.trial(epoch, prune=bool(prune))
        if time.monotonic() < deadline:
            trials, epochs = trials + 1, epochs + more
    return f"{trials} {epochs}"


def bench_fleets(url: str, duration: float, fleets: list[Fleet]) -> list[Row]:
    """Run every fleet with our service, then with stock Optuna."""
    rows = []
    wanted = {16: "8x", 32: "10x", 64: "no less than 32 workers"}
    for each in fleets:
        ours = bench_fleet(url, each, duration, stock=False)
        stock = bench_fleet(url, each, duration, stock=True)
        ratio = ours.trials / stock.trials if stock.trials else None
        rows.append(Row(str(each), str(stock), str(ours), ratio, wanted.get(each.workers, "")))
        print(rows[-1], flush=True)
    return rows


def bench_progress(url: str, size: int, stock_size: int) -> list[Row]:
    """The progress of a study: one statement; stock Optuna reads all trials."""
    target = create_database(url, "progress_ours", size, stock=False)
    study = Hall(Settings(database_url=target)).study(NAME)

    stock = StockWorker(create_database(url, "progress_stock", stock_size, stock=True))
    our_ms = min(timed(study.progress) for _ in range(5)) * 1e3
    stock_seconds = timed(lambda: stock.study.get_trials(deepcopy=False)) * size / stock_size
    label = f"{stock_seconds:.0f} s" + ("" if size == stock_size else f" (from {stock_size:,})")
    ratio = stock_seconds * 1e3 / our_ms
    return [Row(f"progress() of {size:,} trials", label, f"{our_ms:.0f} ms", ratio, "< 50 ms")]


def bench_import(url: str, size: int, stock_size: int) -> list[Row]:
    """Import finished trials into a study; stock Optuna imports only the last of them."""
    stock = optuna.load_study(
        study_name=NAME,
        storage=RDBStorage(
            create_database(url, "import_stock", size - stock_size, stock=True),
            skip_table_creation=True,
        ),
    )
    last = past_trials(stock_size)
    stock_seconds = timed(lambda: stock.add_trials(last)) / stock_size
    storage = StudyStorage(
        database.create_engine(create_database(url, "import_ours", 0, stock=False))
    )
    study_id = storage.get_study_id_from_name(NAME)
    trials = past_trials(size)
    our_seconds = timed(lambda: storage.add_trials(study_id, trials)) / size
    other = optuna.load_study(
        study_name=NAME,
        storage=StudyStorage(
            database.create_engine(create_database(url, "import_plain", 0, stock=False))
        ),
    )
    plain_seconds = timed(lambda: other.add_trials(trials[:stock_size])) / stock_size
    what = f"importing a finished trial, {size:,} in all"
    stock_time = f"{stock_seconds * 1e3:.0f} ms"
    return [
        Row(
            f"{what}, at once",
            stock_time,
            f"{our_seconds * 1e3:.2f} ms",
            stock_seconds / our_seconds,
            "50x",
        ),
        Row(
            f"{what}, by study.add_trials",
            stock_time,
            f"{plain_seconds * 1e3:.2f} ms",
            stock_seconds / plain_seconds,
            "",
        ),
    ]


def run_worker_process(*arguments: str) -> str:
    """Run this file as a worker process and return the last line that it prints."""
    command = [sys.executable, __file__, "--worker", *arguments]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return out.strip().splitlines()[-1]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="small sizes, short runs")
    parser.add_argument("--only", nargs="*", help="parts to run")
    parser.add_argument("--seconds", type=float, default=30.0, help="duration of a fleet's run")
    parser.add_argument("--workers", type=int, nargs="*", help="sizes of the fleets")
    parser.add_argument("--epoch", type=float, default=0.05, help="seconds of their epochs")
    parser.add_argument("--whole", action="store_true", help="the fleets prune nothing")
    parser.add_argument("--repeats", type=int, default=5, help="trials of stock Optuna to measure")
    parser.add_argument("--worker", nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args()


def run_worker(arguments: list[str]) -> None:
    part, name, url, *rest = arguments
    if part == "join":
        print(time_join(name, url))
    else:
        print(run_fleet_worker(name, url, *(float(value) for value in rest)))


def main() -> None:
    """Run the selected parts and print the table."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    options = parse()
    if options.worker:
        run_worker(options.worker)
        return
    short = options.short
    duration = min(options.seconds, 8.0) if short else options.seconds
    fleets = [
        Fleet(16, 0.0),
        Fleet(32, 0.05),
        Fleet(64, 0.05),
        Fleet(32, 0.05, prune=False),
        Fleet(64, 0.05, prune=False),
    ]
    if short:
        fleets = [Fleet(4, 0.0), Fleet(8, 0.05)]
    if options.workers:
        fleets = [Fleet(count, options.epoch, not options.whole) for count in options.workers]
    join_size, progress_size = (2_000, 20_000) if short else (10_000, 100_000)
    parts: dict[str, Callable[[str], list[Row]]] = {
        "trial": lambda url: [
            row
            for size in ((500,) if short else (1_000, 10_000))
            for row in bench_trial(url, size, options.repeats)
        ],
        "join": lambda url: bench_join(url, join_size),
        "fleet": lambda url: bench_fleets(url, duration, fleets),
        "progress": lambda url: bench_progress(url, progress_size, progress_size // 10),
        "import": lambda url: bench_import(url, join_size, 100 if short else 300),
    }
    rows = []
    with server() as url:
        for name in options.only or parts:
            print(f"{name}...", file=sys.stderr, flush=True)
            rows += parts[name](url)
    print("\n| what | stock Optuna | studyhall | ratio | wanted |\n|---|---|---|---|---|")
    print("\n".join(map(str, rows)))


if __name__ == "__main__":
    main()
