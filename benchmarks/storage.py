"""StudyStorage beside Optuna's RDBStorage, on one PostgreSQL server, in one run.

    make bench-storage                                    everything, about 25 minutes
    python benchmarks/storage.py --short                  the same in small, about 2 minutes
    python benchmarks/storage.py --only fleet --seconds 60

Stock Optuna runs with its own sampler and pruner (TPESampler, MedianPruner), ours with the
service's classes of the same names, which make the same choices. The server is an embedded one
with PostgreSQL's default settings: ``fsync`` and ``synchronous_commit`` on, ``max_connections``
100. Names of parts: trial, join, fleet, progress, import.
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
    """Eight parameters, ten reported epochs that take no time or sleep; fewer if pruned.

    Returns:
        How the trial ended, its value, its epochs.
    """
    values = [trial._suggest(name, of) for name, of in SPACE.items()]
    level = abs(float(values[2]) - 0.3) + abs(float(values[3]) - 0.5)
    noise = random.Random(trial.number)
    for epoch in range(EPOCHS):
        if epoch_seconds:
            time.sleep(epoch_seconds)
        trial.report(level + 1 / (epoch + 1) + noise.random() * 0.2, epoch)
        if trial.should_prune() and prune:
            return TrialState.PRUNED, None, epoch + 1
    return TrialState.COMPLETE, level, EPOCHS


class Stock:
    """Optuna as it comes."""

    name = "stock"

    def __init__(self, url: str) -> None:
        self.study = optuna.load_study(study_name=NAME, storage=RDBStorage(url))

    def trial(self, epoch_seconds: float = 0.0, prune: bool = False) -> int:
        trial = self.study.ask()
        state, value, epochs = run_trial(trial, epoch_seconds, prune)
        self.study.tell(trial, value, state)
        return epochs


class Ours:
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


class Plain:
    """A plain Optuna study on our storage, without leases."""

    name = "plain"

    def __init__(self, url: str) -> None:
        self.study = optuna.load_study(
            study_name=NAME,
            storage=StudyStorage(database.create_engine(url)),
            sampler=tpe.TPESampler(),
            pruner=pruners.MedianPruner(),
        )

    trial = Stock.trial


SIDES: dict[str, Callable[[str], Any]] = {"stock": Stock, "ours": Ours, "plain": Plain}


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
        params={name: drawn(chance, of) for name, of in SPACE.items()},
        distributions=SPACE,
        intermediate_values={epoch: chance.random() for epoch in range(epochs)},
    )


def drawn(chance: random.Random, of: BaseDistribution) -> Any:
    if isinstance(of, CategoricalDistribution):
        return chance.choice(of.choices)
    if isinstance(of, IntDistribution):
        return chance.randint(of.low, of.high)
    assert isinstance(of, FloatDistribution)
    return chance.uniform(of.low, of.high)


def make(server_url: str, name: str, trials: int, stock: bool) -> str:
    """A database with a study of so many finished trials; a stock one has nothing of ours."""
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
    """One statement outside of any transaction."""
    parsed = normalize_url(url)
    connection = psycopg2.connect(
        parsed.set(drivername="postgresql").render_as_string(hide_password=False)
    )
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(statement)
    connection.close()


# Measurements


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def bench_trial(url: str, size: int, repeats: int) -> list[Row]:
    """Storage and sampling of a trial with no work in it; the median."""
    cost = {}
    for name in ("stock", "ours", "plain"):
        target = make(url, f"trial_{name}_{size}", size, stock=name == "stock")
        side = SIDES[name](target)
        side.trial()
        count = repeats if name == "stock" else repeats * 4
        cost[name] = median(seconds(side.trial) for _ in range(count)) * 1e3
    wanted = "5x" if size <= 1000 else "8x"
    what = f"storage and sampling a trial, {size:,} trials in the study"
    return [
        Row(
            label,
            f"{cost['stock']:.0f} ms",
            f"{cost[name]:.1f} ms",
            cost["stock"] / cost[name],
            target_ratio,
        )
        for label, name, target_ratio in (
            (what, "ours", wanted),
            (f"{what}, plain Optuna on our storage", "plain", ""),
        )
    ]


def bench_join(url: str, size: int) -> list[Row]:
    """Open the study in a new process, load it and suggest a first trial."""
    cost = {}
    for name in ("stock", "ours"):
        target = make(url, f"join_{name}", size, stock=name == "stock")
        cost[name] = min(float(worker("join", name, target)) for _ in range(2))
    ratio = cost["stock"] / cost["ours"]
    what = f"joining a study of {size:,} trials (load, first ask)"
    return [Row(what, f"{cost['stock']:.2f} s", f"{cost['ours']:.2f} s", ratio, "10x")]


def join(name: str, url: str) -> float:
    """What a joining worker does, timed; Optuna's modules are loaded before."""
    optuna.samplers.TPESampler(), tpe.TPESampler()

    def first() -> None:
        side = SIDES[name](url)
        if name == "ours":
            lease = leases.claim(side.engine, side.study._study_id, "w", 60.0)
            side.storage.hold(lease)
            side.study.sampler = tpe.TPESampler()
            trial = optuna.Trial(side.study, lease.trial_id)
        else:
            trial = side.study.ask()
        for parameter, of in SPACE.items():
            trial._suggest(parameter, of)

    return seconds(first)


