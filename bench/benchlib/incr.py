"""Incremental backups: each tool has its own copy of the cluster, which the same statements change; then it backs up.

Invariant: the copies of a round are fresh, so that both tools meet the same changed pages, and 1 % of the pages is 1 % in
every round. After the last increment of the warm-up round the restored bytes are compared with the copy.
"""
from . import cluster
from .changes import KINDS, change
from .measure import Sample, last_output
from .rounds import Results, check_restored, in_turn, log_of, measured, record
from .settings import Settings
from .shell import run
from .tools import KNOWN, Tool, archive_command, empty_dir

Pair = tuple[Settings, Tool]


def run_incr(s: Settings, results: Results) -> None:
    for number, names in in_turn(s, "incr", list(s.tools)):
        copies = [cluster.make_copy(s, name) for name in names]
        try:
            pairs = [(copy, KNOWN[name](copy)) for copy, name in zip(copies, names)]
            one_round(pairs, number, results)
        finally:
            for copy in copies:
                cluster.remove_copy(copy)
    cluster.start(s)


def one_round(pairs: list[Pair], number: int, results: Results) -> None:
    for s, tool in pairs:
        full(s, tool)
    for kind in KINDS:
        for s, tool in pairs:
            cluster.start(s)
            changed = change(s, kind, number + 1)
            sample, facts = increment(s, tool)
            record(s, results, number, f"incr {kind}", tool.name, sample, **facts, changed=changed)
            if number == 0 and kind == KINDS[-1]:
                check_chain(s, tool)


def full(s: Settings, tool: Tool) -> None:
    cluster.start(s)
    tool.create()
    cluster.set_archive_command(s, archive_command(tool))
    run(s, tool.backup())


def increment(s: Settings, tool: Tool) -> tuple[Sample, dict[str, int]]:
    stored = cluster.size_bytes(tool.backups)
    cluster.warm(s.cluster)
    sample = measured(s, tool, "incr", tool.backup("incr"))
    facts = {"stored": cluster.size_bytes(tool.backups) - stored, "size": cluster.size_bytes(s.cluster, skip="pg_wal")}
    read = tool.read_bytes(last_output(log_of(s, tool, "incr")))
    return sample, facts | ({} if read is None else {"read": read})


def check_chain(s: Settings, tool: Tool) -> None:
    to = s.work / f"restored-{tool.name}"
    empty_dir(s, to)
    run(s, tool.restore(to))
    check_restored(s.cluster, to, compare_bytes=True)
    empty_dir(s, to)
