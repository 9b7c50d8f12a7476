"""Figures as Markdown: medians with the range, ratios pair by pair; and their place in docs/benchmarks.md.

Invariant: everything outside the markers of the page is left as it was.
"""
import os
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from .measure import Sample
from .push import Latencies
from .rounds import Results
from .settings import ROOT, BenchError, Settings

PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
READ_SHARE = "read of the data directory, % of its size"
GOALS = {("backup", "CPU seconds"): 0.70, ("backup", "wall seconds"): 0.65,
         ("restore", "CPU seconds"): 0.70, ("restore", "wall seconds"): 0.70,
         ("incr pages1pct", "wall seconds"): 0.25, ("incr rows1pct", "wall seconds"): 0.60,
         ("delta", "CPU seconds"): 0.50, ("delta", "wall seconds"): 0.50}
OWN_GOALS = {("incr nochange", "wall seconds"): 1.0, ("incr pages1pct", READ_SHARE): 3.0}
ARCHIVERS = ("pgark", "pgbackrest", "pgbackrest-async", "cp")
TITLES = {"pgbackrest": "pgBackRest", "pgbackrest-async": "pgBackRest, asynchronous", "cp": "cp, not durable"}
CHANGED_BYTES_MIN = 1e6  # below it an increment is mostly its own manifest, and a share of the changed pages says nothing
MB = 1e6
QUIET_SHARE_MAX = 0.15  # of the machine taken by others in any run; above it wall times say little


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
    Figure("read by all its processes, MB", lambda x: x.read / MB, 1),
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
        "read of the data directory, MB": (of("read"), 1), READ_SHARE: (of("read", "size"), 2), "stored, MB": (of("stored"), 1),
        "changed pages, MB": (of("changed"), 1), "stored, % of the changed pages": (of("stored", "changed") if has_share else [], 1),
    }
    return {name: row for name, row in rows.items() if row[0]}


def comparison(results: Results) -> str:
    lines = ["| operation | figure | pgark | pgBackRest | ratio | goal |", "|---|---|---|---|---|---|"]
    pairs = []
    for operation in in_comparison(results):
        ours, theirs = series(results, operation, "pgark"), series(results, operation, "pgbackrest")
        for name, (values, digits) in ours.items():
            peer = theirs[name][0] if name in theirs else []
            quotient = ratios(values, peer) if peer else None
            cells = [spread(values, digits), shown(peer, digits), shown(quotient, 2), verdict(operation, name, values, quotient)]
            lines.append(f"| {operation} | {name} | {' | '.join(cells)} |")
            if quotient and (operation, name) in GOALS:
                pairs.append(f"- {operation}, {name}: {' '.join(f'{q:.2f}' for q in quotient)}")
    return "\n".join([*lines, "", "Ratios pair by pair:", "", *pairs])


def shown(values: list[float] | None, digits: int) -> str:
    return spread(values, digits) if values else ""


def in_comparison(results: Results) -> list[str]:
    return [operation for operation in results.operations() if operation != "archive"]


def single(results: Results, tool: str) -> str:
    lines = [f"| operation | figure | {tool} |", "|---|---|---|"]
    lines += [f"| {operation} | {name} | {spread(values, digits)} |"
              for operation in in_comparison(results) for name, (values, digits) in series(results, operation, tool).items()]
    return "\n".join(lines)


def archive_table(results: Results, segments: int) -> str:
    """One line for each tool; its ratio is that of pgark to it."""
    def of(tool: str) -> dict[str, list[float]]:
        samples, facts = results.samples["archive", tool], results.facts["archive", tool]
        return {"wall": [x.wall for x in samples], "cpu": [x.cpu * 1000 / segments for x in samples],
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
        return " ".join(str(c) for c in cmd).replace(f"{ROOT}/", "").replace(str(work), "WORK")
    return "\n".join(["```", *map(shown, tool_commands), "```"])


def write_page(text: str, page: Path = PAGE) -> None:
    old = page.read_text()
    if old.count(BEGIN) != 1 or old.count(END) != 1 or old.index(BEGIN) > old.index(END):
        raise BenchError(f"{page} must hold {BEGIN} and then {END}, once each; nothing was written")
    head, rest = old.split(BEGIN)
    tail = rest.split(END)[1]
    page.write_text(f"{head}{BEGIN}\n{text.strip()}\n{END}{tail}")
