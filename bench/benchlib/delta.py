"""Restore over a restored copy in which part of the biggest file was overwritten.

Invariant: a figure counts only if the files of the cluster came back byte by byte, in every round: their names and sizes,
which the damage leaves as they were, would prove nothing here.
"""
import os
from pathlib import Path

from . import cluster
from .rounds import Results, backup, check_restored, in_turn, measured, record
from .settings import Settings
from .shell import run, say
from .tools import Tool, empty_dir

DAMAGE_BYTES = 10 << 20


def run_delta(s: Settings, tools: list[Tool], results: Results) -> None:
    targets = {tool.name: s.work / f"restored-{tool.name}" for tool in tools}
    say("delta, a backup and a restore to start from")
    try:
        for tool in tools:
            backup(s, tool)
            empty_dir(s, targets[tool.name])
            run(s, tool.restore(targets[tool.name]))
        for number, ordered in in_turn(s, "delta", tools):
            for tool in ordered:
                one_restore(s, tool, targets[tool.name], number, results)
    finally:
        cluster.set_archive_command(s, "/bin/true")
        for to in targets.values():
            empty_dir(s, to)


def one_restore(s: Settings, tool: Tool, to: Path, number: int, results: Results) -> None:
    overwrite_start(biggest_file(to / "base"), DAMAGE_BYTES)
    cluster.warm(tool.repository)
    cluster.warm(to)
    record(s, results, number, "delta", tool.name, measured(s, tool, "delta", tool.restore(to, delta=True)))
    check_restored(s.cluster, to, compare_bytes=True)


def biggest_file(below: Path) -> Path:
    return max(cluster.regular_files(below), key=lambda p: p.stat().st_size)


def overwrite_start(file: Path, count: int) -> None:
    """With bytes that no compression or checksum takes for the old ones; the file keeps its length."""
    with file.open("r+b") as f:
        f.write(os.urandom(min(count, file.stat().st_size)))
