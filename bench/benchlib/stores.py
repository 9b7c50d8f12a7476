"""Backup and restore over the network: each tool to a local directory and to two servers that speak S3, on this machine and
through TLS, because pgBackRest speaks nothing else.

Invariant: both tools talk to the same server process, each below a prefix that nothing was written to before.
"""
import itertools
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Iterator

from . import cluster
from .rounds import Results, backup, in_turn, record, restore
from .settings import ROOT, BenchError, Settings
from .shell import own_dir, run_as_caller, say
from .tools import PgBackRest, Pgark, Tool, make_tools, private_file

SERVERS = ROOT / "target" / "test-servers"
BUCKET, KEY_ID, SECRET = "bench", "bench-key-id", "bench-secret-of-no-value"
CASE, LOCAL = "stores", "a directory"
START_SECONDS = 60
prefixes = itertools.count(1)


@dataclass(frozen=True)
class Server:
    name: str
    port: int
    certificate: Path

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


def run_stores(s: Settings, results: Results) -> None:
    own = replace(s, access=(("AWS_ACCESS_KEY_ID", KEY_ID), ("AWS_SECRET_ACCESS_KEY", SECRET)))
    work = own_dir(s, s.work / "stores")
    certificate = make_certificate(s, work)
    try:
        rounds(s, LOCAL, make_tools(s), results)
        for start in (moto, s3s):
            with start(own, work, certificate) as server:
                rounds(own, server.name, remote_tools(own, server), results)
    finally:
        cluster.set_archive_command(s, "/bin/true")
        shutil.rmtree(work)


def rounds(s: Settings, place: str, tools: list[Tool], results: Results) -> None:
    for number, ordered in in_turn(s, f"stores, {place}", tools):
        for tool in ordered:
            record(s, results, number, f"{CASE} backup to {place}", tool.name, backup(s, tool))
        for tool in ordered:
            record(s, results, number, f"{CASE} restore from {place}", tool.name, restore(s, tool, number))


def remote_tools(s: Settings, server: Server) -> list[Tool]:
    kinds = {Pgark.name: PgarkS3, PgBackRest.name: PgBackRestS3}
    return [kinds[name](s, server) for name in s.tools]


class PgarkS3(Pgark):
    def __init__(self, s: Settings, server: Server):
        super().__init__(s)
        self.server, self.prefix = server, "none"

    def _place(self) -> str:
        return f"s3://{BUCKET}/{self.prefix}?endpoint=https://{self.server.address}&ca_file={self.server.certificate}"

    def create(self) -> None:
        self.prefix = f"pgark-{next(prefixes)}"
        super().create()

    def push(self, path: str) -> list:
        # PostgreSQL runs it with an environment of its own.
        return ["env", *(f"{name}={value}" for name, value in self.s.access), *super().push(path)]


class PgBackRestS3(PgBackRest):
    def __init__(self, s: Settings, server: Server):
        super().__init__(s)
        self.server, self.prefix = server, "none"

    def _place(self) -> list[str]:
        return [
            "repo1-type=s3", f"repo1-path=/{self.prefix}", f"repo1-s3-bucket={BUCKET}", "repo1-s3-uri-style=path",
            "repo1-s3-endpoint=127.0.0.1", f"repo1-storage-port={self.server.port}", "repo1-s3-region=us-east-1",
            f"repo1-s3-key={KEY_ID}", f"repo1-s3-key-secret={SECRET}", "repo1-storage-verify-tls=n",
        ]

    def create(self) -> None:
        self.prefix = f"pgbackrest-{next(prefixes)}"
        super().create()


def make_certificate(s: Settings, work: Path) -> Path:
    """Of one day; its key lies beside it."""
    path = work / "server.pem"
    private_file(s, work / "server.key", "")
    run_as_caller(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
                   "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE",
                   "-keyout", work / "server.key", "-out", path])
    path.chmod(0o644)
    return path


@contextmanager
def moto(s: Settings, work: Path, certificate: Path) -> Iterator[Server]:
    plain = free_port()
    with running(s, [installed("moto/bin/moto_server"), "-H", "127.0.0.1", "-p", plain], plain):
        request = urllib.request.Request(f"http://127.0.0.1:{plain}/{BUCKET}", method="PUT")
        urllib.request.urlopen(request, timeout=20).close()
        with through_tls(s, work, "moto", plain, certificate) as server:
            yield server


@contextmanager
def s3s(s: Settings, work: Path, certificate: Path) -> Iterator[Server]:
    plain, root = free_port(), own_dir(s, work / "s3s")
    own_dir(s, root / BUCKET)
    command = [installed("s3s/bin/s3s-fs"), "--host", "127.0.0.1", "--port", plain, "--access-key", KEY_ID, "--secret-key", SECRET, root]
    with running(s, command, plain), through_tls(s, work, "s3s-fs", plain, certificate) as server:
        yield server


@contextmanager
def through_tls(s: Settings, work: Path, name: str, plain: int, certificate: Path) -> Iterator[Server]:
    """One of the servers speaks no TLS and the other ends connections without saying so, which pgBackRest takes for an error."""
    if not shutil.which("stunnel"):
        raise BenchError("stunnel is missing: apt-get install stunnel4")
    server, conf = Server(name, free_port(), certificate), work / "stunnel.conf"
    private_file(s, conf, f"foreground = yes\npid =\n[s3]\naccept = {server.address}\nconnect = 127.0.0.1:{plain}\n"
                          f"cert = {certificate}\nkey = {work / 'server.key'}\nTIMEOUTclose = 0\n")
    with running(s, ["stunnel", conf], server.port):
        yield server


def installed(program: str) -> Path:
    path = SERVERS / program
    if not path.exists():
        raise BenchError(f"{path} is missing: run scripts/setup-debian.sh --servers")
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(s: Settings, command: list, port: int) -> Iterator[None]:
    args = [str(c) for c in command]
    log = own_dir(s, s.work / "logs") / f"{Path(args[0]).name}.log"
    say(f"starting {Path(args[0]).name}")
    with log.open("ab") as out:
        child = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=s.work,
                                 env=os.environ | {"TMPDIR": str(s.work / "stores")})
    try:
        until = time.monotonic() + START_SECONDS
        while not accepts(port):
            if child.poll() is not None or time.monotonic() > until:
                raise BenchError(f"{args[0]} does not answer; see {log}")
            time.sleep(0.1)
        yield
    finally:
        child.terminate()
        child.wait()


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
