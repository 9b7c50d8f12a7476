"""The server with many clusters: how long people wait for a page while all of them look and the repository is looked at, and
what that takes.

The repository is made by the example program many_clusters of crates/engine, once, and kept. Needs no PostgreSQL. An answer
counts when it is 200 and complete; any other one ends the benchmark.
"""
import contextlib
import http.client
import json
import os
import re
import selectors
import signal
import socket
import sqlite3
import statistics
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterator

from .measure import TICKS
from .report import cpu_model, spread
from .settings import BenchError, Settings
from .shell import account, built_example, own_dir, run, say
from .tools import PASSPHRASE, empty_dir, private_file

BACKUPS, SEGMENTS = 50, 5000  # of each cluster
CLIENTS, USERS = 50, 5  # a user has at most 20 sessions
ANSWERS = 1000  # of each round and page
DOCUMENTS = {"info", "wal", "reports", "audit", "history"}  # that are kept of each cluster
WAIT_SECONDS_MAX = 1800
ALONE_SECONDS = 60
LOOKS = 3
PASSWORD = "bench-password-not-a-secret"
MB = 1e6
LOOKED = {"info": ["info", "--count-for=0s"], "wal list": ["wal", "list"], "report list": ["report", "list", "--last=200"],
          "audit show": ["audit", "show", "--last=100"], "wal history, a week": ["wal", "history"], "info, counting objects": ["info", "--count-for=60s"]}
PAGES = {"first screen": "/", "page of a cluster": "/clusters/{}", "`/api/v1/clusters`": "/api/v1/clusters", "`/metrics`": "/metrics"}


@dataclass
class Load:
    seconds: list[float] = field(default_factory=list)  # each answer
    wall: float = 0
    cpu: float = 0  # CPU seconds of the server, without its children
    bytes: int = 0

    def at(self, percent: int) -> float:
        """Milliseconds within which so many in a hundred were answered."""
        return 1000 * statistics.quantiles(self.seconds, n=100)[percent - 1]


@dataclass
class Alone:
    """The server without clients for a while."""
    own_cpu: float = 0  # seconds of a minute
    children_cpu: float = 0
    child_memory: int = 0  # bytes, the highest of any child


@dataclass
class Served:
    clusters: int
    version: str
    first_round: float = 0  # seconds from the start until everything was looked at
    looks: dict[str, list[tuple[float, float, int]]] = field(default_factory=dict)  # wall, CPU, bytes of memory
    alone: Alone = field(default_factory=Alone)
    loads: dict[str, list[Load]] = field(default_factory=dict)
    oldest: float = 0  # seconds since the cluster that was looked at longest ago was, after all of the load
    memory: int = 0  # bytes, the server's highest


def run_server(s: Settings) -> str:
    served = Served(s.clusters, run(s, [s.pgark, "--version"]).strip())
    make_world(s)
    configure(s)
    served.looks = {name: [look(s, words) for _ in range(LOOKS)] for name, words in LOOKED.items()}
    with serving(s) as (pid, port):
        served.first_round = wait_for_documents(s)
        served.alone = alone(pid)
        cookies = [sign_in(port, f"user{n % USERS}") for n in range(CLIENTS)]
        for number in range(s.runs):
            for name, path in PAGES.items():
                say(f"{name}, round {number + 1} of {s.runs}")
                served.loads.setdefault(name, []).append(load(s, pid, port, cookies, path))
        served.oldest = max(ages(s))
        served.memory = status_bytes(pid, "VmHWM")
    return table(served)


# The world.

def repository(s: Settings) -> Path:
    return s.work / f"many-c{s.clusters}-b{BACKUPS}-s{SEGMENTS}"


def place(s: Settings) -> Path:
    return s.work / "server"


def make_world(s: Settings) -> None:
    secret = s.work / "server.passphrase"
    private_file(s, secret, PASSPHRASE + "\n")
    mark = repository(s).with_suffix(".made")
    if mark.exists() and repository(s).exists():
        return
    say(f"making a repository of {s.clusters} clusters: {s.clusters * BACKUPS} backups, {s.clusters * SEGMENTS} segments")
    program = built_example("pgark-engine", "many_clusters")
    run(s, ["rm", "-rf", repository(s)])
    run(s, [program, repository(s), secret, s.clusters, BACKUPS, SEGMENTS])
    mark.touch()


def names(s: Settings) -> list[str]:
    return [f"c{n:03}" for n in range(s.clusters)]


