"""How each tool is set up, backs up, restores and archives: the commands, and nothing about measuring.

Both keep encrypted repositories, compress with zstd level 1 and use the same number of workers.
"""
import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Protocol

from . import cluster
from .peer import wrapper
from .settings import Settings
from .shell import account, own_dir, run

CLUSTER = "bench"
PASSPHRASE = "bench-passphrase-not-a-secret"


class Tool(Protocol):
    name: str
    repository: Path
    backups: Path  # the part of the repository without the WAL

    def create(self) -> None: ...
    def push(self, path: str) -> list: ...
    def get(self, segment: str, to: Path) -> list: ...
    def bare_start(self) -> list: ...
    def backup(self, kind: str = "full") -> list: ...
    def read_bytes(self, output: str) -> int | None: ...
    def restore(self, to: Path, delta: bool = False) -> list: ...
    def version(self) -> str: ...
    def commands(self, cases: tuple[str, ...]) -> list[list]: ...


class Shown:
    """The commands of each case, as a reader of the results gets to see them."""

    def commands(self, cases: tuple[str, ...]) -> list[list]:
        to = self.s.work / f"restored-{self.name}"
        of = {"backup": self.backup(), "restore": self.restore(to), "incr": self.backup("incr"), "delta": self.restore(to, delta=True),
              "archive": self.push("%p"), "push": self.get("%f", "%p")}
        return [of[case] for case in cases if case in of]


class Pgark(Shown):
    name = "pgark"

    def __init__(self, s: Settings):
        self.s, self.repository, self.passphrase = s, s.work / "repo-pgark", s.work / "pgark.passphrase"
        self.backups = self.repository / "clusters" / CLUSTER / "backups"

    def _place(self) -> str | Path:
        return self.repository

    def _common(self) -> list:
        return ["--repo", self._place(), "--cluster", CLUSTER, "--passphrase-file", self.passphrase]

    def create(self) -> None:
        private_file(self.s, self.passphrase, PASSPHRASE + "\n")
        empty_dir(self.s, self.repository)
        run(self.s, [self.s.pgark, "init", *self._common(), "--pgdata", self.s.cluster])

    def push(self, path: str) -> list:
        return [self.s.pgark, "archive-push", path, *self._common(), "-j", self.s.jobs]

    def get(self, segment: str, to: Path) -> list:
        return [self.s.pgark, "archive-get", segment, to, *self._common()]

    def bare_start(self) -> list:
        return [self.s.pgark, "--version"]

    def backup(self, kind: str = "full") -> list:
        return [self.s.pgark, "backup", "--type", kind, *self._common(), "--pgdata", self.s.cluster, "-j", self.s.jobs, "--json"]

    def read_bytes(self, output: str) -> int | None:
        """What a backup says it read of the data directory."""
        return json.loads(output[output.index("{"):output.rindex("}") + 1])["read_bytes"]

    def restore(self, to: Path, delta: bool = False) -> list:
        return [self.s.pgark, "restore", "latest", "--to", to, *self._common(), "-j", self.s.jobs, *["--delta"] * delta]

    def version(self) -> str:
        return run(self.s, self.bare_start()).strip()


