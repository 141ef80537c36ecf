"""The embedded PostgreSQL: concurrent starts, killed processes, unusual paths, errors."""

from __future__ import annotations

import fcntl
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy
from databases import temporary_folder

from service import Budget, Hall, Settings, Spec, database
from service.cli.db import stop
from service.cli.options import Context
from service.database import cluster, embedded, postgres, postmaster
from service.errors import ConfigurationError, DatabaseError
from service.workers import presence
from service.workers.presence import WorkerProcess

START_PROGRAM = """
import sys, pathlib
from service.database import embedded
print(embedded.start(pathlib.Path(sys.argv[1])))
"""
ROOT = os.geteuid() == 0
UNUSUAL_PATHS = {
    "long": "/".join(["a" * 60] * 3),
    "quotes": 'it\'s "here", $HOME: 100% `true`',
    "newline": "two\nlines",
    "accents": "données-été",
}


@pytest.fixture(scope="module")
def stopped_home() -> Iterator[Path]:
    """A home with a cluster and no server. Tests copy it: that is faster than initdb."""
    with temporary_folder() as folder:
        embedded.start(folder)
        embedded.stop(folder)
        yield folder


@pytest.fixture
def home(bare_home: Path, stopped_home: Path) -> Path:
    subprocess.run(["cp", "-a", stopped_home / "postgres", bare_home], check=True)
    (bare_home / "postgres/server.log").unlink()
    return bare_home


