"""Throughput of pgark's WAL walker on the segments of the case archive, and its share of the CPU time of a push.

The example program wal_speed of crates/pg runs the walker alone; single pushes of the same segments are measured beside it,
with one worker and nothing else ready.
"""
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from . import cluster
from .measure import Sample, last_output, measure
from .push import chosen
from .rounds import Results, in_turn, record
from .settings import BenchError, Settings
from .shell import account, built_example, own_dir, say
from .tools import Pgark
from .wal import segments, wal_cluster

EXAMPLE = "wal_speed"
WORKS = ("read", "walk", "index")


@dataclass
class Walked:
    segments: int = 0
    bytes: int = 0
    records: int = 0
    wall: dict[str, list[float]] = field(default_factory=lambda: {work: [] for work in WORKS})  # seconds for all segments, by round
    cpu: dict[str, list[float]] = field(default_factory=lambda: {work: [] for work in WORKS})
    push_cpu: list[float] = field(default_factory=list)  # CPU seconds of single pushes

    def add(self, line: dict) -> None:
        self.segments, self.bytes, self.records = line["segments"], line["bytes"], line["records"]
        for work in WORKS:
            self.wall[work].append(line[work]["wall"])
            self.cpu[work].append(line[work]["cpu"])

    def walker_cpu(self) -> list[float]:
        """Seconds a segment, by round: with all that a push has the walker do, without the reading."""
        return [(index - read) / self.segments for index, read in zip(self.cpu["index"], self.cpu["read"])]


def run_walker(s: Settings, results: Results) -> Walked:
    program = built_example("pgark-pg", EXAMPLE)
    own = wal_cluster(s)
    files = [own.cluster / "pg_wal" / name for name in segments(own)]
    walked = Walked()
    try:
        for number, _ in in_turn(s, "walker", []):
            cluster.warm(own.cluster / "pg_wal")
            record(own, results, number, "walker", Pgark.name, measured(own, [program, *files]))
            if number:
                walked.add(json.loads(last_output(log_of(own))))
        walked.push_cpu = push_cpu(own)
    finally:
        cluster.stop(own)
    return walked


def measured(s: Settings, cmd: list) -> Sample:
    return measure(cmd, log_of(s), None, env=s.environment(), cwd=s.cluster, **account(s))


def log_of(s: Settings) -> Path:
    return own_dir(s, s.work / "logs") / "walker.log"


def push_cpu(s: Settings) -> list[float]:
    """One call for each segment; the first is a warm-up."""
    say("walker, one push at a time")
    tool = Pgark(replace(s, jobs=1))
    tool.create()
    taken = [measured(s, tool.push(f"pg_wal/{name}")).cpu for name in chosen(s)]
    if len(taken) < 2:
        raise BenchError("the case walker needs two segments")
    return taken[1:]
