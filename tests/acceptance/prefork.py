"""Runs `studyhall` commands in forks of a process that has imported it: a start takes no second.

Reads a JSON object a line: ``words``, ``folder``, ``environment``, and ``out`` and ``err``, files
for the output. Writes the exit code of each command.
"""

from __future__ import annotations

import json
import os
import sys

from service.__main__ import main


def become(request: dict[str, object]) -> None:
    """Take the place of a process that was started with this request."""
    os.chdir(str(request["folder"]))
    os.environ.clear()
    os.environ.update(request["environment"])  # type: ignore[call-overload]
    for number, name in ((1, "out"), (2, "err")):
        descriptor = os.open(str(request[name]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
        os.close(descriptor)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    sys.argv = ["studyhall", *request["words"]]  # type: ignore[misc]
    sys.path[0] = str(request["folder"])  # as `python -m` does


def serve() -> None:
    """Answer requests until the input ends."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            become(json.loads(line))
            main()
            return
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(code, flush=True)


if __name__ == "__main__":
    serve()
