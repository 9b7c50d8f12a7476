"""How each tool is set up, makes a full backup and restores it: the commands, and nothing about measuring.

Both keep encrypted repositories, compress with zstd level 1 and use the same number of workers.
"""
import os
import shutil
from pathlib import Path
from typing import Protocol

from .peer import wrapper
from .settings import Settings
from .shell import account, own_dir, run

CLUSTER = "bench"
PASSPHRASE = "bench-passphrase-not-a-secret"


class Tool(Protocol):
    name: str
    repository: Path

    def create(self) -> None: ...
    def archive_command(self) -> str: ...
    def backup(self) -> list: ...
    def restore(self, to: Path) -> list: ...
    def version(self) -> str: ...


class Pgark:
    name = "pgark"

    def __init__(self, s: Settings):
        self.s, self.repository, self.passphrase = s, s.work / "repo-pgark", s.work / "pgark.passphrase"

    def _common(self) -> list:
        return ["--repo", self.repository, "--cluster", CLUSTER, "--passphrase-file", self.passphrase]

    def create(self) -> None:
        private_file(self.s, self.passphrase, PASSPHRASE + "\n")
        empty_dir(self.s, self.repository)
        run(self.s, [self.s.pgark, "init", *self._common(), "--pgdata", self.s.cluster])

    def archive_command(self) -> str:
        return " ".join(map(str, [self.s.pgark, "archive-push", "%p", *self._common()]))

    def backup(self) -> list:
        return [self.s.pgark, "backup", "--type", "full", *self._common(), "--pgdata", self.s.cluster, "-j", self.s.jobs]

    def restore(self, to: Path) -> list:
        return [self.s.pgark, "restore", "latest", "--to", to, *self._common(), "-j", self.s.jobs]

    def version(self) -> str:
        return run(self.s, [self.s.pgark, "--version"]).strip()


class PgBackRest:
    name = "pgbackrest"

    def __init__(self, s: Settings):
        self.s, self.repository, self.conf = s, s.work / "repo-pgbackrest", s.work / "pgbackrest.conf"
        self.base = [wrapper(s), f"--config={self.conf}", f"--stanza={CLUSTER}"]

    def _configuration(self) -> str:
        lines = [
            "[global]", f"repo1-path={self.repository}", f"lock-path={self.s.work / 'lock-pgbackrest'}",
            "log-level-console=info", "log-level-file=off", "start-fast=y", f"process-max={self.s.jobs}",
            "compress-type=zst", "compress-level=1", "repo1-bundle=y", "repo1-block=y", "repo1-retention-full=9",
            "repo1-cipher-type=aes-256-cbc", f"repo1-cipher-pass={PASSPHRASE}",
            f"[{CLUSTER}]", f"pg1-path={self.s.cluster}", f"pg1-port={self.s.port}",
            f"pg1-socket-path={self.s.work / 'sock'}", "pg1-user=postgres",
        ]
        return "\n".join(lines) + "\n"

    def create(self) -> None:
        own_dir(self.s, self.s.work / "lock-pgbackrest")
        private_file(self.s, self.conf, self._configuration())
        empty_dir(self.s, self.repository)
        run(self.s, [*self.base, "stanza-create"])

    def archive_command(self) -> str:
        return " ".join(map(str, [*self.base, "--log-level-console=warn", "archive-push", "%p"]))

    def backup(self) -> list:
        return [*self.base, "--type=full", "backup"]

    def restore(self, to: Path) -> list:
        return [*self.base, f"--pg1-path={to}", "--type=none", "restore"]

    def version(self) -> str:
        return run(self.s, [wrapper(self.s), "version"]).strip()


def make_tools(s: Settings) -> list[Tool]:
    known = {"pgark": Pgark, "pgbackrest": PgBackRest}
    return [known[name](s) for name in s.tools]


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
