"""Known changes to a cluster, and how many pages they changed."""
from pathlib import Path

from . import cluster
from .settings import Settings

ROWS_PER_SCALE = 100_000
PAGE_BYTES = 8192
PAGES_PER_READ = 128
KINDS = ("nochange", "pages1pct", "rows1pct")


def statements(kind: str, scale: int, number: int) -> list[str]:
    """Rows are reached by index, so that no full scan sets hint bits on pages the change does not touch. Each number
    changes other rows."""
    rows, some = scale * ROWS_PER_SCALE, scale * ROWS_PER_SCALE // 100
    first = number * 7919 * 37 % (rows - some)
    return {
        "nochange": [],
        "pages1pct": [
            "SET enable_seqscan = off",
            f"UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid BETWEEN {first} AND {first + some - 1}",
        ],
        "rows1pct": [
            f"SELECT setseed({number % 1000} / 1000.0)",
            "SET enable_hashjoin = off", "SET enable_mergejoin = off", "SET enable_seqscan = off",
            "UPDATE pgbench_accounts a SET abalance = abalance + 1 FROM (SELECT DISTINCT 1 + floor(random() * "
            f"{rows})::int AS aid FROM generate_series(1, {some})) r WHERE a.aid = r.aid",
        ],
    }[kind]


def change(s: Settings, kind: str, number: int) -> int:
    """Changes the cluster, writes it to the data directory, waits for the WAL to be archived. Returns the bytes of the
    pages that changed."""
    before = parse_lsn(cluster.sql(s, "SELECT pg_current_wal_lsn()"))
    cluster.sql(s, *statements(kind, s.scale, number), "CHECKPOINT", database="bench")
    cluster.wait_archived(s)
    return sum(changed_pages(file, before) for file in cluster.regular_files(s.cluster / "base")) * PAGE_BYTES


def parse_lsn(text: str) -> int:
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


def changed_pages(file: Path, since: int) -> int:
    """Pages whose LSN, the first eight bytes of each (PageXLogRecPtr: high half, low half, native order), is newer."""
    count, size = 0, PAGE_BYTES * PAGES_PER_READ
    with file.open("rb", buffering=0) as f:
        while block := f.read(size):
            halves = memoryview(block[:len(block) // PAGE_BYTES * PAGE_BYTES]).cast("I")
            step = PAGE_BYTES // 4
            count += sum(high << 32 | low > since for high, low in zip(halves[0::step], halves[1::step]))
    return count