class PgBackRest(Shown):
    name = "pgbackrest"

    def __init__(self, s: Settings):
        self.s, self.repository, self.conf = s, s.work / "repo-pgbackrest", s.work / "pgbackrest.conf"
        self.backups = self.repository / "backup" / CLUSTER
        self.base = [wrapper(s), f"--config={self.conf}", f"--stanza={CLUSTER}"]

    def _configuration(self) -> str:
        lines = [
            "[global]", *self._place(), f"lock-path={self.s.work / 'lock-pgbackrest'}",
            "log-level-console=info", "log-level-file=off", "start-fast=y", f"process-max={self.s.jobs}",
            "compress-type=zst", "compress-level=1", "repo1-bundle=y", "repo1-block=y", "repo1-retention-full=9",
            "repo1-cipher-type=aes-256-cbc", f"repo1-cipher-pass={PASSPHRASE}", *self._options(),
            f"[{CLUSTER}]", f"pg1-path={self.s.cluster}", f"pg1-port={self.s.port}",
            f"pg1-socket-path={self.s.work / 'sock'}", "pg1-user=postgres",
        ]
        return "\n".join(lines) + "\n"

    def _place(self) -> list[str]:
        return [f"repo1-path={self.repository}"]

    def _options(self) -> list[str]:
        return []

    def create(self) -> None:
        own_dir(self.s, self.s.work / "lock-pgbackrest")
        private_file(self.s, self.conf, self._configuration())
        empty_dir(self.s, self.repository)
        run(self.s, [*self.base, "stanza-create"])

    def push(self, path: str) -> list:
        return [*self.base, "--log-level-console=warn", "archive-push", path]

    def get(self, segment: str, to: Path) -> list:
        return [*self.base, "--log-level-console=warn", "archive-get", segment, to]

    def bare_start(self) -> list:
        return [wrapper(self.s), "version"]

    def backup(self, kind: str = "full") -> list:
        return [*self.base, f"--type={kind}", "backup"]

    def read_bytes(self, output: str) -> int | None:
        return None  # it does not say

    def restore(self, to: Path, delta: bool = False) -> list:
        return [*self.base, f"--pg1-path={to}", "--type=none", *["--delta"] * delta, "restore"]

    def version(self) -> str:
        return run(self.s, self.bare_start()).strip()


class PgBackRestAsync(PgBackRest):
    """Its archive-push leaves a process behind that pushes what is ready into the repository ahead of being asked."""
    name = "pgbackrest-async"

    def create(self) -> None:
        empty_dir(self.s, self.s.work / "spool-pgbackrest")
        super().create()

    def _options(self) -> list[str]:
        return ["archive-async=y", f"spool-path={self.s.work / 'spool-pgbackrest'}"]


class BaseBackup:
    """PostgreSQL's own incremental backup, 17 and later: directories in plain format, neither compressed nor encrypted. Its WAL
    comes with each backup, so nothing is archived."""
    name = "pg_basebackup"

    def __init__(self, s: Settings):
        self.s, self.repository = s, s.work / "repo-pg_basebackup"
        self.backups = self.repository

    def create(self) -> None:
        empty_dir(self.s, self.repository)
        cluster.sql(self.s, "ALTER SYSTEM SET summarize_wal = on", "SELECT pg_reload_conf()")

    def push(self, path: str) -> list:
        return ["/bin/true"]

    def _chain(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.repository.glob("*"))

    def backup(self, kind: str = "full") -> list:
        chain = self._chain()
        base = [f"--incremental={chain[-1] / 'backup_manifest'}"] if kind == "incr" else []
        return [self.s.server_bin / "pg_basebackup", "-D", self.repository / f"{len(chain)}-{kind}", "-c", "fast", "-X", "stream", *base]

    def restore(self, to: Path, delta: bool = False) -> list:
        return [self.s.server_bin / "pg_combinebackup", *self._chain(), "-o", to]

    def read_bytes(self, output: str) -> int | None:
        return None  # it does not say

    def version(self) -> str:
        return run(self.s, [self.s.server_bin / "pg_basebackup", "--version"]).strip()


class Copy:
    """cp as archive_command, for orientation: nothing is compressed, encrypted, checked or made durable."""
    name = "cp"

    def __init__(self, s: Settings):
        self.s, self.repository = s, s.work / "repo-cp"

    def create(self) -> None:
        empty_dir(self.s, self.repository)

    def push(self, path: str) -> list:
        return ["cp", path, self.repository]


KNOWN = {tool.name: tool for tool in (Pgark, PgBackRest)}


def make_tools(s: Settings) -> list[Tool]:
    """For the cluster of these settings."""
    return [KNOWN[name](s) for name in s.tools]


def archive_command(tool: Tool | Copy) -> str:
    return " ".join(str(word) if word == "%p" else shlex.quote(str(word)) for word in tool.push("%p"))


def empty_dir(s: Settings, path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
    own_dir(s, path)


def private_file(s: Settings, path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)
    who = account(s)
    if who:
        os.chown(path, who["user"], who["group"])
