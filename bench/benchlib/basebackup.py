"""pgark's incremental backup beside PostgreSQL's own, and the restore of the chain of increments beside pg_combinebackup.

As the case incr, on a cluster of half the size: full copies of it lie side by side, because PostgreSQL's own backup does not
compress. Of each backup the server's part is measured too: there its walsender does the reading.

Invariant: what either tool restores is compared with its copy of the cluster byte by byte in the warm-up round, by names and
sizes in the others. PostgreSQL may differ in visibility maps alone, and the report says in how many files it did.
"""
from dataclasses import dataclass, field, replace
from pathlib import Path

from . import cluster, incr, newer
from .measure import Sample, server_read_bytes
from .rounds import Results, check_restored, differing_files, measured, record
from .settings import BenchError, Settings
from .tools import BaseBackup, Pgark, PgBackRest, Tool, empty_dir

VISIBILITY_MAP = "_vm"


@dataclass
class Facts:
    """What the report says of the case beside its figures."""
    server: str
    versions: list[str]
    scale: int
    docs_mb: int
    data_bytes: int
    commands: list[list] = field(default_factory=list)
    differing: dict[str, list[str]] = field(default_factory=dict)  # by tool, of the files compared in the warm-up round


def own_settings(s: Settings) -> Settings:
    return replace(newer.server(s), scale=max(1, s.scale // 2), docs_mb=s.docs_mb // 2)


def run_basebackup(s: Settings, results: Results) -> Facts:
    own = own_settings(s)
    cluster.make(own)
    used = [*[Pgark] * (Pgark.name in s.tools), *[BaseBackup] * (PgBackRest.name in s.tools)]
    tools = [tool(own) for tool in used]
    facts = Facts(server=cluster.sql(own, "SHOW server_version"), versions=[tool.version() for tool in tools], scale=own.scale,
                  docs_mb=own.docs_mb, data_bytes=cluster.size_bytes(own.cluster, skip="pg_wal"))

    def restore(copy: Settings, tool: Tool, number: int) -> None:
        record(copy, results, number, "basebackup restore", tool.name, restore_chain(copy, tool, number, facts))
    try:
        incr.rounds_on_copies(own, "basebackup", used, results, backup, restore)
    finally:
        for tool in tools:
            empty_dir(own, tool.repository)
    return facts


def backup(s: Settings, tool: Tool) -> tuple[Sample, dict[str, int]]:
    cluster.wait_summarized(s)
    server = cluster.postmaster_pid(s)
    before = server_read_bytes(server)
    sample, facts = incr.increment(s, tool)
    return sample, facts | {"read_all": sample.read + server_read_bytes(server) - before}


def restore_chain(s: Settings, tool: Tool, number: int, facts: Facts) -> Sample:
    to = s.work / f"restored-{tool.name}"
    empty_dir(s, to)
    cluster.warm(tool.repository)
    sample = measured(s, tool, "restore", tool.restore(to))
    check_restored(s.cluster, to, compare_bytes=False)
    if number == 0:
        facts.differing[tool.name] = compare(s, tool, to)
        facts.commands += [tool.backup("incr"), tool.restore(to)]
    empty_dir(s, to)
    return sample


def compare(s: Settings, tool: Tool, to: Path) -> list[str]:
    differ = differing_files(s.cluster, to)
    if unexpected := [name for name in differ if tool.name != BaseBackup.name or not name.endswith(VISIBILITY_MAP)]:
        raise BenchError(f"{tool.name} restored files that differ from the cluster: {unexpected[:5]}")
    return differ
