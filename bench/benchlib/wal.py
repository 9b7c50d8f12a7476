"""Archiving: PostgreSQL's own archiver drains a backlog of real segments, made once and kept, with each tool's command.

Invariant: every tool drains the same segments, from the reload that sets its command to the last `.done`.
"""
from dataclasses import replace
from pathlib import Path

from . import cluster
from .detached import Detached
from .measure import Sample, Start
from .rounds import Results, in_turn, record
from .settings import BenchError, Settings
from .shell import own_dir, run, say
from .tools import Copy, PgBackRest, PgBackRestAsync, Tool, archive_command, make_tools

SCALE = 50  # of the cluster that makes the WAL: big enough for page images, small enough to be made in seconds
CLIENTS, TRANSACTIONS = 2, 25_000
SPARE_SEGMENTS = 96  # the last batch may make more than what was missing
LIST = "bench-segments"
BATCHES_MAX = 400


def wal_cluster(s: Settings) -> Settings:
    """A running cluster whose pg_wal holds the segments, all of them archived as far as it knows."""
    own_dir(s, s.copies, 0o755)
    own = replace(s, scale=SCALE, docs_mb=0, data=s.copies / f"{cluster.COPY_PREFIX}wal-pg{s.major}")
    cluster.make(own)
    if len(segments(own)) < s.segments:
        make_segments(own)
    mark_archived(own)
    return own


def segments(s: Settings) -> list[str]:
    """The names of the segments to archive: those on the list, as long as all of them are there."""
    listed = s.cluster / LIST
    names = listed.read_text().split()[:s.segments] if listed.exists() else []
    return names if all((s.cluster / "pg_wal" / name).exists() for name in names) else []


def make_segments(s: Settings) -> None:
    """pgbench with a checkpoint after each batch: page images and small records, as a busy server writes them."""
    say(f"making {s.segments} segments of WAL")
    cluster.set_archive_command(s, "")
    kept = (s.segments + SPARE_SEGMENTS) * 16
    cluster.sql(s, f"ALTER SYSTEM SET wal_keep_size = '{kept}MB'", "ALTER SYSTEM SET synchronous_commit = off",
                "SELECT pg_reload_conf()", "SELECT pg_switch_wal()", "CHECKPOINT")
    first = cluster.sql(s, "SELECT pg_walfile_name(pg_current_wal_lsn())")
    for _ in range(BATCHES_MAX):
        run(s, ["pgbench", "-n", "-c", CLIENTS, "-j", CLIENTS, "-t", TRANSACTIONS, "bench"])
        cluster.sql(s, "CHECKPOINT")
        if len(names := ready(s, first)) >= s.segments:
            break
    else:
        raise BenchError(f"{BATCHES_MAX} batches of pgbench made only {len(names)} segments of WAL")
    (s.cluster / LIST).write_text("\n".join(names[:s.segments]) + "\n")


def status(s: Settings) -> Path:
    return s.cluster / "pg_wal" / "archive_status"


def ready(s: Settings, first: str = "") -> list[str]:
    names = (p.stem for p in status(s).glob("*.ready"))
    return sorted(name for name in names if cluster.SEGMENT_NAME.fullmatch(name) and name >= first)


def mark_archived(s: Settings) -> None:
    """The server archives nothing until it has a command again."""
    cluster.apply_archive_command(s, "")
    for mark in status(s).glob("*.ready"):
        mark.rename(mark.with_suffix(".done"))


def mark_ready(s: Settings, names: list[str]) -> None:
    for name in names:
        (status(s) / f"{name}.done").rename(status(s) / f"{name}.ready")


def archivers(s: Settings) -> list[Tool | Copy]:
    return [*make_tools(s), *([PgBackRestAsync(s)] if PgBackRest.name in s.tools else []), Copy(s)]


def run_archive(s: Settings, results: Results) -> None:
    own = wal_cluster(s)
    names = segments(own)
    try:
        for number, ordered in in_turn(s, "archive", archivers(own)):
            for tool in ordered:
                drain_once(own, tool, names, number, results)
    finally:
        mark_archived(own)
        cluster.stop(own)


def drain_once(s: Settings, tool: Tool | Copy, names: list[str], number: int, results: Results) -> None:
    mark_archived(s)
    tool.create()
    mark_ready(s, names)
    cluster.warm(s.cluster / "pg_wal")
    sample = drain(s, archive_command(tool))
    record(s, results, number, "archive", tool.name, sample, stored=cluster.size_bytes(tool.repository))
    if tool.name == Copy.name:
        tool.create()  # it takes as much space as the segments themselves


def drain(s: Settings, command: str) -> Sample:
    cluster.store_archive_command(s, command)
    left_behind = Detached(cluster.postmaster_pid(s), s.work)
    start = Start.now(left_behind.postmaster)
    cluster.sql(s, "SELECT pg_reload_conf()")
    cluster.wait_until("the archiver", lambda: left_behind.look() >= 0 and not ready(s))
    taken = start.wall_and_machine()
    cluster.wait_until("what the archive command left behind", lambda: left_behind.look() == 0)
    return Sample(user=left_behind.seconds(), system=0.0, server_cpu=start.server_cpu(), rss_process=0, rss_tree=0, read=0, **taken)
