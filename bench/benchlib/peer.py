"""Installs what the benchmark needs, once: packages of this machine, and in a chroot the newest pgBackRest and a newer
PostgreSQL. How those run: outside.py.
"""
import os
import re
import shutil
from pathlib import Path

from . import newer, outside
from .settings import BenchError, Settings
from .shell import run_as_caller, say

QUIET_APT = {"env": os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}}
PROGRAM = "usr/bin/pgbackrest"
HOST_PROGRAMS = {"zstd": "zstd", "lz4": "lz4", "tar": "tar", "stunnel": "stunnel4"}
# Run inside a mount namespace of its own: the binds vanish with it, so removing the chroot cannot reach through them.
IN_CHROOT = 'set -e; for p in proc dev; do mount --rbind "/$p" "$0/$p"; done; exec chroot "$0" "$@"'


def install(s: Settings) -> None:
    needed = HOST_PROGRAMS | ({"restic": "restic"} if "dumps" in s.cases else {})
    missing = {package for program, package in needed.items() if not shutil.which(program)}
    try:
        _ = s.server_bin
    except BenchError:
        missing.add("postgresql")
    in_chroot = chroot_packages(s)
    if in_chroot and not shutil.which("debootstrap"):
        missing.add("debootstrap")
    if (missing or in_chroot) and os.geteuid() != 0:
        raise BenchError(f"installing {' '.join([*sorted(missing), *in_chroot])} needs root; run bench/run setup as root once")
    if missing:
        say(f"installing {' '.join(sorted(missing))}")
        run_as_caller(["apt-get", "update", "-q"], **QUIET_APT)
        run_as_caller(["apt-get", "install", "-y", "--no-install-recommends", *sorted(missing)], **QUIET_APT)
    if in_chroot:
        make_chroot(s, in_chroot)
    if "pgbackrest" in s.tools:
        outside.write(s, wrapper(s), s.chroot / PROGRAM)


def chroot_packages(s: Settings) -> list[str]:
    """What the chroot lacks."""
    lacks_peer = "pgbackrest" in s.tools and not (s.chroot / PROGRAM).exists()
    lacks_server = "basebackup" in s.cases and not newer.found(s)
    return ["pgbackrest"] * lacks_peer + ["postgresql"] * lacks_server


def make_chroot(s: Settings, packages: list[str]) -> None:
    say(f"installing {' '.join(packages)} of Debian {s.suite} in {s.chroot}")
    if not (s.chroot / "etc/debian_version").exists():
        run_as_caller(["debootstrap", "--variant=minbase", s.suite, s.chroot, mirror()], **QUIET_APT)
    policy = s.chroot / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")  # a package must not start services
    policy.chmod(0o755)
    for name in ("resolv.conf", "hosts"):
        shutil.copyfile(f"/etc/{name}", s.chroot / "etc" / name)
    copy_validity_rule(s)
    for command in (["apt-get", "update", "-q"], ["apt-get", "install", "-y", "--no-install-recommends", *packages]):
        run_as_caller(["unshare", "--mount", "--propagation", "private", "sh", "-c", IN_CHROOT, s.chroot, *command], **QUIET_APT)


def copy_validity_rule(s: Settings) -> None:
    """A machine that uses a frozen mirror says so in its own apt configuration; the chroot uses the same mirror and follows
    that one setting, never a looser one. Signatures are checked either way."""
    said = run_as_caller(["apt-config", "shell", "V", "Acquire::Check-Valid-Until/b"]).strip()
    if said == "V='false'":
        (s.chroot / "etc/apt/apt.conf.d/90host-valid-until").write_text('Acquire::Check-Valid-Until "false";\n')


def mirror() -> str:
    """The package mirror this machine uses; MIRROR overrides."""
    if os.environ.get("MIRROR"):
        return os.environ["MIRROR"]
    texts = [p.read_text() for p in sorted(Path("/etc/apt/sources.list.d").glob("*.sources"))]
    listed = Path("/etc/apt/sources.list")
    texts += [listed.read_text()] if listed.exists() else []
    found = re.findall(r"^(?:URIs:|deb(?: \[[^]]*\])?) +(\S*/debian/?)(?:\s|$)", "\n".join(texts), re.M)
    if not found:
        raise BenchError("no Debian mirror in /etc/apt; set MIRROR")
    return found[0]


def wrapper(s: Settings) -> Path:
    return s.work / "bin" / "pgbackrest"
