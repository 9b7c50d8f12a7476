"""CPU of what an archive command leaves behind: processes that are no longer below the server, such as those of pgBackRest's
asynchronous push.

Invariant: only what was seen is counted. What such a process uses after it was looked at for the last time is missing, so
look often.
"""
from pathlib import Path

from .measure import TICKS, processes

COMMAND = b"archive-push"


class Detached:
    def __init__(self, postmaster: int, below: Path):
        """Only commands that name a path below the given one: others may archive on the same machine."""
        self.postmaster, self._below, self._old, self._ticks = postmaster, f"{below}/".encode(), set(processes()), {}

    def look(self) -> int:
        """How many there are now."""
        now = processes()
        found = {pid for pid in now if pid not in self._old and self._is_push(command_line(pid))}
        totals: dict[int, int] = {}
        for pid in found:
            above = lineage(pid, now)
            if self.postmaster not in above:
                # By the topmost, which gets the time of those it reaps: a process that ends is not counted twice.
                top = [ancestor for ancestor in above if ancestor in found][-1]
                totals[top] = totals.get(top, 0) + sum(now[pid][1:])
        self._ticks |= totals
        return len(totals)

    def _is_push(self, line: bytes) -> bool:
        return COMMAND in line and self._below in line

    def seconds(self) -> float:
        return sum(self._ticks.values()) / TICKS


def lineage(pid: int, parents: dict[int, list[int]]) -> list[int]:
    """The process, its parent, and so on as far as known."""
    line = []
    while pid in parents and pid not in line:
        line.append(pid)
        pid = parents[pid][0]
    return line


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
