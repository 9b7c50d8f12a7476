#!/usr/bin/env python3
"""docs_rows.py FIRST LAST: rows of the table docs, COPY text format, about 1 kB each; the same for the same arguments.

Words drawn with a skew, numbers, hashes: shrinks about threefold, which is neither zeros nor noise.
"""
import hashlib
import json
import random
import sys
from itertools import accumulate

VOCABULARY, POOL, PIECES = 2000, 1_000_000, 8
KINDS = ("note", "mail", "order", "event")


def vocabulary() -> list[str]:
    letters = "abcdefghijklmnop"
    digests = (hashlib.sha256(b"word %d" % i).digest() for i in range(VOCABULARY))
    return ["".join(letters[b & 15] for b in d[: 3 + d[31] % 7]) for d in digests]


def word_pool(rnd: random.Random) -> list[str]:
    """Drawn once, because a weighted draw for each word of a gigabyte takes minutes."""
    skew = list(accumulate(1.0 / (rank + 8) for rank in range(VOCABULARY)))
    return rnd.choices(vocabulary(), cum_weights=skew, k=POOL)


def row(number: int, rnd: random.Random, pool: list[str]) -> str:
    body: list[str] = []
    for _ in range(PIECES):
        at = rnd.randrange(POOL - 16)
        body += pool[at : at + 10 + number % 6]
    meta = {
        "user": rnd.randrange(1_000_000), "amount": round(rnd.random() * 1000, 2), "ok": rnd.random() < 0.9,
        "token": hashlib.sha256(b"token %d" % number).hexdigest()[:32],
        "tags": [f"t{rnd.randrange(50)}", f"t{rnd.randrange(500)}"], "host": f"node-{number % 97}.example",
    }
    minutes = number // 2
    when = f"{2020 + minutes // 525_600 % 60}-{1 + minutes // 43_200 % 12:02}-{1 + minutes // 1440 % 28:02} {minutes // 60 % 24:02}:{minutes % 60:02}:00+00"
    return f"{number}\t{when}\t{KINDS[number % 4]}\t{' '.join(body)}\t{json.dumps(meta)}\n"


def main() -> None:
    first, last = int(sys.argv[1]), int(sys.argv[2])
    rnd = random.Random(first)
    pool = word_pool(rnd)
    for number in range(first, last + 1):
        sys.stdout.write(row(number, rnd, pool))


if __name__ == "__main__":
    main()
