"""The account of root's embedded server: none that other programs run as."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from databases import temporary_folder

from service.database import postgres
from service.errors import DatabaseError

ROOT = os.geteuid() == 0


@pytest.fixture
def accounts(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the system have only these accounts."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    def only(**uids: int) -> None:
        def find(name: str) -> pwd.struct_passwd:
            return pwd.struct_passwd((name, "x", uids[name], uids[name], "", "/", "/bin/sh"))

        monkeypatch.setattr(pwd, "getpwnam", find)
        monkeypatch.setattr(pwd, "getpwuid", lambda uid: find("root"))

    return only


@pytest.mark.parametrize(
    ("uids", "uid"),
    [({"studyhall": 7, "postgres": 8, "nobody": 9}, 7), ({"postgres": 8, "nobody": 9}, 8)],
)
def test_an_account_of_its_own_comes_first(
    accounts: Callable[..., None], tmp_path: Path, uids: dict[str, int], uid: int
) -> None:
    accounts(root=0, **uids)
    found = postgres.choose_account(tmp_path)
    assert found is not None and found.uid == uid


def test_nobody_serves_only_where_no_other_program_runs_as_nobody(
    accounts: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts(root=0, nobody=9)
    monkeypatch.setattr(postgres, "others_run_as", lambda uid: False)
    found = postgres.choose_account(tmp_path)
    assert found is not None and found.uid == 9
    monkeypatch.setattr(postgres, "others_run_as", lambda uid: uid == 9)
    with pytest.raises(DatabaseError, match="useradd --system studyhall"):
        postgres.choose_account(tmp_path)


def test_postgres_serves_only_where_no_other_program_runs_as_postgres(
    accounts: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts(root=0, postgres=8, nobody=9)
    monkeypatch.setattr(postgres, "others_run_as", lambda uid: uid == 8)
    found = postgres.choose_account(tmp_path)
    assert found is not None and found.uid == 9


@pytest.mark.skipif(not ROOT, reason="only root starts a process of another account")
def test_another_postgresql_of_the_account_is_seen() -> None:
    uid = 54322
    sleep = shutil.which("sleep")
    assert sleep is not None
    with temporary_folder() as folder:
        folder.chmod(0o755)
        program = shutil.copy(sleep, folder / "postgres")
        process = subprocess.Popen([program, "60"], user=uid, cwd="/")
        try:
            assert Path(f"/proc/{process.pid}/comm").read_text() == "postgres\n"
            assert postgres.others_run_as(uid)
        finally:
            process.kill()
            process.wait()


@pytest.mark.skipif(not ROOT, reason="only root starts a process of another account")
def test_a_process_of_the_account_is_seen() -> None:
    uid = 54321
    assert not postgres.others_run_as(uid)
    sleep = ["/bin/sh", "-c", "echo 1; exec sleep 60"]
    process = subprocess.Popen(sleep, user=uid, cwd="/", stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline()
        assert postgres.others_run_as(uid)
    finally:
        process.kill()
        process.wait()
