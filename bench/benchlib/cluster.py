"""The measured cluster: pgbench plus a table of text and jsonb, page checksums on, on a unix socket only.

Invariant: a cluster without its mark is half made and is made again; one with the mark is never written to by a run,
apart from what a backup itself causes. What changes data works on a copy (`make_copy`) or on a cluster of its own.
"""
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from .settings import BenchError, Settings
from .shell import account, own_dir, run, say

SEGMENT_NAME = re.compile(r"[0-9A-F]{24}")
READY_MARK = "bench-ready"
COPY_PREFIX = "copy-"
WAIT_SECONDS_MAX = 300
POLL_SECONDS = 0.05
CONF = """
port = {port}
listen_addresses = ''
unix_socket_directories = '{sock}'
shared_buffers = 1GB
maintenance_work_mem = 512MB
max_wal_size = 8GB
checkpoint_timeout = 30min
wal_level = replica
max_wal_senders = 10
archive_mode = on
archive_command = '/bin/true'
autovacuum = off
"""
DOCS_TABLE = """CREATE TABLE docs(id bigint PRIMARY KEY, at timestamptz NOT NULL, kind text NOT NULL,
                                  body text NOT NULL, meta jsonb NOT NULL)"""


def make(s: Settings) -> None:
    mark = s.cluster.parent / f"{s.cluster.name}.{READY_MARK}"
    own_dir(s, s.work, 0o755)
    own_dir(s, s.work / "sock")
    if mark.exists() and s.cluster.exists():
        start(s)
        return
    stop(s)
    shutil.rmtree(s.cluster, ignore_errors=True)
    say(f"making the cluster {s.cluster.name}")
    own_dir(s, s.cluster)
    run(s, ["initdb", "-D", s.cluster, "-U", "postgres", "-A", "trust", "--data-checksums", "--locale=C.UTF-8", "-E", "UTF8"])
    with (s.cluster / "postgresql.conf").open("a") as f:
        f.write(CONF.format(port=s.port, sock=s.work / "sock"))
    start(s)
    sql(s, "CREATE DATABASE bench")
    say(f"pgbench scale {s.scale}")
    run(s, ["pgbench", "-i", "-q", "-s", s.scale, "-I", "dtGvp", "bench"])
    load_docs(s)
    sql(s, "VACUUM (ANALYZE, FREEZE)", "CHECKPOINT", database="bench")
    drop_old_wal(s)
    start(s)
    mark.touch()


