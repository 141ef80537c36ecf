"""Assignment: what the pool passes to a worker process, as one line of JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from service.settings import Settings
from service.studies.permission import Permission
from service.workers.limits import Limits


@dataclass(frozen=True)
class Assignment:
    """What one worker process is to do.

    Attributes:
        study: Optuna's id of the study; its name may change.
        worker: The worker's name, which no other worker has.
        device: The device that it runs on.
        data_dir: Folder of the data on this machine, or None.
        permission: What the worker may import, unpickle and mix.
        recycle_after: Trials after which the process is to be replaced, or None.
        max_rss: Memory in bytes above which it is to be replaced, or None.
        command: The command line that started the pool, without passwords, or None.
    """

    study: int
    worker: str
    device: str
    database_url: str
    home: str
    lease_seconds: float
    database_patience: float
    artifacts: str | None
    data_dir: str | None
    permission: Permission
    recycle_after: int | None
    max_rss: int | None
    command: str | None = None

    def to_line(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def from_line(cls, line: bytes) -> Assignment:
        """The assignment that `to_line` wrote."""
        values = json.loads(line)
        allowed = values.pop("permission")
        permission = Permission(**{**allowed, "allow": tuple(allowed["allow"])})
        return cls(**values, permission=permission)

    @property
    def settings(self) -> Settings:
        """The settings of the process."""
        return Settings(
            self.database_url,
            Path(self.home),
            self.lease_seconds,
            self.database_patience,
            self.artifacts,
        )

    @property
    def limits(self) -> Limits:
        """When the process is to be replaced by a fresh one."""
        return Limits(self.recycle_after, self.max_rss)
