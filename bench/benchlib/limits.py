"""What this machine can do with the same bytes, whatever the tool: the figures above are to be read against these."""
from pathlib import Path

from .measure import Sample, measure
from .settings import Settings
from .shell import account, own_dir, say

READ = 'tar -C "$0" --exclude=./pg_wal -cf - . '
LIMITS = {
    "read (tar to a pipe)": READ + "| cat >/dev/null",
    "zstd -1, one thread": READ + "| zstd -q -1 -T1 -c >/dev/null",
    "zstd -1, two threads": READ + "| zstd -q -1 -T2 -c >/dev/null",
    "lz4 -1, one thread": READ + "| lz4 -q -1 -c >/dev/null",
}


def run_limits(s: Settings, data: Path) -> dict[str, list[Sample]]:
    """Expects a stopped server and data in the page cache; one uncounted warm-up, then `runs` rounds."""
    log = own_dir(s, s.work / "logs") / "limits.log"
    samples: dict[str, list[Sample]] = {name: [] for name in LIMITS}
    for number in range(s.runs + 1):
        say(f"limits, {'warm-up' if number == 0 else f'round {number} of {s.runs}'}")
        for name, script in LIMITS.items():
            sample = measure(["bash", "-c", "set -euo pipefail; " + script, data], log, None, env=s.environment(), cwd=s.work, **account(s))
            if number:
                samples[name].append(sample)
    return samples
