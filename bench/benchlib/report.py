"""Figures as Markdown: medians with the range, ratios pair by pair; and their place in docs/benchmarks.md.

Invariant: everything outside the markers of the page is left as it was.
"""
import os
import platform
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

from .basebackup import Facts
from .dumps import DAYS, KEEPERS, Dumps
from .measure import Sample
from .push import Latencies
from .rounds import Results
from .settings import ROOT, BenchError, Settings
from .tools import BaseBackup
from .walker import Walked

PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
READ_BY_COMMAND, READ_ALL = "read by all its processes, MB", "read by all its processes and the server, MB"
READ_SHARE = "read of the data directory, % of its size"
GOALS = {("backup", "CPU seconds"): 0.70, ("backup", "wall seconds"): 0.65,
         ("restore", "CPU seconds"): 0.70, ("restore", "wall seconds"): 0.70,
         ("incr pages1pct", "wall seconds"): 0.25, ("incr rows1pct", "wall seconds"): 0.60,
         ("delta", "CPU seconds"): 0.50, ("delta", "wall seconds"): 0.50}
OWN_GOALS = {("incr nochange", "wall seconds"): 1.0, ("incr pages1pct", READ_SHARE): 3.0}
OWN_TABLES = ("archive", "basebackup", "walker", "stores")
WALKER_WORKS = {"read": "reading alone", "walk": "and checking every page, record and CRC",
                "index": "and noting changed blocks and activity, as `archive-push` does"}
ARCHIVERS = ("pgark", "pgbackrest", "pgbackrest-async", "cp")
TITLES = {"pgbackrest": "pgBackRest", "pgbackrest-async": "pgBackRest, asynchronous", "cp": "cp, not durable"}
CHANGED_BYTES_MIN = 1e6  # below it an increment is mostly its own manifest, and a share of the changed pages says nothing
MB = 1e6
QUIET_SHARE_MAX = 0.15  # of the machine taken by others in any run; above it wall times say little


@dataclass
class OwnTables:
    """What the cases found that are not in the comparison; none of a case that was not run."""
    latencies: Latencies = field(default_factory=dict)
    basebackup: Facts | None = None
    dumps: dict[str, Dumps] = field(default_factory=dict)
    walked: Walked | None = None


@dataclass(frozen=True)
class Figure:
    name: str
    of: Callable[[Sample], float]
    digits: int


FIGURES = (
    Figure("wall seconds", lambda x: x.wall, 2),
    Figure("CPU seconds", lambda x: x.cpu, 2),
    Figure("CPU seconds of the server therein", lambda x: x.server_cpu, 2),
    Figure("peak memory, MB", lambda x: x.memory / MB, 0),
    Figure(READ_BY_COMMAND, lambda x: x.read / MB, 1),
)


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}..{max(values):.{digits}f})"


def ratios(ours: list[float], theirs: list[float]) -> list[float] | None:
    """One ratio for each pair; none when there is nothing to divide by."""
    if len(ours) != len(theirs):
        raise BenchError(f"{len(ours)} and {len(theirs)} runs make no pairs")
    return [a / b for a, b in zip(ours, theirs)] if theirs and min(theirs) > 0 else None


def verdict(operation: str, figure: str, ours: list[float], quotient: list[float] | None) -> str:
    """On the ratio or, where the goal is for pgark alone, on its own figure."""
    of_ratio, own = GOALS.get((operation, figure)), OWN_GOALS.get((operation, figure))
    if own is not None:
        return f"pgark ≤ {own:.2f}: {'met' if statistics.median(ours) <= own else 'missed'}"
    if of_ratio is not None and quotient:
        return f"≤ {of_ratio:.2f}: {'met' if statistics.median(quotient) <= of_ratio else 'missed'}"
    return ""


