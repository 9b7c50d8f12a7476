"""The order of things: rounds in which every tool backs up, then every tool restores, each in turn.

Invariant: a figure counts only if the restore of that round gave back the files of the cluster. Round 0 is a warm-up: not
counted, and there the restored bytes are compared with the source.
"""
import filecmp
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from . import cluster
from .measure import Sample, measure
from .settings import BenchError, Settings
from .shell import account, own_dir, say
from .tools import Tool, empty_dir

# Caches that a server writes for itself, and no backup needs to carry.
NOT_COMPARED = {"pg_internal.init"}


@dataclass
class Results:
    """Counted samples by (operation, tool), in the order of the rounds; stored bytes likewise, by tool."""
    samples: dict[tuple[str, str], list[Sample]] = field(default_factory=dict)
    stored: dict[str, list[int]] = field(default_factory=dict)


def run_rounds(s: Settings, tools: list[Tool]) -> Results:
    results = Results()
    try:
        for number in range(s.runs + 1):
            say("warm-up round" if number == 0 else f"round {number} of {s.runs}")
            one_round(s, tools, number, results)
    finally:
        cluster.set_archive_command(s, "/bin/true")
    return results


def one_round(s: Settings, tools: list[Tool], number: int, results: Results) -> None:
    ordered = tools if number % 2 == 0 else tools[::-1]  # neither always runs on the heels of the other
    backups_measured = "backup" in s.operations
    if backups_measured or number == 0:
        for tool in ordered:
            sample, stored = backup(s, tool)
            record(s, results, number if backups_measured else 0, "backup", tool, sample, stored)
    if "restore" in s.operations:
        for tool in ordered:
            record(s, results, number, "restore", tool, restore(s, tool, number), None)


def record(s: Settings, results: Results, number: int, operation: str, tool: Tool, sample: Sample, stored: int | None) -> None:
    say(f"  {operation:7} {tool.name:10} wall {sample.wall:7.2f}  cpu {sample.cpu:7.2f} (server {sample.server_cpu:.2f})  "
        f"memory {sample.memory / 1e6:.0f} MB" + (f"  stored {stored / 1e6:.1f} MB" if stored is not None else ""))
    line = {"at": int(time.time()), "round": number, "operation": operation, "tool": tool.name, "cluster": s.cluster.name,
            "jobs": s.jobs, "stored": stored} | asdict(sample)
    with (s.work / "results.jsonl").open("a") as f:
        f.write(json.dumps(line) + "\n")
    if number:
        results.samples.setdefault((operation, tool.name), []).append(sample)
        if stored is not None:
            results.stored.setdefault(tool.name, []).append(stored)


def measured(s: Settings, tool: Tool, operation: str, cmd: list) -> Sample:
    log = own_dir(s, s.work / "logs") / f"{tool.name}-{operation}.log"
    return measure(cmd, log, cluster.postmaster_pid(s), settle=lambda: cluster.wait_archived(s),
                   env=s.environment(), cwd=s.work, **account(s))


def backup(s: Settings, tool: Tool) -> tuple[Sample, int]:
    tool.create()
    cluster.set_archive_command(s, tool.archive_command())
    cluster.warm(s.cluster)
    sample = measured(s, tool, "backup", tool.backup())
    return sample, cluster.size_bytes(tool.repository)


def restore(s: Settings, tool: Tool, number: int) -> Sample:
    to = s.work / f"restored-{tool.name}"
    empty_dir(s, to)
    cluster.warm(tool.repository)
    sample = measured(s, tool, "restore", tool.restore(to))
    check_restored(s.cluster, to, compare_bytes=number == 0)
    empty_dir(s, to)
    return sample


def check_restored(source: Path, restored: Path, compare_bytes: bool) -> None:
    """The tables came back: the same files of the same size and, when asked, the same bytes."""
    names = relation_files(source)
    if names != relation_files(restored):
        differ = sorted(names.items() ^ relation_files(restored).items())[:5]
        raise BenchError(f"{restored} is not the cluster that was backed up: {differ}")
    if not (restored / "global" / "pg_control").is_file():
        raise BenchError(f"{restored} has no pg_control")
    for name in names if compare_bytes else ():
        if not filecmp.cmp(source / name, restored / name, shallow=False):
            raise BenchError(f"{restored / name} differs from the source")


def relation_files(data: Path) -> dict[str, int]:
    found = (p for p in (data / "base").rglob("*") if p.is_file() and p.name not in NOT_COMPARED and "pgsql_tmp" not in str(p))
    return {str(p.relative_to(data)): p.stat().st_size for p in found}
