"""Incremental backups: each tool has its own copy of the cluster, which the same statements change; then it backs up.

Invariant: the copies of a round are fresh, so that both tools meet the same changed pages, and 1 % of the pages is 1 % in
every round. After the last increment of the warm-up round the restored bytes are compared with the copy.
"""
from typing import Callable

from . import cluster
from .changes import KINDS, change
from .measure import Sample, last_output
from .rounds import Results, check_restored, in_turn, log_of, measured, record
from .settings import Settings
from .shell import run
from .tools import KNOWN, Tool, archive_command, empty_dir

Increment = Callable[[Settings, Tool], tuple[Sample, dict[str, int]]]
Chain = Callable[[Settings, Tool, int], None]  # what is done with the increments of a round, by its number


def run_incr(s: Settings, results: Results) -> None:
    rounds_on_copies(s, "incr", [KNOWN[name] for name in s.tools], results, increment, check_chain)
    cluster.start(s)


def rounds_on_copies(s: Settings, case: str, tools: list[type], results: Results, backup: Increment, chain: Chain) -> None:
    for number, ordered in in_turn(s, case, tools):
        copies = [cluster.make_copy(s, tool.name) for tool in ordered]
        try:
            pairs = [(copy, tool(copy)) for copy, tool in zip(copies, ordered)]
            for own, tool in pairs:
                full(own, tool)
            for kind in KINDS:
                for own, tool in pairs:
                    cluster.start(own)
                    changed = change(own, kind, number + 1)
                    sample, facts = backup(own, tool)
                    record(own, results, number, f"{case} {kind}", tool.name, sample, **facts, changed=changed)
                    if kind == KINDS[-1]:
                        chain(own, tool, number)
        finally:
            for copy in copies:
                cluster.remove_copy(copy)


def full(s: Settings, tool: Tool) -> None:
    cluster.start(s)
    tool.create()
    cluster.set_archive_command(s, archive_command(tool))
    run(s, tool.backup())


def increment(s: Settings, tool: Tool) -> tuple[Sample, dict[str, int]]:
    stored = cluster.size_bytes(tool.backups, skip="pg_wal")
    cluster.warm(s.cluster)
    sample = measured(s, tool, "incr", tool.backup("incr"))
    facts = {"stored": cluster.size_bytes(tool.backups, skip="pg_wal") - stored, "size": cluster.size_bytes(s.cluster, skip="pg_wal")}
    read = tool.read_bytes(last_output(log_of(s, tool, "incr")))
    return sample, facts | ({} if read is None else {"read": read})


def check_chain(s: Settings, tool: Tool, number: int) -> None:
    if number == 0:
        to = s.work / f"restored-{tool.name}"
        empty_dir(s, to)
        run(s, tool.restore(to))
        check_restored(s.cluster, to, compare_bytes=True)
        empty_dir(s, to)
