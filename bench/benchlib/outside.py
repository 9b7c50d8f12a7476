"""Programs of the chroot, run outside it through the chroot's own dynamic loader and libraries: so they meet the same file
system and accounts as pgark, and their machine code stays that of their distribution.
"""
from pathlib import Path

from .settings import BenchError, Settings


def write(s: Settings, path: Path, program: Path) -> None:
    """A script that execs the program. argv[0] is the script: pgBackRest starts its workers by it, and PostgreSQL's programs
    find each other beside it."""
    lib = s.chroot / "usr/lib/x86_64-linux-gnu"
    loader = lib / "ld-linux-x86-64.so.2"
    if not loader.exists():
        raise BenchError(f"no dynamic loader at {loader}: the benchmark knows Debian on x86-64 only")
    text = f'#!/bin/sh\nexec {loader} --argv0 {path} --library-path {lib} {program} "$@"\n'
    if path.exists() and path.read_text() == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
