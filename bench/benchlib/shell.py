"""Running commands as the unprivileged account, because PostgreSQL refuses root. A failed command ends the run."""
import json
import os
import pwd
import subprocess
import sys
import time
from pathlib import Path

from .settings import ROOT, BenchError, Settings


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def account(s: Settings) -> dict:
    """Popen arguments that drop root; none when we are not root."""
    if os.geteuid() != 0:
        return {}
    try:
        who = pwd.getpwnam(s.os_user)
    except KeyError as e:
        raise BenchError(f"there is no account {s.os_user!r}; set BENCH_OS_USER") from e
    return {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": []}


def own_dir(s: Settings, path: Path, mode: int = 0o700) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    who = account(s)
    if who:
        os.chown(path, who["user"], who["group"])
    path.chmod(mode)
    return path


def run(s: Settings, cmd: list, **kw) -> str:
    """Runs as the unprivileged account and returns stdout."""
    args = [str(c) for c in cmd]
    done = subprocess.run(args, env=s.environment(), cwd=s.work, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, check=False, **({"stdin": subprocess.DEVNULL} | kw), **account(s))
    if done.returncode:
        raise BenchError(f"{' '.join(args)} ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


def run_as_caller(cmd: list, **kw) -> str:
    """Runs as whoever started us (installing needs root) and returns stdout."""
    args = [str(c) for c in cmd]
    done = subprocess.run(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **kw)
    if done.returncode:
        raise BenchError(f"{' '.join(args)} ended with {done.returncode}\n{done.stdout[-4000:]}")
    return done.stdout


def built_example(package: str, name: str) -> Path:
    """With the cargo settings of the caller, as pgark itself was built."""
    say(f"building the example {name}")
    out = run_as_caller(["cargo", "build", "--release", "--locked", "--quiet", "--package", package, "--example", name,
                         "--message-format", "json"], cwd=ROOT)
    made = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    found = [line["executable"] for line in made if line["reason"] == "compiler-artifact" and line["target"]["name"] == name]
    if not found:
        raise BenchError(f"cargo does not say where it put the example {name}")
    return Path(found[0])
