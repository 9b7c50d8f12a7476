"""Every choice a benchmark run makes, resolved once: flags, then environment, then defaults.

Invariant: everything that is written lies under `work`, apart from installed packages and the results table.
"""
import argparse
import os
import pwd
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REFERENCE_SCALE, REFERENCE_DOCS_MB, REFERENCE_SEGMENTS = 200, 1000, 200
SUPPORTED_MAJORS = range(13, 19)
CASES = ("backup", "restore", "incr", "basebackup", "delta", "archive", "push", "walker", "stores", "dumps")
WITHOUT_POSTGRES = ("server",)  # not part of a run of all cases
TOOLS = ("pgark", "pgbackrest")


class BenchError(Exception):
    """Ends the run with a message for the user."""


@dataclass(frozen=True)
class Settings:
    work: Path
    scale: int
    docs_mb: int
    runs: int
    jobs: int
    pgark: Path
    pgbin: Path | None
    os_user: str
    port: int
    suite: str
    tools: tuple[str, ...]
    cases: tuple[str, ...]
    segments: int
    clusters: int
    action: str
    write: bool
    data: Path | None = None  # a data directory other than the reference cluster's
    access: tuple[tuple[str, str], ...] = ()  # further environment of the measured commands

    @property
    def is_reference(self) -> bool:
        return (self.scale, self.docs_mb, self.segments) == (REFERENCE_SCALE, REFERENCE_DOCS_MB, REFERENCE_SEGMENTS)

    @property
    def chroot(self) -> Path:
        return self.work / f"chroot-{self.suite}"

    @property
    def copies(self) -> Path:
        """Data directories that a run changes: copies, and the cluster that makes WAL."""
        return self.work / "work"

    @property
    def major(self) -> int:
        return int(self.server_bin.parent.name)

    @property
    def cluster(self) -> Path:
        return self.data or self.work / f"cluster-s{self.scale}-d{self.docs_mb}-pg{self.major}"

    @property
    def server_bin(self) -> Path:
        """The newest supported PostgreSQL of this machine, in the Debian layout."""
        if self.pgbin:
            return self.pgbin
        found = [(int(p.parent.name), p) for p in Path("/usr/lib/postgresql").glob("*/bin") if (p / "initdb").exists()]
        usable = [p for major, p in sorted(found) if major in SUPPORTED_MAJORS]
        if not usable:
            raise BenchError("no PostgreSQL server 13 to 18 under /usr/lib/postgresql; set PGBIN")
        return usable[-1]

    def environment(self) -> dict[str, str]:
        """What the measured commands see: nothing of the caller's own PG* or PGARK_* settings."""
        return {
            "PATH": f"{self.server_bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.work), "LC_ALL": "C.UTF-8",
            "PGHOST": str(self.work / "sock"), "PGPORT": str(self.port), "PGUSER": "postgres", "PGDATABASE": "postgres",
        } | dict(self.access)


def parse(argv: list[str]) -> Settings:
    env = os.environ.get
    p = argparse.ArgumentParser(prog="bench/run", description="Interleaved benchmark of pgark and pgBackRest; see docs/benchmarks.md")
    p.add_argument("action", nargs="?", default="run", choices=("run", "setup", "limits", "start", "stop"),
                   help="run (default): everything; setup: install and make the cluster; limits: what the machine can do; "
                        "start, stop: the server")
    p.add_argument("--work", type=Path, default=Path(env("BENCH_WORK", "/var/tmp/pgark-bench")))
    p.add_argument("--scale", type=int, default=int(env("SCALE", str(REFERENCE_SCALE))), help="pgbench scale")
    p.add_argument("--docs-mb", type=int, default=int(env("DOCS_MB", str(REFERENCE_DOCS_MB))), help="MB of text and jsonb")
    p.add_argument("--runs", type=int, default=int(env("RUNS", "5")), help="measured pairs, after one warm-up pair")
    p.add_argument("-j", "--jobs", type=int, default=int(env("JOBS", "2")))
    p.add_argument("--pgark", type=Path, default=Path(env("PGARK", str(ROOT / "target/release/pgark"))))
    p.add_argument("--only", choices=TOOLS, help="one tool alone: no ratios, nothing written to the table")
    p.add_argument("--case", choices=CASES + WITHOUT_POSTGRES, help="one case alone: nothing written to the table")
    p.add_argument("--without", choices=CASES, action="append", default=[], help="all cases but this one; may be repeated")
    p.add_argument("--segments", type=int, default=int(env("SEGMENTS", str(REFERENCE_SEGMENTS))), help="WAL segments of the cases archive and walker")
    p.add_argument("--clusters", type=int, default=200, help="clusters of the case server")
    p.add_argument("--no-write", action="store_true", help="print only")
    a = p.parse_args(argv)
    if min(a.scale, a.runs, a.jobs, a.segments, a.clusters) < 1 or a.docs_mb < 0:
        p.error("--scale, --runs, --jobs, --segments and --clusters start at 1, --docs-mb at 0")
    os_user = env("BENCH_OS_USER", "postgres") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    pgbin = env("PGBIN")
    if pgbin and not re.fullmatch(r"\d+", Path(pgbin).parent.name):
        p.error("PGBIN must look like …/MAJOR/bin")
    return Settings(
        work=a.work.resolve(), scale=a.scale, docs_mb=a.docs_mb, runs=a.runs, jobs=a.jobs, pgark=a.pgark.resolve(),
        pgbin=Path(pgbin) if pgbin else None, os_user=os_user, port=int(env("BENCH_PORT", "55433")), suite=env("BENCH_SUITE", "sid"),
        tools=(a.only,) if a.only else TOOLS, cases=(a.case,) if a.case else tuple(case for case in CASES if case not in a.without),
        segments=a.segments, clusters=a.clusters, action=a.action,
        write=not (a.no_write or a.only or a.case),
    )


def require_pgark(s: Settings) -> None:
    if "pgark" in s.tools and shutil.which(str(s.pgark)) is None:
        raise BenchError(
            f"pgark is missing or not executable: {s.pgark}\n"
            "HINT: 'cargo build --release', or set PGARK to a binary; '--only pgbackrest' measures the peer alone")
