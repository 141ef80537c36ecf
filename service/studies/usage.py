"""Usage: bytes of each study in the database and in the artifact store, and of the data cache."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Engine, text

from service.artifacts import data_cache
from service.artifacts.garbage import FOLDERS
from service.artifacts.store import Store
from service.settings import Settings, without_credentials

ROWS = text(
    """-- Bytes of each study's rows, Optuna's and ours, without indexes; its artifacts.
    WITH chosen AS (
        SELECT study_id, o.study_name FROM service.studies JOIN public.studies o USING (study_id)
         WHERE CAST(:name AS text) IS NULL OR o.study_name = :name),
    t AS (
        SELECT trial_id, study_id, pg_column_size(t.*) AS bytes
          FROM public.trials t JOIN chosen USING (study_id)),
    rows AS (
        SELECT study_id, bytes FROM t
        UNION ALL SELECT t.study_id, pg_column_size(c.*)
          FROM t JOIN public.trial_values c ON c.trial_id = t.trial_id
        UNION ALL SELECT t.study_id, pg_column_size(c.*)
          FROM t JOIN public.trial_params c ON c.trial_id = t.trial_id
        UNION ALL SELECT t.study_id, pg_column_size(c.*)
          FROM t JOIN public.trial_intermediate_values c ON c.trial_id = t.trial_id
        UNION ALL SELECT t.study_id, pg_column_size(c.*)
          FROM t JOIN public.trial_user_attributes c ON c.trial_id = t.trial_id
        UNION ALL SELECT t.study_id, pg_column_size(c.*)
          FROM t JOIN public.trial_system_attributes c ON c.trial_id = t.trial_id
        UNION ALL SELECT t.study_id, pg_column_size(c.*)
          FROM t JOIN service.digests c ON c.trial_id = t.trial_id
        UNION ALL SELECT c.study_id, pg_column_size(c.*)
          FROM public.study_user_attributes c JOIN chosen USING (study_id)
        UNION ALL SELECT c.study_id, pg_column_size(c.*)
          FROM public.study_system_attributes c JOIN chosen USING (study_id)
        UNION ALL SELECT c.study_id, pg_column_size(c.*)
          FROM service.attempts c JOIN chosen USING (study_id)
        UNION ALL SELECT c.study_id, pg_column_size(c.*)
          FROM service.models c JOIN chosen USING (study_id)
        UNION ALL SELECT c.study_id, pg_column_size(c.*)
          FROM service.openings c JOIN chosen USING (study_id)
        UNION ALL SELECT c.study_id, pg_column_size(c.*)
          FROM service.studies c JOIN chosen USING (study_id))
    SELECT chosen.study_name,
           (SELECT count(*) FROM t WHERE t.study_id = chosen.study_id) AS trials,
           (SELECT sum(bytes) FROM rows WHERE rows.study_id = chosen.study_id) AS bytes,
           service.study_artifacts(chosen.study_id) AS artifacts
      FROM chosen ORDER BY chosen.study_id"""
)
TABLES = text(
    """-- Bytes of all tables with their indexes and free space, as the disk has them.
    SELECT coalesce(sum(pg_total_relation_size(oid)), 0) FROM pg_class
     WHERE relkind = 'r'
       AND relnamespace IN ('public'::regnamespace, 'service'::regnamespace)"""
)


@dataclass(frozen=True)
class StudyUsage:
    """Bytes that a study takes.

    Attributes:
        study: Its name.
        trials: How many trials it has.
        database: Bytes of its rows.
        checkpoints: Bytes of its checkpoints in the artifact store.
        models: Bytes of its models there.
    """

    study: str
    trials: int
    database: int
    checkpoints: int
    models: int

    @property
    def total(self) -> int:
        return self.database + self.checkpoints + self.models


@dataclass(frozen=True)
class Usage:
    """Bytes that studies take, and what no study of this database accounts for.

    Attributes:
        studies: Each study.
        tables: Bytes of the tables of all studies, with indexes and free space.
        store: The artifact store, without credentials.
        other_artifacts: Bytes there that belong to no study of this database; None if only one
            study was measured.
        cache: The folder of this machine's data cache.
        cache_bytes: Bytes in it.
    """

    studies: list[StudyUsage]
    tables: int
    store: str
    other_artifacts: int | None
    cache: str
    cache_bytes: int

    def to_json(self) -> dict[str, Any]:
        """As ``studyhall du --json`` prints it."""
        return asdict(self)


def measure(engine: Engine, settings: Settings, name: str | None = None) -> Usage:
    """Measure one study, or all.

    Args:
        engine: The database.
        settings: The settings of this process, with the artifact store.
        name: The only study to measure.
    """
    store = Store(settings.artifact_store)
    files = [file for folder in FOLDERS for file in store.files(folder)]
    with engine.connect() as connection:
        rows = connection.execute(ROWS, {"name": name}).all()
        tables = int(connection.execute(TABLES).scalar_one())
    sizes: dict[str, int] = {}
    for file in files:
        key = "/".join(file.name.split("/")[:2])
        sizes[key] = sizes.get(key, 0) + file.size
    studies = [_of_study(row, sizes) for row in rows]
    of_studies = sum(study.checkpoints + study.models for study in studies)
    cache = data_cache.folder()
    return Usage(
        studies,
        tables,
        without_credentials(settings.artifact_store),
        None if name is not None else sum(sizes.values()) - of_studies,
        str(cache),
        sum(entry.size for entry in data_cache.entries(cache)),
    )


def _of_study(row: Any, sizes: dict[str, int]) -> StudyUsage:
    def of_kind(folder: str) -> int:
        return sum(sizes.get(name, 0) for name in row.artifacts if name.startswith(f"{folder}/"))

    checkpoints, models = (of_kind(folder) for folder in FOLDERS)
    return StudyUsage(row.study_name, row.trials, int(row.bytes), checkpoints, models)


def bytes_text(count: int) -> str:
    """``1.5 MB`` for 1,500,000 bytes."""
    amount, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while amount >= 999.5 and len(units) > 1:
        amount /= 1000
        units.pop(0)
    return f"{count} B" if units[0] == "B" else f"{amount:.3g} {units[0]}"