def configure(s: Settings) -> None:
    empty_dir(s, place(s))
    lines = ["[server]", f"state_dir = '{place(s) / 'state'}'", "requests_per_second = 100000", "", "[repos.main]",
             f"url = '{repository(s)}'", f"passphrase_file = '{s.work / 'server.passphrase'}'", ""]
    for name in names(s):
        lines += [f"[clusters.{name}]", "repos = ['main']", "rpo = '1h'", "rto = '4h'", ""]
    private_file(s, place(s) / "pgark.toml", "\n".join(lines))
    private_file(s, place(s) / "password", PASSWORD + "\n")
    for n in range(USERS):
        run(s, pgark(s, "user", "add", f"user{n}", "--role=operator", f"--password-file={place(s) / 'password'}"))


def pgark(s: Settings, *words: str) -> list:
    return [s.pgark, *words, f"--config={place(s) / 'pgark.toml'}"]


def look(s: Settings, words: list[str]) -> tuple[float, float, int]:
    """What one of the server's looks takes: wall and CPU seconds, and memory."""
    more = [time.strftime("--from=%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 7 * 86400))] * ("history" in words)
    args = [str(word) for word in pgark(s, *words, *more, "--cluster=c001", "--json", "--quiet")]
    begun = time.monotonic()
    child = subprocess.Popen(args, env=s.environment(), cwd=s.work, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, **account(s))
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise BenchError(f"{' '.join(args)} ended with {child.returncode}")
    return time.monotonic() - begun, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


# The server.

@contextlib.contextmanager
def serving(s: Settings) -> Iterator[tuple[int, int]]:
    args = [str(word) for word in pgark(s, "serve", "--listen=127.0.0.1:0", "--json")]
    with (own_dir(s, s.work / "logs") / "server.log").open("wb") as log:
        child = subprocess.Popen(args, env=s.environment(), cwd=s.work, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, **account(s))
    try:
        yield child.pid, listening(child)
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait()
        child.stdout.close()


def listening(child: subprocess.Popen) -> int:
    text = b""
    while not text.endswith(b"}\n") and (line := child.stdout.readline()):
        text += line
    try:
        return int(json.loads(text)["listening"].rsplit(":", 1)[1])
    except (ValueError, KeyError) as e:
        raise BenchError("pgark serve does not say where it listens; see logs/server.log") from e


def query(s: Settings, sql: str) -> list[tuple]:
    with contextlib.closing(sqlite3.connect(f"file:{place(s) / 'state' / 'server.sqlite'}?mode=ro", uri=True)) as db:
        return db.execute(sql).fetchall()


def wait_for_documents(s: Settings) -> float:
    """Until everything was looked at once."""
    say("waiting until everything was looked at")
    begun, wanted = time.monotonic(), len(DOCUMENTS) * s.clusters
    while time.monotonic() - begun < WAIT_SECONDS_MAX:
        found = query(s, "select kind, failed is not null, count(*) from documents group by 1, 2")
        if failed := [kind for kind, has_failed, _ in found if has_failed]:
            raise BenchError(f"the server could not look up {failed}")
        if sum(count for kind, _, count in found if kind in DOCUMENTS) == wanted and any(kind == "space" for kind, *_ in found):
            return time.monotonic() - begun
        time.sleep(0.5)
    raise BenchError(f"not everything was looked at within {WAIT_SECONDS_MAX} s")


def ages(s: Settings) -> list[float]:
    """Seconds since each cluster was looked at."""
    return [row[0] for row in query(s, "select (julianday('now') - julianday(refreshed)) * 86400 from documents where kind = 'info'")]


def cpu_seconds(pid: int) -> tuple[float, float]:
    """Its own, and those of the children that it waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    user, system, of_children, system_of_children = map(int, fields[11:15])
    return (user + system) / TICKS, (of_children + system_of_children) / TICKS


def status_bytes(pid: int, key: str) -> int:
    return int(re.search(rf"^{key}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.M)[1]) * 1024


def alone(pid: int) -> Alone:
    say(f"{ALONE_SECONDS} s without clients")
    begun, before, highest = time.monotonic(), cpu_seconds(pid), 0
    while time.monotonic() - begun < ALONE_SECONDS:
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with contextlib.suppress(OSError, TypeError):  # it ended
                highest = max(highest, status_bytes(int(child), "VmHWM"))
        time.sleep(0.01)
    own, children = (60 / ALONE_SECONDS * (now - then) for now, then in zip(cpu_seconds(pid), before))
    return Alone(own, children, highest)


# The clients.

def sign_in(port: int, name: str) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = json.dumps({"name": name, "password": PASSWORD})
    connection.request("POST", "/api/v1/session", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise BenchError(f"signing in ended with {answer.status}: {answer.read().decode()}")
    return answer.getheader("Set-Cookie").split(";")[0]


@dataclass
class Client:
    connection: socket.socket
    cookie: str
    since: float = 0
    answer: bytearray = field(default_factory=bytearray)

    def ask(self, path: str) -> None:
        self.answer.clear()
        self.since = time.monotonic()
        self.connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: {self.cookie}\r\n\r\n".encode())

    def take(self) -> bool:
        """Whether the answer is complete now."""
        more = self.connection.recv(1 << 20)
        self.answer += more
        head, found, body = self.answer.partition(b"\r\n\r\n")
        if not more or (found and not head.startswith(b"HTTP/1.1 200 ")):
            raise BenchError(f"the server answered {bytes(self.answer[:500])!r}")
        length = re.search(rb"(?i)^content-length: (\d+)\r?$", head, re.M) if found else None
        return bool(length) and len(body) >= int(length[1])


def load(s: Settings, pid: int, port: int, cookies: list[str], path: str) -> Load:
    """Each client asks again as soon as it has its answer; the first answer of each does not count."""
    paths = [path.format(name) for name in names(s)]
    result, asked, chooser = Load(), 0, selectors.DefaultSelector()
    clients = [Client(socket.create_connection(("127.0.0.1", port)), cookie) for cookie in cookies]
    own, begun = cpu_seconds(pid)[0], time.monotonic()
    for n, client in enumerate(clients):
        chooser.register(client.connection, selectors.EVENT_READ, client)
        client.ask(paths[n % len(paths)])
    warm = len(clients)
    while len(result.seconds) < ANSWERS:
        for key, _ in chooser.select():
            client = key.data
            if not client.take():
                continue
            took, asked = time.monotonic() - client.since, asked + 1
            if asked == warm:
                own, begun = cpu_seconds(pid)[0], time.monotonic()
            if asked > warm:
                result.seconds.append(took)
                result.bytes = max(result.bytes, len(client.answer))
            client.ask(paths[asked % len(paths)])
    result.wall, result.cpu = time.monotonic() - begun, cpu_seconds(pid)[0] - own
    for client in clients:
        client.connection.close()
    return result


# The report.

def table(served: Served) -> str:
    took = {name: list(zip(*looks)) for name, looks in served.looks.items()}
    lines = [
        f"- {time.strftime('%Y-%m-%d', time.gmtime())}, {cpu_model()}; {served.version}",
        f"- {served.clusters} clusters, {served.clusters * BACKUPS} backups, {served.clusters * SEGMENTS} WAL segments in one repository in a directory",
        f"- {CLIENTS} clients, signed in, each asks again at once; {ANSWERS} answers in each of {len(next(iter(served.loads.values())))} rounds; "
        "the server goes on looking meanwhile", "",
        "| page | p50, ms | p95, ms | p99, ms | answers a second | CPU ms of the server an answer | bytes |", "|---|---|---|---|---|---|---|"]
    for name, loads in served.loads.items():
        times = " | ".join(spread([one.at(percent) for one in loads], 0) for percent in (50, 95, 99))
        rate = spread([ANSWERS / one.wall for one in loads], 0)
        lines.append(f"| {name} | {times} | {rate} | {spread([1000 * one.cpu / ANSWERS for one in loads], 2)} | {max(one.bytes for one in loads)} |")
    lines += ["", "| one look at a cluster | wall, ms | CPU, ms | peak memory, MB |", "|---|---|---|---|"]
    for name, (wall, cpu, memory) in took.items():
        lines.append(f"| `{name}` | {spread([1000 * t for t in wall], 0)} | {spread([1000 * t for t in cpu], 0)} | {max(memory) / MB:.0f} |")
    lines += [
        "", "| the server | |", "|---|---|",
        f"| peak memory, MB | {served.memory / MB:.0f} |",
        f"| peak memory of any of its looks, MB; two at a time | {served.alone.child_memory / MB:.0f} |",
        f"| from the start until everything was looked at, s | {served.first_round:.0f} |",
        f"| CPU seconds of a minute without clients: server, its looks | {served.alone.own_cpu:.1f}, {served.alone.children_cpu:.1f} |",
        f"| oldest look at a cluster after the load, s | {served.oldest:.0f} |",
    ]
    return "\n".join(lines)