def series(results: Results, operation: str, tool: str) -> dict[str, tuple[list[float], int]]:
    """The values of each figure and their digits, without figures that this operation or tool does not have."""
    samples, facts = results.samples.get((operation, tool), []), results.facts.get((operation, tool), [])

    def of(name: str, per: str | None = None) -> list[float]:
        whole = [x for x in facts if {name, per or name} <= x.keys()]
        return [x[name] / MB if per is None else 100 * x[name] / x[per] for x in whole]

    has_share = all(x.get("changed", 0) >= CHANGED_BYTES_MIN for x in facts)
    rows = {f.name: ([f.of(x) for x in samples], f.digits) for f in FIGURES} | {
        READ_ALL: (of("read_all"), 1), "read of the data directory, MB": (of("read"), 1), READ_SHARE: (of("read", "size"), 2),
        "stored, MB": (of("stored"), 1),
        "changed pages, MB": (of("changed"), 1), "stored, % of the changed pages": (of("stored", "changed") if has_share else [], 1),
    }
    if rows[READ_ALL][0]:
        del rows[READ_BY_COMMAND]  # says nothing where the server reads for the command
    return {name: row for name, row in rows.items() if row[0]}


def comparison(results: Results, operations: list[str], peer: str = "pgbackrest") -> str:
    lines = [f"| operation | figure | pgark | {TITLES.get(peer, peer)} | ratio | goal |", "|---|---|---|---|---|---|"]
    pairs = []
    for operation in operations:
        ours, theirs = series(results, operation, "pgark"), series(results, operation, peer)
        for name, (values, digits) in ours.items():
            others = theirs[name][0] if name in theirs else []
            quotient = ratios(values, others) if others else None
            cells = [spread(values, digits), shown(others, digits), shown(quotient, 2), verdict(operation, name, values, quotient)]
            lines.append(f"| {operation} | {name} | {' | '.join(cells)} |")
            if quotient and (operation, name) in GOALS:
                pairs.append(f"- {operation}, {name}: {' '.join(f'{q:.2f}' for q in quotient)}")
    return "\n".join([*lines, *(["", "Ratios pair by pair:", "", *pairs] if pairs else [])])


def shown(values: list[float] | None, digits: int) -> str:
    return spread(values, digits) if values else ""


def in_comparison(results: Results) -> list[str]:
    return [operation for operation in results.operations() if operation.split()[0] not in OWN_TABLES]


def of_case(results: Results, case: str) -> list[str]:
    return [operation for operation in results.operations() if operation.split()[0] == case]


def single(results: Results, operations: list[str], tool: str) -> str:
    lines = [f"| operation | figure | {tool} |", "|---|---|---|"]
    lines += [f"| {operation} | {name} | {spread(values, digits)} |"
              for operation in operations for name, (values, digits) in series(results, operation, tool).items()]
    return "\n".join(lines)


def archive_table(results: Results, segments: int) -> str:
    """One line for each tool; its ratio is that of pgark to it."""
    def of(tool: str) -> dict[str, list[float]]:
        samples, facts = results.samples["archive", tool], results.facts["archive", tool]
        return {"wall": [x.wall for x in samples], "cpu": archive_cpu(results, tool, segments),
                "stored": [x["stored"] / MB for x in facts]}
    lines = [f"| archive of {segments} segments | wall seconds | pgark to it | CPU milliseconds a segment | pgark to it | stored, MB |",
             "|---|---|---|---|---|---|"]
    used = [tool for tool in ARCHIVERS if tool in results.tools("archive")]
    for tool in used:
        values, is_peer = of(tool), tool != "pgark" and "pgark" in used
        against = {key: shown(ratios(of("pgark")[key], values[key]), 2) if is_peer else "" for key in ("wall", "cpu")}
        lines.append(f"| {TITLES.get(tool, tool)} | {spread(values['wall'], 2)} | {against['wall']} | {spread(values['cpu'], 1)} | "
                     f"{against['cpu']} | {spread(values['stored'], 1)} |")
    return "\n".join(lines)


def archive_cpu(results: Results, tool: str, segments: int) -> list[float]:
    """Milliseconds a segment, by round."""
    return [x.cpu * 1000 / segments for x in results.samples.get(("archive", tool), [])]


