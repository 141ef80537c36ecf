"""One pool of a history: ``pool_process.py DATABASE_URL HOME STUDY WORKERS LEASE_SECONDS``."""

from __future__ import annotations

import sys
from pathlib import Path

from service import Hall, Settings
from service.errors import StudyhallError
from service.studies.permission import Permission
from service.workers.devices import Device
from service.workers.outage import patiently
from service.workers.pool import Pool

PATIENCE = 60.0


def main() -> int:
    url, home, name, workers, seconds = sys.argv[1:]
    settings = Settings(url, Path(home), float(seconds), PATIENCE)
    hall = patiently(lambda: Hall(settings), PATIENCE)
    study = patiently(lambda: hall.study(name), PATIENCE)
    pool = Pool(
        hall,
        study,
        [Device("cpu", 1)] * int(workers),
        lambda line: print(line, flush=True),
        permission=Permission(("history_objective",)),
    )
    try:
        return pool.run()
    except StudyhallError as error:
        print(f"error: {error}", flush=True)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
