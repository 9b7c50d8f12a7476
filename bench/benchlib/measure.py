"""One measured command: wall time, CPU of its process tree and of the server, memory.

Invariant: only what the kernel accounted is reported. CPU of a process that detaches from the tree is not attributed;
`machine_cpu` shows that something is missing, and how busy others kept the machine.
"""
import os
import re
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from .settings import BenchError

TICKS = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
SAMPLE_SECONDS = 0.1
LOG_TAIL_BYTES = 3000
HEAD = "### "  # begins the line of a log that names the command


@dataclass(frozen=True)
class Sample:
    wall: float          # seconds
    user: float          # CPU seconds of the command and all it waited for
    system: float
    server_cpu: float    # CPU seconds of the PostgreSQL server meanwhile, with the archive commands it ran
    machine_cpu: float   # CPU seconds of the whole machine
    steal: float         # seconds the hypervisor gave to others
    rss_process: int     # bytes: peak of the largest single process
    rss_tree: int        # bytes: highest sampled sum of private memory over the tree
    load: float          # load average over one minute, before the start
    read: int            # bytes the command and all it waited for took in by system calls, cached or not

    @property
    def cpu(self) -> float:
        """The CPU seconds to compare: a tool that makes the server work instead gains nothing."""
        return self.user + self.system + self.server_cpu

    @property
    def memory(self) -> int:
        return max(self.rss_process, self.rss_tree)


def stat_fields(pid: int) -> list[int] | None:
    """Parent and user, system, reaped user, reaped system ticks; none when the process has gone."""
    try:
        rest = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return [int(rest[1]), *map(int, rest[11:15])]


def processes() -> dict[int, list[int]]:
    found = {int(name): stat_fields(int(name)) for name in os.listdir("/proc") if name.isdigit()}
    return {pid: fields for pid, fields in found.items() if fields}


def server_cpu_seconds(postmaster: int) -> float:
    """The postmaster with all it reaped, and each live child with what that one reaped (the archiver: its commands)."""
    seen = processes()
    return sum(sum(seen[pid][1:]) for pid in server_pids(seen, postmaster)) / TICKS


def server_read_bytes(postmaster: int) -> int:
    """Of the same processes: taken in by system calls, cached or not. Taken while none of them comes or goes, because a
    reaped child's bytes are the postmaster's from then on."""
    while True:
        pids = server_pids(processes(), postmaster)
        try:
            total = sum(map(bytes_read, pids))
        except (FileNotFoundError, ProcessLookupError):
            continue
        if pids == server_pids(processes(), postmaster):
            return total


def server_pids(seen: dict[int, list[int]], postmaster: int) -> set[int]:
    pids = {pid for pid, f in seen.items() if pid == postmaster or f[0] == postmaster}
    if postmaster not in pids:
        raise BenchError("the PostgreSQL server is gone; see its log")
    return pids


def machine_cpu_seconds() -> tuple[float, float]:
    """Busy and stolen CPU seconds since boot."""
    with open("/proc/stat") as f:
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, f.readline().split()[1:9])
    return (user + nice + system + irq + softirq) / TICKS, steal / TICKS


def private_bytes(root: int) -> int:
    children: dict[int, list[int]] = {}
    for pid, fields in processes().items():
        children.setdefault(fields[0], []).append(pid)
    todo, total = [root], 0
    while todo:
        pid = todo.pop()
        todo += children.get(pid, [])
        try:
            _size, resident, shared, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended between listing and reading
        total += (resident - shared) * PAGE_BYTES
    return total


class Sampler:
    """Watches the memory of a process tree until told to stop."""

    def __init__(self, root: int):
        self.peak, self._root, self._stop = 0, root, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, private_bytes(self._root))

    def stop(self) -> int:
        self._stop.set()
        self._thread.join()
        return self.peak


@dataclass(frozen=True)
class Start:
    """What the counters of the machine and of the server said before the measured work began."""
    postmaster: int | None
    load: float
    server: float
    busy: float
    steal: float
    clock: float

    @classmethod
    def now(cls, postmaster: int | None) -> "Start":
        os.sync()  # what earlier runs wrote goes to the disk now, not during this one
        load, server = os.getloadavg()[0], server_cpu_seconds(postmaster) if postmaster else 0.0
        return cls(postmaster, load, server, *machine_cpu_seconds(), time.monotonic())

    def wall_and_machine(self) -> dict[str, float]:
        wall = time.monotonic() - self.clock
        busy, steal = machine_cpu_seconds()
        return {"wall": wall, "machine_cpu": busy - self.busy, "steal": steal - self.steal, "load": self.load}

    def server_cpu(self) -> float:
        return server_cpu_seconds(self.postmaster) - self.server if self.postmaster else 0.0


def measure(cmd: list, log: Path, postmaster: int | None, settle: Callable[[], None] = lambda: None, **popen) -> Sample:
    """Runs the command. `settle` waits, outside the wall time, for the server work that the command caused."""
    args = [str(c) for c in cmd]
    with log.open("ab") as out:
        log_start = out.tell()
        out.write(f"\n{HEAD}{time.ctime()} {' '.join(args)}\n".encode())
        out.flush()
        start = Start.now(postmaster)
        child = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=out, stderr=out, **popen)
        sampler = Sampler(child.pid)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        taken = start.wall_and_machine()
        read = bytes_read(child.pid)
        _, status, usage = os.wait4(child.pid, 0)
        peak = sampler.stop()
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        tail = log.read_bytes()[log_start:][-LOG_TAIL_BYTES:].decode(errors="replace")
        raise BenchError(f"{' '.join(args)} ended with {child.returncode}; the end of {log}:\n{tail}")
    settle()
    return Sample(user=usage.ru_utime, system=usage.ru_stime, server_cpu=start.server_cpu(), rss_process=usage.ru_maxrss * 1024,
                  rss_tree=peak, read=read, **taken)


def bytes_read(pid: int) -> int:
    """By a process, which may have ended if it is not reaped yet, with all that it reaped itself."""
    return int(re.search(r"^rchar: (\d+)$", Path(f"/proc/{pid}/io").read_text(), re.M)[1])


def last_output(log: Path) -> str:
    """What the last measured command of a log wrote."""
    return log.read_text(errors="replace").rsplit(f"\n{HEAD}", 1)[-1].partition("\n")[2]
