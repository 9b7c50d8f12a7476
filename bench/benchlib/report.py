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
from .rounds import Results
from .settings import ROOT, BenchError, Settings

PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
GOALS = {("backup", "CPU seconds"): 0.70, ("backup", "wall seconds"): 0.65,
         ("restore", "CPU seconds"): 0.70, ("restore", "wall seconds"): 0.70}
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
)


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}..{max(values):.{digits}f})"


def ratios(ours: list[float], theirs: list[float]) -> list[float] | None:
    """One ratio for each pair; none when there is nothing to divide by."""
    if len(ours) != len(theirs):
        raise BenchError(f"{len(ours)} and {len(theirs)} runs make no pairs")
    return [a / b for a, b in zip(ours, theirs)] if theirs and min(theirs) > 0 else None


def verdict(operation: str, figure: str, values: list[float]) -> str:
    goal = GOALS.get((operation, figure))
    if goal is None:
        return ""
    return f"≤ {goal:.2f}: {'met' if statistics.median(values) <= goal else 'missed'}"


def series(results: Results, operation: str, tool: str) -> list[tuple[str, list[float], int]]:
    samples = results.samples.get((operation, tool), [])
    rows = [(f.name, [f.of(x) for x in samples], f.digits) for f in FIGURES]
    if operation == "backup":
        rows.append(("stored, MB", [x / MB for x in results.stored.get(tool, [])], 1))
    return rows


def comparison(s: Settings, results: Results) -> str:
    lines = ["| operation | figure | pgark | pgBackRest | ratio | goal |", "|---|---|---|---|---|---|"]
    pairs = []
    for operation in s.operations:
        for (name, ours, digits), (_, theirs, _) in zip(series(results, operation, "pgark"), series(results, operation, "pgbackrest")):
            quotient = ratios(ours, theirs)
            shown = f"{spread(quotient, 2)}" if quotient else ""
            goal = verdict(operation, name, quotient) if quotient else ""
            lines.append(f"| {operation} | {name} | {spread(ours, digits)} | {spread(theirs, digits)} | {shown} | {goal} |")
            if quotient and (operation, name) in GOALS:
                pairs.append(f"- {operation}, {name}: {' '.join(f'{q:.2f}' for q in quotient)}")
    return "\n".join([*lines, "", "Ratios pair by pair:", "", *pairs])


def single(s: Settings, results: Results, tool: str) -> str:
    lines = [f"| operation | figure | {tool} |", "|---|---|---|"]
    lines += [f"| {operation} | {name} | {spread(values, digits)} |"
              for operation in s.operations for name, values, digits in series(results, operation, tool) if values]
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
