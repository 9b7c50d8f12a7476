"""Ten daily dumps of one database of which 1 % of the rows change each day: what each way of keeping them takes, first and last.

Invariant: all of them dump the same state of the same server, in turn, day by day. What pgark keeps is restored at the end and
compared with what it wrote down of the source; a difference ends the benchmark.
"""
from dataclasses import dataclass, replace
from pathlib import Path

from . import cluster
from .measure import Sample
from .rounds import measured
from .settings import Settings
from .shell import run, say
from .tools import PASSPHRASE, Pgark, empty_dir, private_file

DAYS = 10
DATABASE = "bench"
NEIGHBOURS, AT_RANDOM = "rows that are neighbours", "rows at random"
# In both tables. A table of narrow rows has one at random in nearly every chunk; what an application changes lies together as a rule.
CHANGES = {
    NEIGHBOURS: (
        "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid / ((SELECT max(aid) FROM pgbench_accounts) / 100 + 1) = {day}",
        "UPDATE docs SET body = body || ' changed on day {day}' WHERE id / ((SELECT max(id) FROM docs) / 100 + 1) = {day}",
    ),
    AT_RANDOM: (
        "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE hashint8(aid::bigint + {day}::bigint << 32) % 100 = 0",
        "UPDATE docs SET body = body || ' changed on day {day}' WHERE hashint8(id + {day}::bigint << 32) % 100 = 0",
    ),
}


@dataclass(frozen=True)
class Day:
    wall: float
    cpu: float
    memory: int
    stored: int  # by all days so far


@dataclass(frozen=True)
class Dumps:
    database_bytes: int
    versions: list[str]
    days: dict[str, list[Day]]
    samples: list[Sample]
    commands: list[list]


class Keeper:
    """One way of keeping dumps. `commands` of a day are measured one after the other and summed up."""
    name = title = ""

    def __init__(self, s: Settings):
        self.s, self.repository = s, s.work / f"repo-{self.name}"

    def create(self) -> None:
        empty_dir(self.s, self.repository)

    def commands(self, day: int) -> list[list]:
        raise NotImplementedError

    def dump(self, *words: str | Path | int) -> list:
        return [self.s.server_bin / "pg_dump", f"--dbname={DATABASE}", *words]


class Custom(Keeper):
    name, title = "pg_dump-Fc", "`pg_dump -Fc`"

    def commands(self, day: int) -> list[list]:
        return [self.dump("-Fc", "-f", self.repository / f"{day}.dump")]


class Directory(Keeper):
    name, title = "pg_dump-Fd", "`pg_dump -Fd -jN`"

    def commands(self, day: int) -> list[list]:
        return [self.dump("-Fd", "-j", self.s.jobs, "-f", self.repository / f"{day}")]


class Restic(Keeper):
    """A file is dumped, given to restic, and lies there until the next one."""
    name, title = "restic", "`pg_dump -Fc` files in restic"
    options: tuple[str, ...] = ()

    def create(self) -> None:
        super().create()
        empty_dir(self.s, self.staging())
        private_file(self.s, self.secret(), PASSPHRASE + "\n")
        run(self.s, [*self.restic(), "init"])

    def staging(self) -> Path:
        return self.s.work / f"staging-{self.name}"

    def secret(self) -> Path:
        return self.s.work / "restic.passphrase"

    def restic(self) -> list:
        return ["restic", "--quiet", "--repo", self.repository, "--password-file", self.secret()]

    def commands(self, day: int) -> list[list]:
        file = self.staging() / f"{DATABASE}.dump"
        return [self.dump("-Fc", *self.options, "-f", file), [*self.restic(), "backup", file]]


class ResticPlain(Restic):
    """Not compressed by pg_dump, so that restic sees what is the same; restic compresses."""
    name, title, options = "restic-Z0", "`pg_dump -Fc -Z0` files in restic", ("-Z0",)


class PgarkDumps(Keeper):
    name, title = "pgark", "pgark"

    def __init__(self, s: Settings):
        super().__init__(s)
        self.tool = Pgark(s)
        self.repository = self.tool.repository

    def create(self) -> None:
        self.tool.create()

    def commands(self, day: int) -> list[list]:
        return [[self.s.pgark, "backup", "--kind", "logical", "--database", DATABASE, *self.tool._common(), "-j", self.s.jobs, "--quiet"]]

    def check(self) -> None:
        words = ["restore", "--kind", "logical", "--database", DATABASE, "--to-database", "restored", *self.tool._common()]
        run(self.s, [self.s.pgark, *words, "-j", self.s.jobs, "--quiet"])


KEEPERS = (PgarkDumps, Custom, Directory, Restic, ResticPlain)


def run_dumps(s: Settings) -> dict[str, Dumps]:
    """On a database of a tenth of the reference size; by which rows change."""
    small = replace(s, scale=max(1, s.scale // 10), docs_mb=s.docs_mb // 5)
    cluster.make(small)
    return {which: on_a_copy(small, which, changes) for which, changes in CHANGES.items()}


def on_a_copy(s: Settings, which: str, changes: tuple[str, ...]) -> Dumps:
    copy = cluster.make_copy(s, "dumps")
    try:
        cluster.start(copy)
        return days_of(copy, which, changes)
    finally:
        cluster.remove_copy(copy)


def days_of(s: Settings, which: str, changes: tuple[str, ...]) -> Dumps:
    keepers = [kind(s) for kind in KEEPERS]
    for keeper in keepers:
        keeper.create()
    days: dict[str, list[Day]] = {keeper.name: [] for keeper in keepers}
    samples: list[Sample] = []
    size = int(cluster.sql(s, f"SELECT pg_database_size('{DATABASE}')"))
    for day in range(1, DAYS + 1):
        say(f"dumps, {which}, day {day} of {DAYS}")
        if day > 1:
            cluster.sql(s, *(change.format(day=day) for change in changes), database=DATABASE)
            cluster.sql(s, "VACUUM", database=DATABASE)
        cluster.warm(s.cluster / "base")
        for keeper in keepers if day % 2 else keepers[::-1]:
            taken = [measured(s, keeper, "dumps", command) for command in keeper.commands(day)]
            samples += taken
            stored = cluster.size_bytes(keeper.repository)
            days[keeper.name].append(Day(sum(x.wall for x in taken), sum(x.cpu for x in taken), max(x.memory for x in taken), stored))
            say(f"  {keeper.name:12} wall {days[keeper.name][-1].wall:7.2f}  cpu {days[keeper.name][-1].cpu:7.2f}  stored {stored / 1e6:.1f} MB")
    keepers[0].check()
    versions = [Pgark(s).version(), run(s, [s.server_bin / "pg_dump", "--version"]).strip(), run(s, ["restic", "version"]).split(" compiled")[0]]
    return Dumps(size, versions, days, samples, [command for keeper in keepers for command in keeper.commands(1)])
