"""The order of things: rounds in which every tool backs up, then every tool restores, each in turn. The other cases keep
the same order and record with the same functions.

Invariant: a figure counts only if the restore of that round gave back the files of the cluster. Round 0 is a warm-up: not
counted, and there the restored bytes are compared with the source.
"""
import filecmp
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Iterator

from . import cluster
from .measure import Sample, measure
from .settings import BenchError, Settings
from .shell import account, own_dir, say
from .tools import Tool, archive_command, empty_dir

# Caches that a server writes for itself, and no backup needs to carry.
NOT_COMPARED = {"pg_internal.init"}


@dataclass
class Results:
    """Counted runs by (operation, tool), in the order of the rounds: samples, and further facts of each in bytes."""
    samples: dict[tuple[str, str], list[Sample]] = field(default_factory=dict)
    facts: dict[tuple[str, str], list[dict[str, int]]] = field(default_factory=dict)

    def operations(self) -> list[str]:
        return list(dict.fromkeys(operation for operation, _ in self.samples))

    def tools(self, operation: str) -> list[str]:
        return [tool for of, tool in self.samples if of == operation]


def in_turn(s: Settings, case: str, tools: list) -> Iterator[tuple[int, list]]:
    """Rounds, numbered, with the order of the tools. Round 0 is a warm-up; neither tool always runs on the heels of the other."""
    for number in range(s.runs + 1):
        say(f"{case}, {'warm-up' if number == 0 else f'round {number} of {s.runs}'}")
        yield number, tools if number % 2 == 0 else tools[::-1]


def run_rounds(s: Settings, tools: list[Tool], results: Results) -> None:
    try:
        for number, ordered in in_turn(s, "backup and restore", tools):
            one_round(s, ordered, number, results)
    finally:
        cluster.set_archive_command(s, "/bin/true")


def one_round(s: Settings, tools: list[Tool], number: int, results: Results) -> None:
    backups_measured = "backup" in s.cases
    if backups_measured or number == 0:
        for tool in tools:
            sample = backup(s, tool)
            counted = number if backups_measured else 0
            record(s, results, counted, "backup", tool.name, sample, stored=cluster.size_bytes(tool.repository))
    if "restore" in s.cases:
        for tool in tools:
            record(s, results, number, "restore", tool.name, restore(s, tool, number))


def record(s: Settings, results: Results, number: int, operation: str, tool: str, sample: Sample, **facts: int) -> None:
    say(f"  {operation:14} {tool:16} wall {sample.wall:7.2f}  cpu {sample.cpu:7.2f} (server {sample.server_cpu:.2f})  "
        f"memory {sample.memory / 1e6:.0f} MB" + "".join(f"  {name} {value / 1e6:.1f} MB" for name, value in facts.items()))
    line = {"at": int(time.time()), "round": number, "operation": operation, "tool": tool, "cluster": s.cluster.name,
            "jobs": s.jobs} | facts | asdict(sample)
    with (s.work / "results.jsonl").open("a") as f:
        f.write(json.dumps(line) + "\n")
    if number:
        results.samples.setdefault((operation, tool), []).append(sample)
        results.facts.setdefault((operation, tool), []).append(facts)


def log_of(s: Settings, tool: Tool, operation: str) -> Path:
    return own_dir(s, s.work / "logs") / f"{tool.name}-{operation}.log"


def measured(s: Settings, tool: Tool, operation: str, cmd: list) -> Sample:
    return measure(cmd, log_of(s, tool, operation), cluster.postmaster_pid(s), settle=lambda: cluster.wait_archived(s),
                   env=s.environment(), cwd=s.work, **account(s))


def backup(s: Settings, tool: Tool) -> Sample:
    tool.create()
    cluster.set_archive_command(s, archive_command(tool))
    cluster.warm(s.cluster)
    return measured(s, tool, "backup", tool.backup())


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
    if compare_bytes and (names := differing_files(source, restored)):
        raise BenchError(f"{restored / names[0]} differs from the source")


def differing_files(source: Path, restored: Path) -> list[str]:
    """Of those whose names and sizes are the same."""
    return [name for name in relation_files(source) if not filecmp.cmp(source / name, restored / name, shallow=False)]


def relation_files(data: Path) -> dict[str, int]:
    found = (p for p in (data / "base").rglob("*") if p.is_file() and p.name not in NOT_COMPARED and "pgsql_tmp" not in str(p))
    return {str(p.relative_to(data)): p.stat().st_size for p in found}
