"""Latency of single calls: one segment pushed with no other ready, fetched, asked for in vain; beside a bare start.

The calls of the tools alternate. What is measured includes starting the process, as PostgreSQL pays for it too.
"""
import os
import subprocess
import time
from pathlib import Path
from typing import Callable

from . import cluster
from .settings import BenchError, Settings
from .shell import account, own_dir, say
from .tools import Tool, empty_dir, make_tools
from .wal import segments, wal_cluster

CALLS = 30
Latencies = dict[tuple[str, str], list[float]]  # milliseconds by (operation, tool)


def run_push(s: Settings) -> Latencies:
    own = wal_cluster(s)
    tools = make_tools(own)
    for tool in tools:
        tool.create()
    to = s.work / "fetched"
    empty_dir(s, to)
    found: Latencies = {}
    try:
        calls(own, tools, "one push", found, lambda tool, name: tool.push(f"pg_wal/{name}"))
        calls(own, tools, "one get", found, lambda tool, name: tool.get(name, to / f"{tool.name}-{name}"))
        check_fetched(own, tools, to)
        calls(own, tools, "get of a missing segment", found, lambda tool, name: tool.get(after_all(name), to / "missing"), code=1)
        calls(own, tools, "bare start", found, lambda tool, name: tool.bare_start())
    finally:
        empty_dir(s, to)
        cluster.stop(own)
    return found


def calls(s: Settings, tools: list[Tool], operation: str, found: Latencies, command: Callable[[Tool, str], list], code: int = 0) -> None:
    """One call for each segment and tool; the first of each tool is a warm-up."""
    say(f"push, {operation}")
    # A segment that was just written is in the page cache, and so is a repository that was just written to.
    for name in chosen(s):
        cluster.warm_file(s.cluster / "pg_wal" / name)
    for tool in tools:
        cluster.warm(tool.repository)
    os.sync()
    for number, name in enumerate(chosen(s)):
        for tool in tools if number % 2 == 0 else tools[::-1]:
            milliseconds = timed(s, command(tool, name), code)
            if number:
                found.setdefault((operation, tool.name), []).append(milliseconds)


def chosen(s: Settings) -> list[str]:
    return segments(s)[:CALLS + 1]


def after_all(name: str) -> str:
    """A segment of the same timeline, far beyond any that was archived."""
    return f"{name[:8]}0000FFFF{name[16:]}"


def timed(s: Settings, cmd: list, code: int) -> float:
    log = own_dir(s, s.work / "logs") / "push.log"
    args = [str(c) for c in cmd]
    with log.open("ab") as out:
        began = time.monotonic()
        done = subprocess.run(args, env=s.environment(), cwd=s.cluster, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                              check=False, **account(s))
        taken = time.monotonic() - began
    if done.returncode != code:
        raise BenchError(f"{' '.join(args)} ended with {done.returncode} instead of {code}; see {log}")
    return taken * 1000


def check_fetched(s: Settings, tools: list[Tool], to: Path) -> None:
    for tool in tools:
        for name in chosen(s):
            if (to / f"{tool.name}-{name}").read_bytes() != (s.cluster / "pg_wal" / name).read_bytes():
                raise BenchError(f"{tool.name} did not give back {name} as it was pushed")