def start_in_process(home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", START_PROGRAM, str(home)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def postmaster_pid(home: Path) -> int:
    return int((home / "postgres/data/postmaster.pid").read_text().splitlines()[0])


def query(url: str, statement: str) -> str:
    engine = database.create_engine(url)
    with engine.begin() as connection:
        result = str(connection.execute(sqlalchemy.text(statement)).scalar_one())
    engine.dispose()
    return result


def store_word(url: str) -> None:
    query(url, "CREATE TABLE words AS SELECT 'word' AS word; SELECT word FROM words")


def read_word(url: str) -> str:
    return query(url, "SELECT word FROM words")


def test_find_returns_the_url_of_a_running_server_and_a_restart_keeps_its_data(home: Path) -> None:
    assert embedded.find(home) is None
    url = embedded.start(home)
    store_word(url)
    assert embedded.find(home) == embedded.start(home) == url
    assert embedded.stop(home) is True
    assert embedded.find(home) is None
    assert embedded.stop(home) is False
    assert read_word(embedded.start(home)) == "word"


def test_find_and_stop_create_nothing(tmp_path: Path) -> None:
    home = tmp_path / "nobody"
    assert embedded.find(home) is None
    assert embedded.stop(home) is False
    assert not home.exists()


def test_many_starts_at_once_start_one_server(bare_home: Path) -> None:
    processes = [start_in_process(bare_home) for _ in range(6)]
    ends = [process.communicate(timeout=120) for process in processes]
    assert {error for _, error in ends} == {""}
    assert {out.strip() for out, _ in ends} == {embedded.find(bare_home)}
    launches = (bare_home / "postgres/server.log").read_text().count("listening on Unix socket")
    assert launches == 1


def test_the_server_outlives_its_starter_and_has_a_session_of_its_own(home: Path) -> None:
    first = start_in_process(home)
    url = first.communicate(timeout=120)[0].strip()
    os.kill(postmaster_pid(home), 0)
    assert os.getsid(postmaster_pid(home)) not in (first.pid, os.getsid(0))
    assert query(url, "SELECT 1") == "1"


def test_a_killed_server_starts_again_with_all_data(home: Path) -> None:
    store_word(embedded.start(home))
    os.kill(postmaster_pid(home), signal.SIGKILL)
    assert read_word(embedded.start(home)) == "word"


def test_a_killed_server_can_be_stopped(home: Path) -> None:
    embedded.start(home)
    os.kill(postmaster_pid(home), signal.SIGKILL)
    embedded.stop(home)
    assert embedded.stop(home) is False
    with (home / "postgres/alive").open() as server_lock:
        fcntl.flock(server_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_process_id_that_another_process_has_now_is_ignored(home: Path) -> None:
    store_word(embedded.start(home))
    embedded.stop(home)
    data = home / "postgres/data"
    account = postgres.owner(data)
    with subprocess.Popen(["sleep", "60"], **postgres.run_as(account)) as other:
        stale = f"{other.pid}\n{data}\n1\n5432\n.\n\n1 1\nready\n"
        (data / "postmaster.pid").write_text(stale)
        assert embedded.find(home) is None
        assert read_word(embedded.start(home)) == "word"
        assert other.poll() is None
        other.kill()


def test_a_start_that_is_killed_leaves_no_incomplete_cluster(bare_home: Path) -> None:
    for delay in (0.25, 0.45, 0.65):
        process = start_in_process(bare_home)
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert query(embedded.start(bare_home), "SELECT current_database()") == "studyhall"
    assert list((bare_home / "postgres").glob("new-*")) == []


@pytest.mark.parametrize("kind", UNUSUAL_PATHS)
def test_the_home_may_have_an_unusual_path(bare_home: Path, kind: str) -> None:
    path = bare_home / UNUSUAL_PATHS[kind]
    try:
        url = embedded.start(path)
        assert query(url, "SELECT 1") == "1"
        assert re.fullmatch(r"[A-Za-z0-9+:/@?=._-]+", url)
        assert embedded.start(path) == url
    finally:
        assert embedded.stop(path)
    assert not cluster.Folder(path).link.is_symlink()


def test_a_link_with_another_target_is_refused(bare_home: Path) -> None:
    long = bare_home / UNUSUAL_PATHS["long"]
    embedded.start(long)
    link = cluster.Folder(long).link
    link.unlink()
    link.symlink_to("/nowhere")
    try:
        with pytest.raises(DatabaseError, match="belongs to somebody else"):
            embedded.start(long)
    finally:
        link.unlink()
        assert embedded.stop(long)


def test_only_the_owner_can_reach_the_socket(home: Path) -> None:
    embedded.start(home)
    status = (home / "postgres/data").stat()
    assert status.st_mode & 0o777 == 0o700
    assert (status.st_uid == os.getuid()) is not ROOT
    assert query(embedded.start(home), "SHOW listen_addresses") == ""


def reaches(uid: int, path: str) -> bool:
    """Whether a process of this account connects to a socket and gets an answer."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)
                client.sendall(postmaster.SSL_REQUEST)
                os._exit(0 if client.recv(1) in (b"N", b"S") else 1)
        except PermissionError:
            os._exit(13)
        finally:
            os._exit(99)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 13)
    return code == 0


@pytest.mark.skipif(not ROOT, reason="only root becomes another account")
def test_other_accounts_of_the_machine_cannot_reach_the_socket(home: Path) -> None:
    """Every folder above the cluster is open here: the cluster's own permissions keep them out."""
    embedded.start(home)
    folder = cluster.Folder(home)
    for place in (home, folder.root):
        place.chmod(0o755)
    own = postgres.owner(folder.data)
    assert own is not None
    others = [54321, *(pwd.getpwnam(n).pw_uid for n in ("nobody", "postgres") if exists(n))]
    path = f"{folder.data}/{postmaster.SOCKET}"
    assert reaches(own.uid, path)
    inside = f"/proc/{postmaster_pid(home)}/cwd/{postmaster.SOCKET}"
    for uid in others:
        assert uid == own.uid or not (reaches(uid, path) or reaches(uid, inside))


def exists(name: str) -> bool:
    return any(entry.pw_name == name for entry in pwd.getpwall())


@pytest.mark.skipif(not ROOT, reason="permissions do not bind an owner")
def test_root_changes_no_permission(bare_home: Path) -> None:
    hidden = bare_home / "hidden"
    hidden.mkdir(mode=0o700)
    try:
        embedded.start(hidden)
        assert hidden.stat().st_mode & 0o777 == 0o700
        assert (hidden / "postgres").stat().st_mode & 0o777 == 0o700
    finally:
        embedded.stop(hidden)


@pytest.mark.skipif(not ROOT, reason="only root runs the server under another account")
def test_programs_that_the_account_cannot_execute_are_copied(
    bare_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare_home.chmod(0o755)
    monkeypatch.setattr(postgres, "COPIES", bare_home / "shared")
    monkeypatch.setattr(postgres, "_can_run", lambda *_: False)
    assert query(embedded.start(bare_home), "SELECT 1") == "1"
    executable = os.readlink(f"/proc/{postmaster_pid(bare_home)}/exe")
    assert executable.startswith(str(bare_home / "shared"))


def test_the_server_has_our_configuration(home: Path) -> None:
    url = embedded.start(home)
    expected = {
        "max_connections": "200",
        "fsync": "on",
        "synchronous_commit": "on",
        "data_checksums": "on",
        "dynamic_shared_memory_type": "mmap",
        "TimeZone": "UTC",
        "unix_socket_directories": ".",
        "server_encoding": "UTF8",
    }
    assert {name: query(url, f"SHOW {name}") for name in expected} == expected


def test_the_clients_environment_does_not_reach_the_server(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPORT", "5999")
    monkeypatch.setenv("PGDATA", "/nowhere")
    monkeypatch.setenv("LC_ALL", "xx_XX.nonsense")
    assert query(embedded.start(home), "SHOW port") == "5432"


def test_a_configuration_error_gives_one_line_with_the_reason_and_the_log(home: Path) -> None:
    embedded.start(home)
    embedded.stop(home)
    with (home / "postgres/data/postgresql.conf").open("a") as configuration:
        configuration.write("max_connections = many\n")
    with pytest.raises(DatabaseError) as caught:
        embedded.start(home)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("the embedded PostgreSQL cannot be started: ")
    assert "postgresql.conf" in line and line.endswith(f": see {home}/postgres/server.log")


def test_a_folder_that_is_no_cluster_is_refused_and_not_changed(bare_home: Path) -> None:
    precious = bare_home / "postgres/data/precious"
    precious.parent.mkdir(parents=True)
    precious.write_text("mine")
    with pytest.raises(DatabaseError, match="exists but is no PostgreSQL cluster"):
        embedded.start(bare_home)
    assert precious.read_text() == "mine"


def test_a_home_that_cannot_be_created_gives_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatabaseError, match="Not a directory: name another home"):
        embedded.start(tmp_path / "file")


def test_the_error_for_a_server_on_another_machine_names_that_machine(home: Path) -> None:
    """On a network file system: the other machine has the lock, and its socket does not answer."""
    folder = cluster.Folder(home)
    embedded.start(home)
    embedded.stop(home)
    folder.server_lock.write_text("host-far-away")
    pid_file = folder.data / "postmaster.pid"
    pid_file.write_text("1\nx\n1\n5432\n.\n\n1 1\nready\n")
    with folder.server_lock.open() as server_lock:
        fcntl.flock(server_lock, fcntl.LOCK_EX)
        with pytest.raises(DatabaseError, match="runs on host-far-away and cannot be reached"):
            embedded.start(home)
    pid_file.unlink()
    folder.server_lock.write_text(socket.gethostname())


def test_a_cluster_of_an_unknown_version_is_refused(bare_home: Path) -> None:
    data = bare_home / "postgres/data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("9\n")
    with pytest.raises(DatabaseError, match="PostgreSQL 9 needs the package"):
        embedded.start(bare_home)
    shutil.rmtree(data)


def test_find_takes_less_than_50_ms(home: Path) -> None:
    embedded.start(home)
    began = time.perf_counter()
    for _ in range(20):
        assert embedded.find(home)
    assert (time.perf_counter() - began) / 20 < 0.05


def test_a_server_that_workers_use_is_not_stopped(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hall = Hall(Settings(home=home))
    study = hall.create("it's used", Spec("mnist-mlp"), Budget(3))
    for worker in ("w1", "w2"):
        presence.join(hall.engine, study.study_id, WorkerProcess(worker, "here", 7, "cpu"))
    context = Context(hall.settings)
    with pytest.raises(ConfigurationError) as error:
        stop.main([], obj=context, standalone_mode=False)
    line = str(error.value)
    assert "2 workers use this server, for it's used: let them end first" in line
    assert """(studyhall stop 'it'"'"'s used'), or add --yes""" in line
    assert embedded.find(home) is not None
    presence.leave(hall.engine, "w1")
    presence.leave(hall.engine, "w2")
    stop.main([], obj=context, standalone_mode=False)
    assert embedded.find(home) is None and "stopped" in capsys.readouterr().out
