"""A PostgreSQL that has incremental backups of its own: this machine's where it is one, or else the chroot's.

PostgreSQL finds its share and lib directories relative to the program that was started. So the chroot's programs run from a
tree of the same shape, in which those directories are links.
"""
from dataclasses import replace
from pathlib import Path

from . import outside
from .settings import SUPPORTED_MAJORS, BenchError, Settings

FIRST_MAJOR = 17


def found(s: Settings) -> bool:
    return is_own(s) or in_chroot(s) is not None


def server(s: Settings) -> Settings:
    """The same settings with that server."""
    if is_own(s):
        return s
    major = in_chroot(s)
    if major is None:
        raise BenchError(f"no PostgreSQL {FIRST_MAJOR} to {SUPPORTED_MAJORS[-1]} in {s.chroot}; set PGBIN to one, or BENCH_SUITE")
    return replace(s, pgbin=write_tree(s, major))


def is_own(s: Settings) -> bool:
    try:
        return s.major >= FIRST_MAJOR
    except BenchError:
        return False


def in_chroot(s: Settings) -> int | None:
    majors = [int(p.parent.parent.name) for p in (s.chroot / "usr/lib/postgresql").glob("*/bin/initdb")]
    return max((m for m in majors if m in SUPPORTED_MAJORS and m >= FIRST_MAJOR), default=None)


def write_tree(s: Settings, major: int) -> Path:
    """Returns its directory of programs."""
    tree = s.work / f"server-{s.suite}"
    home = Path("usr/lib/postgresql") / str(major)
    for program in (s.chroot / home / "bin").iterdir():
        outside.write(s, tree / home / "bin" / program.name, program)
    for name in (Path("usr/share/postgresql"), home / "lib"):
        link(tree / name, s.chroot / name)
    return tree / home / "bin"


def link(at: Path, to: Path) -> None:
    if not at.is_symlink():
        at.parent.mkdir(parents=True, exist_ok=True)
        at.symlink_to(to)