def latency_table(latencies: Latencies) -> str:
    """Median and range over all calls, and the ratio of the medians: single calls make no pairs."""
    used = [tool for tool in ARCHIVERS if any(of == tool for _, of in latencies)]
    names = [TITLES.get(tool, tool) for tool in used]
    lines = [f"| one call, milliseconds | {' | '.join(names)} | ratio of medians |", "|---" * (len(used) + 2) + "|"]
    for operation in dict.fromkeys(operation for operation, _ in latencies):
        values = [latencies[operation, tool] for tool in used]
        medians = [statistics.median(v) for v in values]
        ratio = f"{medians[0] / medians[1]:.2f}" if len(medians) == 2 else ""
        lines.append(f"| {operation} | {' | '.join(spread(v, 1) for v in values)} | {ratio} |")
    return "\n".join(lines)


def basebackup_section(results: Results, facts: Facts, work: Path) -> str:
    tools, operations = list(facts.differing), of_case(results, "basebackup")
    table = comparison(results, operations, BaseBackup.name) if len(tools) == 2 else single(results, operations, tools[0])
    return "\n".join([
        "### Beside PostgreSQL's own incremental backup", "",
        f"- {', '.join(facts.versions)}; PostgreSQL {facts.server}",
        f"- pgbench scale {facts.scale} and {facts.docs_mb} MB of text and jsonb: {facts.data_bytes / MB:.0f} MB without WAL",
        *(f"- {tool}: {identity(differing)}" for tool, differing in facts.differing.items()), "", table, "",
        commands(facts.commands, work)])


def dumps_section(by_change: dict[str, Dumps], work: Path) -> str:
    """One table for each kind of change."""
    one = next(iter(by_change.values()))
    return "\n".join([
        f"### {DAYS} daily dumps of which 1 % of the rows change each day", "",
        f"- {', '.join(one.versions)}; {machine_meanwhile([x for found in by_change.values() for x in found.samples])}",
        f"- a database of {one.database_bytes / MB:.0f} MB; what `pgark restore` made of the last dump was compared with what was dumped",
        *(line for which, found in by_change.items() for line in ["", *dumps_table(which, found)]), "", commands(one.commands, work)])


def dumps_table(which: str, found: Dumps) -> list[str]:
    once = found.days["pg_dump-Fc"][0].stored
    lines = [f"| {which} | first day: wall s | CPU s | other days: wall s | CPU s | peak memory, MB | stored by the first, MB "
             f"| by all {DAYS}, MB | all to the first | all to one `-Fc` |", "|---" * 10 + "|"]
    for title, days in ((keeper.title, found.days[keeper.name]) for keeper in KEEPERS):
        first, rest = days[0], days[1:]
        lines.append(f"| {title} | {first.wall:.2f} | {first.cpu:.2f} | {spread([d.wall for d in rest], 2)} | {spread([d.cpu for d in rest], 2)} | "
                     f"{max(d.memory for d in days) / MB:.0f} | {first.stored / MB:.1f} | {days[-1].stored / MB:.1f} | "
                     f"{days[-1].stored / first.stored:.2f} | {days[-1].stored / once:.2f} |")
    return lines


def identity(differing: list[str]) -> str:
    if not differing:
        return "every table file restored is that of the cluster, byte by byte"
    return f"of the table files restored, {len(differing)} differ from the cluster, all of them visibility maps ({differing[0]})"


def stores_table(results: Results, data_bytes: int) -> str:
    """Throughput counts the bytes of the data directory, not those that were sent."""
    lines = ["| stores, MB/s of the data directory | pgark | pgBackRest | ratio of the times |", "|---|---|---|---|"]
    for operation in of_case(results, "stores"):
        times = {tool: [x.wall for x in results.samples.get((operation, tool), [])] for tool in ("pgark", "pgbackrest")}
        quotient = ratios(times["pgark"], times["pgbackrest"]) if all(times.values()) else None
        speeds = [shown([data_bytes / MB / t for t in of], 0) for of in times.values()]
        lines.append(f"| {operation.removeprefix('stores ')} | {' | '.join(speeds)} | {shown(quotient, 2)} |")
    return "\n".join(lines)