@dataclass(frozen=True)
class Pace:
    """What a fleet does in a second, and how many of its workers died."""

    trials: float
    epochs: float
    died: int

    def __str__(self) -> str:
        died = f", {self.died} workers died" if self.died else ""
        return f"{self.trials:.1f} trials/s ({self.epochs:.0f} epochs/s){died}"


@dataclass(frozen=True)
class Fleet:
    """So many workers on a new study; ``prune``: whether they heed the pruner's verdicts."""

    workers: int
    epoch: float
    prune: bool = True

    def __str__(self) -> str:
        work = f"{self.epoch * 1e3:g} ms epochs" if self.epoch else "no work"
        return f"{self.workers} workers, {work}" + ("" if self.prune else ", nothing pruned")


def bench_fleet(url: str, fleet: Fleet, length: float, stock: bool) -> Pace:
    """A fleet with stock Optuna or with ours."""
    name = "stock" if stock else "ours"
    target = make(url, f"fleet_{name}_{fleet}", 0, stock)
    command = [sys.executable, __file__, "--worker", "fleet", name, target]
    processes = [
        subprocess.Popen(
            [*command, str(fleet.epoch), str(length), str(int(fleet.prune))],
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
    counts = [report(process) for process in processes]
    trials, epochs = (sum(count[i] for count in counts if count) / length for i in (0, 1))
    return Pace(trials, epochs, counts.count(None))


def report(process: subprocess.Popen[str]) -> tuple[int, int] | None:
    """How many trials and epochs a worker has finished; None if it died."""
    out, err = process.communicate()
    if process.returncode != 0:
        last = (err.strip().splitlines() or ["no message"])[-1]
        print(f"  a worker died: {last[:160]}", file=sys.stderr)
        return None
    trials, epochs = out.strip().splitlines()[-1].split()
    return int(trials), int(epochs)


def fleet(name: str, url: str, epoch: float, length: float, prune: float) -> str:
    """One worker of a fleet: trials and epochs finished within the time."""
    side = SIDES[name](url)
    print("ready", flush=True)
    sys.stdin.readline()
    deadline, trials, epochs = time.monotonic() + length, 0, 0
    while time.monotonic() < deadline:
        more = side.trial(epoch, prune=bool(prune))
        if time.monotonic() < deadline:
            trials, epochs = trials + 1, epochs + more
    return f"{trials} {epochs}"


def bench_fleets(url: str, length: float, fleets: list[Fleet]) -> list[Row]:
    """Every fleet, side by side."""
    rows = []
    wanted = {16: "8x", 32: "10x", 64: "no less than 32 workers"}
    for each in fleets:
        ours = bench_fleet(url, each, length, stock=False)
        stock = bench_fleet(url, each, length, stock=True)
        ratio = ours.trials / stock.trials if stock.trials else None
        rows.append(Row(str(each), str(stock), str(ours), ratio, wanted.get(each.workers, "")))
        print(rows[-1], flush=True)
    return rows


def bench_progress(url: str, size: int, stock_size: int) -> list[Row]:
    """How far a study is: one statement here, all trials there."""
    target = make(url, "progress_ours", size, stock=False)
    study = Hall(Settings(database_url=target)).study(NAME)

    def stock() -> None:
        theirs.study.get_trials(deepcopy=False)

    theirs = Stock(make(url, "progress_stock", stock_size, stock=True))
    mine = min(seconds(study.progress) for _ in range(5)) * 1e3
    reading = seconds(stock) * size / stock_size
    label = f"{reading:.0f} s" + ("" if size == stock_size else f" (from {stock_size:,})")
    ratio = reading * 1e3 / mine
    return [Row(f"progress() of {size:,} trials", label, f"{mine:.0f} ms", ratio, "< 50 ms")]


def bench_import(url: str, size: int, stock_size: int) -> list[Row]:
    """Finished trials into a study, timed for stock Optuna over the last ones."""
    stock = optuna.load_study(
        study_name=NAME,
        storage=RDBStorage(
            make(url, "import_stock", size - stock_size, stock=True), skip_table_creation=True
        ),
    )
    last = past_trials(stock_size)
    theirs = seconds(lambda: stock.add_trials(last)) / stock_size
    storage = StudyStorage(database.create_engine(make(url, "import_ours", 0, stock=False)))
    study_id = storage.get_study_id_from_name(NAME)
    trials = past_trials(size)
    mine = seconds(lambda: storage.add_trials(study_id, trials)) / size
    other = optuna.load_study(
        study_name=NAME,
        storage=StudyStorage(database.create_engine(make(url, "import_plain", 0, stock=False))),
    )
    plain = seconds(lambda: other.add_trials(trials[:stock_size])) / stock_size
    what = f"importing a finished trial, {size:,} in all"
    said = f"{theirs * 1e3:.0f} ms"
    return [
        Row(f"{what}, at once", said, f"{mine * 1e3:.2f} ms", theirs / mine, "50x"),
        Row(f"{what}, by study.add_trials", said, f"{plain * 1e3:.2f} ms", theirs / plain, ""),
    ]


def worker(*arguments: str) -> str:
    """Run this file as a worker; the last line it prints."""
    command = [sys.executable, __file__, "--worker", *arguments]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return out.strip().splitlines()[-1]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="small sizes, short runs")
    parser.add_argument("--only", nargs="*", help="parts to run")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of a fleet's run")
    parser.add_argument("--workers", type=int, nargs="*", help="sizes of the fleets")
    parser.add_argument("--epoch", type=float, default=0.05, help="seconds of their epochs")
    parser.add_argument("--whole", action="store_true", help="the fleets prune nothing")
    parser.add_argument("--repeats", type=int, default=5, help="stock trials that are timed")
    parser.add_argument("--worker", nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args()


def work(arguments: list[str]) -> None:
    part, name, url, *rest = arguments
    if part == "join":
        print(join(name, url))
    else:
        print(fleet(name, url, *(float(value) for value in rest)))


def main() -> None:
    """Run the parts that were asked for and print the table."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    given = parse()
    if given.worker:
        work(given.worker)
        return
    short = given.short
    length = min(given.seconds, 8.0) if short else given.seconds
    fleets = [
        Fleet(16, 0.0),
        Fleet(32, 0.05),
        Fleet(64, 0.05),
        Fleet(32, 0.05, prune=False),
        Fleet(64, 0.05, prune=False),
    ]
    if short:
        fleets = [Fleet(4, 0.0), Fleet(8, 0.05)]
    if given.workers:
        fleets = [Fleet(count, given.epoch, not given.whole) for count in given.workers]
    join_size, progress_size = (2_000, 20_000) if short else (10_000, 100_000)
    parts: dict[str, Callable[[str], list[Row]]] = {
        "trial": lambda url: [
            row
            for size in ((500,) if short else (1_000, 10_000))
            for row in bench_trial(url, size, given.repeats)
        ],
        "join": lambda url: bench_join(url, join_size),
        "fleet": lambda url: bench_fleets(url, length, fleets),
        "progress": lambda url: bench_progress(url, progress_size, progress_size // 10),
        "import": lambda url: bench_import(url, join_size, 100 if short else 300),
    }
    rows = []
    with server() as url:
        for name in given.only or parts:
            print(f"{name}...", file=sys.stderr, flush=True)
            rows += parts[name](url)
    print("\n| what | stock Optuna | studyhall | ratio | wanted |\n|---|---|---|---|---|")
    print("\n".join(map(str, rows)))


if __name__ == "__main__":
    main()
