"""Settings of this process: a flag wins over the environment, and that over the default."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs
import sqlalchemy
from sqlalchemy.engine import URL

from service.errors import ConfigurationError

PREFIX = "STUDYHALL_"


@dataclass(frozen=True)
class Settings:
    """Settings from flags and environment. A repr shows no password.

    Attributes:
        database_url: The PostgreSQL to use; None: the embedded server under ``home``.
        home: Folder of all files that studyhall keeps on this machine.
        lease_seconds: Length of a lease that is not renewed, in seconds.
        database_patience: How long a worker works without the database, in seconds.
        artifacts: fsspec URL of checkpoints and models; None: a folder under ``home``.
    """

    database_url: str | None = field(default=None, repr=False)
    home: Path = field(default_factory=lambda: Path(platformdirs.user_data_dir("studyhall")))
    lease_seconds: float = 30.0
    database_patience: float = 600.0
    artifacts: str | None = field(default=None, repr=False)

    @property
    def artifact_store(self) -> str:
        """fsspec URL of checkpoints and models."""
        return self.artifacts or str(self.home / "artifacts")

    @classmethod
    def load(
        cls, environment: Mapping[str, str] = os.environ, *, database_url: str | None = None
    ) -> Settings:
        """Read the environment; an argument wins over it.

        Raises:
            ConfigurationError: A variable's value is not of its type.
        """
        values: dict[str, object] = {}
        url = database_url or environment.get(PREFIX + "DATABASE_URL")
        if url:
            values["database_url"] = normalize_url(url).render_as_string(hide_password=False)
        if home := environment.get(PREFIX + "HOME"):
            values["home"] = Path(home).expanduser().absolute()
        for name in ("lease_seconds", "database_patience"):
            variable = PREFIX + name.upper()
            if seconds := environment.get(variable):
                values[name] = positive_seconds(variable, seconds)
        if artifacts := environment.get(PREFIX + "ARTIFACTS"):
            values["artifacts"] = artifacts
        return cls(**values)  # type: ignore[arg-type]


def normalize_url(url: str) -> URL:
    """Parse a database URL and set our driver.

    SQLAlchemy 2.1 takes a bare ``postgresql://`` for psycopg 3. Many hosting services write
    ``postgres://``.

    Raises:
        ConfigurationError: It is not a URL, or its database is not PostgreSQL.
    """
    example = "expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
    try:
        parsed = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise ConfigurationError(f"the database URL cannot be parsed; {example}") from None
    backend = parsed.drivername.split("+")[0]
    if backend not in ("postgresql", "postgres"):
        raise ConfigurationError(f"the database must be PostgreSQL, not {backend!r}; {example}")
    return parsed.set(drivername="postgresql+psycopg2")


def without_credentials(text: str) -> str:
    """A URL, or a message with URLs, as it may be shown: no user, no password, no query."""
    shown = re.sub(r"(?<=://)[^\s'\"]*@", "***@", text)
    return re.sub(r"(://[^\s?'\"]*)\?[^\s'\"]*", r"\1?***", shown)


def positive_seconds(name: str, text: str) -> float:
    """Parse a positive number of seconds.

    Raises:
        ConfigurationError: It is none; the message names the variable.
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigurationError(f"{name} must be a positive number of seconds, not {text!r}")
    return seconds