def walker_section(walked: Walked, archive_cpu: list[float]) -> str:
    """The share is one of medians: the walker and the pushes did not run as pairs."""
    per_segment = 1000 / walked.segments
    lines = ["### The WAL walker", "", f"{walked.segments} segments, {walked.bytes / MB:.0f} MB, {walked.records} records.", "",
             "| work | MB/s | CPU milliseconds a segment |", "|---|---|---|"]
    for work, title in WALKER_WORKS.items():
        rates = [walked.bytes / MB / wall for wall in walked.wall[work]]
        lines.append(f"| {title} | {spread(rates, 0)} | {spread([cpu * per_segment for cpu in walked.cpu[work]], 2)} |")
    walker = [cpu * 1000 for cpu in walked.walker_cpu()]
    lines.append(f"| the walker's part: the third without the first | | {spread(walker, 2)} |")
    pushes = {f"{len(walked.push_cpu)} single pushes, one worker": [cpu * 1000 for cpu in walked.push_cpu],
              "case `archive`": archive_cpu}
    for title, cpu in pushes.items():
        if cpu:
            share = statistics.median(walker) / statistics.median(cpu)
            lines.append(f"| a push: {title}; the walker's part is {share:.0%} | | {spread(cpu, 2)} |")
    return "\n".join(lines)


def limits_table(limits: dict[str, list[Sample]], data_bytes: int) -> str:
    lines = ["| limit of the machine, same data | wall seconds | CPU seconds | MB/s |", "|---|---|---|---|"]
    for name, samples in limits.items():
        wall = [x.wall for x in samples]
        lines.append(f"| {name} | {spread(wall, 2)} | {spread([x.cpu for x in samples], 2)} | {data_bytes / MB / statistics.median(wall):.0f} |")
    return "\n".join(lines)


def cpu_model() -> str:
    with open("/proc/cpuinfo") as f:
        names = [line.split(":", 1)[1].strip() for line in f if line.startswith("model name")]
    return f"{os.cpu_count()} × {names[0] if names else platform.machine()}"


def quietness(results: Results) -> str:
    """How much the rest of the machine did meanwhile: a reader judges by it what a wall time is worth."""
    samples = [x for group in results.samples.values() for x in group]
    return machine_meanwhile(samples)


def machine_meanwhile(samples: list[Sample]) -> str:
    if not samples:
        return "nothing was measured that tells how busy the machine was"
    others = [max(0.0, x.machine_cpu - x.cpu) / (x.wall * (os.cpu_count() or 1)) for x in samples]
    warning = "" if max(others) <= QUIET_SHARE_MAX else "; **busy machine, wall times are not to be relied on**"
    return (f"load before a run {spread([x.load for x in samples], 2)}, others took {statistics.median(others):.0%} "
            f"(at most {max(others):.0%}) of the machine, steal at most {max(x.steal for x in samples):.2f} s{warning}")


def context(s: Settings, results: Results, versions: list[str], server: str, data_bytes: int) -> str:
    return "\n".join([
        f"- {time.strftime('%Y-%m-%d', time.gmtime())}, {cpu_model()}, Linux {platform.release()}; {quietness(results)}",
        f"- {', '.join(versions)}; PostgreSQL {server}",
        f"- pgbench scale {s.scale} and {s.docs_mb} MB of text and jsonb: {data_bytes / MB:.0f} MB without WAL; "
        f"{s.runs} pairs after a warm-up, {s.jobs} workers",
    ])


def commands(tool_commands: list[list], work: Path) -> str:
    def shown(cmd: list) -> str:
        # A reader's paths are other ones than those of the machine that measured.
        words = [Path(cmd[0]).name, *map(str, cmd[1:])]
        return " ".join(words).replace(f"{ROOT}/", "").replace(str(work), "WORK")
    return "\n".join(["```", *map(shown, tool_commands), "```"])


def write_page(text: str, page: Path = PAGE) -> None:
    old = page.read_text()
    if old.count(BEGIN) != 1 or old.count(END) != 1 or old.index(BEGIN) > old.index(END):
        raise BenchError(f"{page} must hold {BEGIN} and then {END}, once each; nothing was written")
    head, rest = old.split(BEGIN)
    tail = rest.split(END)[1]
    page.write_text(f"{head}{BEGIN}\n{text.strip()}\n{END}{tail}")
