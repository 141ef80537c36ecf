"""Task: something that needs the objective after the search, done in a process of its own.

``python -m service.studies.task`` reads a `Task` from standard input and writes its result to a
file. So a command or a shell stays free of Keras, and an exported model is loaded in a process
that knows nothing of the one that wrote it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from service.errors import ConfigurationError, StudyhallError, headline
from service.studies import drift, registry
from service.studies.permission import Permission
from service.studies.spec import Spec

QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3"}


class TaskFailed(StudyhallError):
    """The objective has failed."""


@dataclass(frozen=True)
class Task:
    """A call of one of the objective's methods.

    Attributes:
        study: The study's name.
        spec: The study's spec.
        permission: What the process may import.
        data_dir: Folder of the data on this machine; None: the spec's.
        method: ``evaluate`` or ``export``.
        arguments: Its arguments; those whose name is ``path`` or ``folder`` are paths.
        data: What identifies the study's data; None: unknown.
    """

    study: str
    spec: Spec
    permission: Permission
    data_dir: str | None
    method: str
    arguments: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] | None = None

    def run(self) -> Any:
        """Call the method in a new process; return what it returns, as JSON.

        Raises:
            ConfigurationError: The objective cannot be loaded, has no such method, or other data.
            TaskFailed: The method failed.
        """
        self.spec.require(self.permission)
        with tempfile.TemporaryDirectory(prefix="studyhall-") as folder:
            answer = Path(folder, "answer.json")
            done = subprocess.run(
                [sys.executable, "-m", "service.studies.task", str(answer)],
                input=json.dumps(self.to_json()),
                env={**QUIET, **os.environ},
                capture_output=True,
                text=True,
                check=False,
            )
            if not answer.exists():
                raise TaskFailed(f"the objective's process ended: {headline(done.stderr)}")
            found = json.loads(answer.read_text())
        if "error" in found:
            kind = ConfigurationError if found["exit_code"] == 2 else TaskFailed
            raise kind(found["error"])
        return found["result"]

    def to_json(self) -> dict[str, Any]:
        """As the process reads it."""
        return {**asdict(self), "spec": self.spec.to_json()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Task:
        """The task that `to_json` wrote."""
        allowed = values["permission"]
        permission = Permission(**{**allowed, "allow": tuple(allowed["allow"])})
        return cls(
            values["study"],
            Spec.from_json(values["spec"]),
            permission,
            values["data_dir"],
            values["method"],
            values["arguments"],
            values["data"],
        )

    def call(self) -> Any:
        """Call the method here.

        Raises:
            ConfigurationError: The objective cannot be loaded, has no such method, or other data.
        """
        objective = self.spec.load(self.data_dir, self.permission)
        method = getattr(objective, self.method, None)
        if method is None:
            raise ConfigurationError(
                f"the objective {self.spec.objective!r} has no method {self.method}(), which "
                "makes a model again from its file; KerasObjective has one"
            )
        here = registry.data_of(objective)
        if here is not None and self.data is not None:
            drift.of_data(self.study, here, self.data, allowed=self.permission.drift)
        paths = ("path", "folder")
        given = {k: Path(v) if k in paths else v for k, v in self.arguments.items()}
        result = method(**given)
        return str(result) if isinstance(result, Path) else result


def main() -> None:
    """Run the task of standard input."""
    answer = Path(sys.argv[1])
    task = Task.from_json(json.load(sys.stdin))
    try:
        found = {"result": task.call()}
    except StudyhallError as error:
        found = {"error": str(error), "exit_code": error.exit_code}
    except Exception as error:  # the objective's code
        code = 2 if getattr(error, "cause", None) == "configuration" else 1
        line = next(iter(str(error).splitlines()), "")
        found = {"error": line or type(error).__name__, "exit_code": code}
    partial = answer.with_suffix(".partial")
    partial.write_text(json.dumps(found))
    partial.replace(answer)


if __name__ == "__main__":
    main()