def load_docs(s: Settings) -> None:
    say(f"{s.docs_mb} MB of text and jsonb")
    sql(s, DOCS_TABLE, database="bench")
    rows = s.docs_mb * 1000
    halves = [span for span in ((1, rows // 2), (rows // 2 + 1, rows)) if span[0] <= span[1]]
    loads = [copy_docs(s, *span) for span in halves]
    if [p.wait() for pair in loads for p in pair].count(0) != 2 * len(loads):
        raise BenchError("loading the table docs failed; the messages are above")
    sql(s, "CREATE INDEX docs_kind_at ON docs(kind, at)", database="bench")


def copy_docs(s: Settings, first: int, last: int) -> tuple[subprocess.Popen, subprocess.Popen]:
    script = Path(__file__).with_name("docs_rows.py")
    rows = subprocess.Popen([sys.executable, script, str(first), str(last)], stdout=subprocess.PIPE)
    copy = subprocess.Popen(["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", "bench", "-c", "COPY docs FROM STDIN"],
                            env=s.environment(), cwd=s.work, stdin=rows.stdout, **account(s))
    rows.stdout.close()  # psql holds the only reading end: if it fails, the generator ends too
    return rows, copy


def start(s: Settings) -> None:
    """One server at a time: clusters of other sizes share the port and would take memory from the one measured."""
    stop_others(s)
    if not is_running(s, s.cluster):
        run(s, ["pg_ctl", "-D", s.cluster, "-w", "-t", WAIT_SECONDS_MAX, "-l", s.work / "server.log", "start"])


def stop_others(s: Settings) -> None:
    for pattern in ("cluster-*", f"{s.copies.name}/{COPY_PREFIX}*"):
        for other in s.work.glob(f"{pattern}/postmaster.pid"):
            if other.parent != s.cluster:
                stop(s, other.parent)


def make_copy(s: Settings, name: str) -> Settings:
    """A stopped copy that may be changed. Of the WAL it has the one segment that a cleanly stopped server starts from."""
    stop(s)
    own_dir(s, s.copies, 0o755)
    data = s.copies / f"{COPY_PREFIX}{name}"
    shutil.rmtree(data, ignore_errors=True)
    own_dir(s, data)
    own_dir(s, data / "pg_wal")
    run(s, ["cp", "-a", *(p for p in s.cluster.iterdir() if p.name != "pg_wal"), data])
    run(s, ["cp", "-a", s.cluster / "pg_wal" / first_segment(s), data / "pg_wal"])
    return replace(s, data=data)


def drop_old_wal(s: Settings) -> None:
    """What loading leaves in pg_wal is more than the data. Leaves the server stopped."""
    stop(s)
    needed = first_segment(s)
    for file in (s.cluster / "pg_wal").iterdir():
        if SEGMENT_NAME.fullmatch(file.name) and file.name != needed:
            file.unlink()


def first_segment(s: Settings) -> str:
    """The only one a cleanly stopped server needs to start."""
    return redo_segment(run(s, ["pg_controldata", "-D", s.cluster]))


def redo_segment(control: str) -> str:
    found = re.search(r"^Latest checkpoint's REDO WAL file:\s+([0-9A-F]{24})$", control, re.M)
    if not found or not re.search(r"^Database cluster state:\s+shut down$", control, re.M):
        raise BenchError(f"the cluster to copy is not stopped cleanly:\n{control}")
    return found[1]


def remove_copy(copy: Settings) -> None:
    stop(copy)
    shutil.rmtree(copy.cluster)


def stop(s: Settings, data: Path | None = None) -> None:
    data = data or s.cluster
    if is_running(s, data):
        run(s, ["pg_ctl", "-D", data, "-w", "-t", WAIT_SECONDS_MAX, "-m", "fast", "stop"])


def is_running(s: Settings, data: Path) -> bool:
    done = subprocess.run([str(s.server_bin / "pg_ctl"), "-D", str(data), "status"], stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL, check=False, **account(s))
    return done.returncode == 0


def postmaster_pid(s: Settings) -> int:
    return int((s.cluster / "postmaster.pid").read_text().split()[0])


def sql(s: Settings, *statements: str, database: str = "postgres") -> str:
    commands = [part for statement in statements for part in ("-c", statement)]
    return run(s, ["psql", "-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", "-d", database, *commands]).strip()


def wait_until(what: str, is_true) -> None:
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not is_true():
        if time.monotonic() > deadline:
            raise BenchError(f"gave up after {WAIT_SECONDS_MAX} s waiting for {what}; see the server's log")
        time.sleep(POLL_SECONDS)


def wait_archived(s: Settings) -> None:
    """Until the archiver has nothing to do, so that its work is counted in the run that caused it."""
    status = s.cluster / "pg_wal" / "archive_status"
    wait_until("the archiver", lambda: not any(status.glob("*.ready")))


def wait_summarized(s: Settings) -> None:
    """Until the server's own summary of changed blocks, where it makes one, reaches the last checkpoint; for the same reason."""
    if sql(s, "SHOW summarize_wal") == "on":
        done = "SELECT summarized_lsn >= redo_lsn FROM pg_get_wal_summarizer_state(), pg_control_checkpoint()"
        wait_until("the WAL summarizer", lambda: sql(s, done) == "t")


def set_archive_command(s: Settings, command: str) -> None:
    """Takes effect with nothing waiting: what an earlier run left goes nowhere near the new repository."""
    apply_archive_command(s, "/bin/true")
    wait_archived(s)
    apply_archive_command(s, command)


def apply_archive_command(s: Settings, command: str) -> None:
    store_archive_command(s, command)
    sql(s, "SELECT pg_reload_conf()")
    wait_until("the new archive_command", lambda: sql(s, "SHOW archive_command") == command)


def store_archive_command(s: Settings, command: str) -> None:
    """Takes effect with the next reload."""
    quoted = command.replace("'", "''")
    sql(s, f"ALTER SYSTEM SET archive_command = '{quoted}'")


def warm(path: Path) -> int:
    """Reads every file once, so that each run starts from the page cache. Returns the bytes read."""
    total = 0
    for file in regular_files(path):
        try:
            total += warm_file(file)
        except FileNotFoundError:
            continue  # a running server removes files: an archived segment's mark, a temporary statistics file
    return total


def warm_file(file: Path) -> int:
    total, buffer = 0, bytearray(1 << 20)
    with file.open("rb", buffering=0) as f:
        while count := f.readinto(buffer):
            total += count
    return total


def regular_files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file() and not p.is_symlink())


def size_bytes(path: Path, skip: str | None = None) -> int:
    """Apparent bytes of the files under a directory, without those in a directory named `skip`."""
    total = 0
    for file in regular_files(path):
        if skip not in file.relative_to(path).parts[:-1]:
            try:
                total += file.stat().st_size
            except FileNotFoundError:
                continue  # as in warm
    return total
