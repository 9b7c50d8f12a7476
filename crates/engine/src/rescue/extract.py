#!/usr/bin/env python3
"""Gets data out of a pgark repository without pgark. A second reader of the format that format.md beside it describes.

    extract.py --repo DIR --passphrase-file F list
    extract.py --repo DIR --passphrase-file F backup ID --to NEWDIR [--tablespaces NEWDIR]
    extract.py --repo DIR --passphrase-file F wal NAME --to FILE

Python 3.9 or newer on Linux, and these packages of Debian and Ubuntu (RHEL and Fedora have them under the same names):
    python3-cryptography   encrypted repositories (apt install python3-cryptography)
    python3-zstandard      or the command zstd: what is compressed with zstd, the default
    python3-lz4            what is compressed with lz4
    python3-argon2         (argon2-cffi) passphrases
    age                    the command, for --age-identity-file
    b3sum                  or the Python module blake3: makes BLAKE3 fast; without either, this file computes it itself, slowly

What it reads is authenticated by the repository's key; without encryption it is compared with checksums. Anything that is
damaged, missing or unknown ends it with an error and code 1, and what it has written by then is not to be used: global/pg_control
comes last, so PostgreSQL does not start on it.

A directory that 'backup' wrote is what pg_basebackup would have written: start it with pg_ctl. It recovers to the end of the backup.
For a later moment, set restore_command to a call of 'wal %f --to %p' and create recovery.signal, as PostgreSQL's documentation says;
that a segment is missing is then the end of the recovery, so look at where it ended.

Of a logical backup (ids that end with L) it writes the dumps, each for pg_restore: database/NAME/dump, with other bytes of NAME than letters,
digits, _ and - as %XX; and globals.json, which lists roles with their password verifiers, tablespaces and settings.

This file changes nothing in the repository. It is not run by pgark. Compare its SHA-256 with the one in pgark's documentation.
"""

import argparse
import hashlib
import hmac
import json
import os
import re
import shutil
import struct
import subprocess
import sys

MAGIC = b"PGARKOBJ"
PACK, MANIFEST, RECORD, SEGMENT, SIDE_FILE, HEAD, CATALOG = 1, 2, 3, 4, 5, 6, 7
DOMAINS = {PACK: "data", MANIFEST: "data", RECORD: "data", SEGMENT: "wal", SIDE_FILE: "wal", HEAD: "wal", CATALOG: "catalog"}
NONE, AES, CHACHA = 0, 1, 2
ALGORITHMS = {"none": NONE, "aes-256-gcm": AES, "chacha20-poly1305": CHACHA}
FRAME_MAX = 4 << 20
BLOCK_MAX = 8 << 20
ITEM_MAX = 16 << 20
VALUE_MAX = 256 << 20
RING_MAX = 1 << 20
RECORD_MAX = 64 << 20
SIDE_FILE_MAX = 4 << 20
CHUNKS_MAX = 4096
PARTS_MAX = 64
PATH_MAX = 4096
FRAMES_KEPT = 16
TAIL_BYTES = 64


class Bad(Exception):
    """Damaged, missing, unknown, or refused."""


def note(text):
    print(text, file=sys.stderr, flush=True)


# BLAKE3: the module, the command, or our own.

IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
QUARTERS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15), (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))
CHUNK_START, CHUNK_END, PARENT, ROOT, KEYED, DERIVE_CONTEXT, DERIVE_MATERIAL = 1, 2, 4, 8, 16, 32, 64


def compress(cv, block, counter, length, flags):
    m = list(struct.unpack("<16I", block))
    s = list(cv) + [IV[0], IV[1], IV[2], IV[3], counter & 0xFFFFFFFF, counter >> 32, length, flags]
    for turn in range(7):
        for i, (a, b, c, d) in enumerate(QUARTERS):
            x = (s[a] + s[b] + m[2 * i]) & 0xFFFFFFFF
            y = s[d] ^ x
            y = (y >> 16) | (y << 16) & 0xFFFFFFFF
            z = (s[c] + y) & 0xFFFFFFFF
            w = s[b] ^ z
            w = (w >> 12) | (w << 20) & 0xFFFFFFFF
            x = (x + w + m[2 * i + 1]) & 0xFFFFFFFF
            y ^= x
            y = (y >> 8) | (y << 24) & 0xFFFFFFFF
            z = (z + y) & 0xFFFFFFFF
            w ^= z
            s[a], s[b], s[c], s[d] = x, (w >> 7) | (w << 25) & 0xFFFFFFFF, z, y
        if turn < 6:
            m = [m[i] for i in PERMUTATION]
    return [s[i] ^ s[i + 8] for i in range(8)]


def chunk_output(chunk, number, key, flags):
    """What is left to be compressed of a chunk: its chaining value before the last block, and that block."""
    cv = key
    blocks = max(1, (len(chunk) + 63) // 64)
    for i in range(blocks):
        block = chunk[64 * i : 64 * i + 64]
        start = CHUNK_START if i == 0 else 0
        if i == blocks - 1:
            return cv, block.ljust(64, b"\0"), number, len(block), flags | start | CHUNK_END
        cv = compress(cv, block, number, 64, flags | start)


def own_blake3(data, key, flags):
    stack, chunks = [], max(1, (len(data) + 1023) // 1024)
    for number in range(chunks - 1):
        cv = compress(*chunk_output(data[1024 * number : 1024 * number + 1024], number, key, flags))
        total = number + 1
        while total & 1 == 0:
            cv = compress(key, struct.pack("<16I", *stack.pop(), *cv), 0, 64, flags | PARENT)
            total >>= 1
        stack.append(cv)
    last = chunks - 1
    output = chunk_output(data[1024 * last :], last, key, flags)
    while stack:
        block = struct.pack("<16I", *stack.pop(), *compress(*output))
        output = (key, block, 0, 64, flags | PARENT)
    cv, block, number, length, own = output
    return struct.pack("<8I", *compress(cv, block, number, length, own | ROOT))


try:
    import blake3 as blake3_module
except ImportError:
    blake3_module = None
B3SUM = None if blake3_module else shutil.which("b3sum")
FAST_BLAKE3 = bool(blake3_module or B3SUM)
SMALL = 4096


def blake3(data, key=None, context=None):
    if blake3_module:
        extra = {"key": key} if key else {"derive_key_context": context} if context else {}
        return blake3_module.blake3(data, **extra).digest()
    if B3SUM and len(data) > SMALL and context is None:
        return b3sum(data, key)
    if context is not None:
        inner = struct.unpack("<8I", own_blake3(context.encode(), IV, DERIVE_CONTEXT))
        return own_blake3(data, inner, DERIVE_MATERIAL)
    if key is not None:
        return own_blake3(data, struct.unpack("<8I", key), KEYED)
    return own_blake3(data, IV, 0)


def b3sum(data, key):
    fd = os.memfd_create("data")
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        words = [B3SUM, "--no-names"] + (["--keyed"] if key else []) + [f"/proc/self/fd/{fd}"]
        done = subprocess.run(words, input=key or b"", stdout=subprocess.PIPE, pass_fds=(fd,), check=False)
    finally:
        os.close(fd)
    if done.returncode != 0:
        raise Bad("b3sum failed")
    return bytes.fromhex(done.stdout.decode().strip())


class Hasher:
    """BLAKE3 of something long, or None where that would take too long and nothing depends on it."""

    def __init__(self, needed):
        self.parts = None
        self.module = self.process = None
        if blake3_module:
            self.module = blake3_module.blake3()
        elif B3SUM:
            # It complains when it is given up with the rest; that it failed is told by its code.
            quiet = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self.process = subprocess.Popen([B3SUM, "--no-names"], **quiet)
        elif needed:
            self.parts = []

    def update(self, data):
        if self.module:
            self.module.update(data)
        elif self.process:
            self.process.stdin.write(data)
        elif self.parts is not None:
            self.parts.append(bytes(data))

    def hexdigest(self):
        if self.module:
            return self.module.hexdigest()
        if self.process:
            out, _ = self.process.communicate()
            if self.process.returncode != 0:
                raise Bad("b3sum failed")
            return out.decode().strip()
        if self.parts is not None:
            return blake3(b"".join(self.parts)).hex()
        return None


# Keys and sealing.


def hkdf(secret, salt, info):
    prk = hmac.new(salt or bytes(32), secret, hashlib.sha256).digest()
    return hmac.new(prk, info + b"\x01", hashlib.sha256).digest()


def aead(algorithm, key):
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
    except ImportError:
        raise Bad("the repository is encrypted: install python3-cryptography") from None
    return AESGCM(key) if algorithm == AES else ChaCha20Poly1305(key)


def open_sealed(cipher, nonce, sealed, data, what):
    from cryptography.exceptions import InvalidTag

    try:
        return cipher.decrypt(nonce, sealed, data)
    except InvalidTag:
        raise Bad(f"{what}: fails its seal") from None


def unwrap(key, data, wrapped):
    """None when it does not fit."""
    from cryptography.exceptions import InvalidTag

    try:
        return aead(AES, hkdf(key, wrapped[:16], b"pgark v1 key wrap")).decrypt(bytes(12), wrapped[16:], data)
    except InvalidTag:
        return None


class Keys:
    def __init__(self, algorithm, masters, content):
        self.algorithm, self.content, self.generations = algorithm, content, set(masters)
        self.domains = {
            (generation, domain): hkdf(master, b"", b"pgark v1 domain " + domain.encode())
            for generation, master in masters.items()
            for domain in ("data", "wal", "catalog")
        }

    def content_id(self, plain):
        return blake3(plain, key=self.content)[:16]


def cluster_key(domain, name):
    parts = name.split("/")
    if len(parts) < 3 or parts[0] != "clusters":
        raise Bad(f"{name}: of a form that only objects of a cluster have")
    return hkdf(domain, b"", b"pgark v2 cluster " + parts[1].encode())


def writer_key(domain, header, name):
    """Of content that was sealed to the readers' public key."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    private = X25519PrivateKey.from_private_bytes(hkdf(domain, b"", b"pgark v2 reader"))
    reader = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(header[16:48]))
    except ValueError:
        raise Bad(f"{name}: its header is damaged") from None
    secret = shared + cluster_key(domain, name)
    return hkdf(secret, b"", b"pgark v2 object " + header[:48] + reader + name.encode())


class ObjectKey:
    """Opens the parts of one object."""

    def __init__(self, keys, header, kind, name):
        if len(header) != 64 or header[:8] != MAGIC or header[8] != kind:
            raise Bad(f"{name}: not the object that was looked for")
        algorithm, self.facts = header[10], header[9] == 2 and kind == SEGMENT
        if algorithm not in (NONE, AES, CHACHA) or (algorithm == NONE) != (keys.algorithm == NONE):
            raise Bad(f"{name}: its encryption is not that of the repository")
        public, (generation,) = header[:32], struct.unpack("<I", header[12:16])
        commitment, context = header[32:], "pgark v1 key commitment"
        if header[9] == 2 and algorithm == NONE:
            raise Bad(f"{name}: of a form that only encrypted objects have")
        if algorithm == NONE:
            self.key = blake3(public + name.encode(), context="pgark v1 unencrypted object")
            self.cipher = None
        else:
            domain = keys.domains.get((generation, DOMAINS[kind]))
            if domain is None:
                raise Bad(f"{name}: needs a key of generation {generation}, which the key ring lacks")
            if header[9] != 2:
                self.key = hkdf(domain, header[16:32], b"pgark v1 object " + public + name.encode())
            elif kind in (SIDE_FILE, HEAD, CATALOG):
                self.key = hkdf(cluster_key(domain, name), b"", b"pgark v2 books " + public + name.encode())
            else:
                self.key = writer_key(domain, header, name)
                commitment, context = header[48:], "pgark v2 key commitment"
            self.cipher = aead(algorithm, self.key)
        if blake3(self.key, context=context)[: len(commitment)] != commitment:
            raise Bad(f"{name}: its header is damaged, or it is the object of another name or repository")
        if header[9] > 2:
            raise Bad(f"{name}: version {header[9]}, this program knows 1 and 2")
        self.name = name

    def open(self, purpose, position, data, sealed):
        nonce = bytes([purpose, 0, 0, 0]) + struct.pack("<Q", position)
        if self.cipher:
            return open_sealed(self.cipher, nonce, bytes(sealed), data, self.name)
        plain, tag = sealed[:-16], sealed[-16:]
        if blake3(nonce + struct.pack("<Q", len(data)) + data + plain, key=self.key)[:16] != tag:
            raise Bad(f"{self.name}: fails its checksum")
        return plain


def decode(codec, stored, length, what):
    if codec == 0:
        plain = bytes(stored)
    elif codec == 1:
        plain = unzstd(bytes(stored), length, what)
    elif codec == 2:
        try:
            import lz4.block
        except ImportError:
            raise Bad("compressed with lz4: install python3-lz4") from None
        try:
            plain = lz4.block.decompress(bytes(stored), uncompressed_size=length)
        except lz4.block.LZ4BlockError as e:
            raise Bad(f"{what}: lz4: {e}") from None
    else:
        raise Bad(f"{what}: codec {codec} is not known")
    if len(plain) != length:
        raise Bad(f"{what}: {len(plain)} bytes decoded, {length} expected")
    return plain


def unzstd(stored, length, what):
    try:
        import zstandard
    except ImportError:
        return unzstd_command(stored, length, what)
    try:
        # Never more than was declared, whatever the frame says of itself.
        reader = zstandard.ZstdDecompressor().stream_reader(stored)
        plain = reader.read(length)
        if reader.read(1):
            raise Bad(f"{what}: longer than it says")
        return plain
    except zstandard.ZstdError as e:
        raise Bad(f"{what}: zstd: {e}") from None


def unzstd_command(stored, length, what):
    fd = os.memfd_create("stored")
    with open(fd, "w+b") as f:
        f.write(stored)
        f.seek(0)
        try:
            process = subprocess.Popen(["zstd", "-dcq"], stdin=f, stdout=subprocess.PIPE)
        except FileNotFoundError:
            raise Bad("compressed with zstd: install python3-zstandard, or the command zstd") from None
    with process:
        plain = process.stdout.read(length + 1)
        if len(plain) > length:
            process.kill()
    if len(plain) <= length and process.returncode != 0:
        raise Bad(f"{what}: zstd failed")
    return plain


# The repository.


class Repository:
    def __init__(self, root, args):
        self.root = root
        if not os.path.isdir(os.path.join(root, "keyring")):
            raise Bad(f"{root} is not a pgark repository: it has no key ring")
        self.keys = self.register("keyring", lambda name: open_ring(self.read(name, RING_MAX), args))

    def path(self, name):
        if not all(re.fullmatch(r"[A-Za-z0-9_=+@-][A-Za-z0-9._=+@-]{0,254}", part) for part in name.split("/")):
            raise Bad(f"{name!r} cannot be the name of an object")
        return os.path.join(self.root, name)

    def open(self, name):
        try:
            return open(self.path(name), "rb", buffering=1 << 20)
        except OSError as e:
            raise Bad(f"{name}: {e.strerror}") from None

    def newest_seal(self, name):
        """The name under which an object lies: it may have been sealed anew under later keys."""
        for generation in sorted((g for g in self.keys.generations if g > 1), reverse=True):
            later = f"{name}.g{generation}"
            if os.path.lexists(self.path(later)):
                return later
        return name

    def read(self, name, most):
        with self.open(name) as f:
            data = f.read(most + 1)
        if len(data) > most:
            raise Bad(f"{name}: larger than any that is written")
        return data

    def names(self, directory):
        try:
            return sorted(n for n in os.listdir(self.path(directory)) if not n.startswith("."))
        except FileNotFoundError:
            return []

    def register(self, directory, read):
        """The newest version, of which one of the two copies must open."""
        dirs = (directory, directory + "-mirror")
        numbers = [(n, d) for d in dirs for n in self.names(d) if re.fullmatch("[0-9a-f]{16}", n)]
        if not numbers:
            raise Bad(f"{directory}: empty")
        newest, why = max(numbers)[0], None
        for number, d in numbers:
            if number == newest:
                try:
                    return read(f"{d}/{number}")
                except Bad as e:
                    why = why or e
        raise why

    def sealed_register(self, directory, kind):
        def read(name):
            plain = b"".join(Stream(self, kind, name, most=VALUE_MAX))
            marks = plain[0] if plain else 0
            if not 1 <= marks <= 64 or len(plain) < 1 + 8 * marks:
                raise Bad(f"{name}: its marks do not parse")
            return parse_json(plain[1 + 8 * marks :], name)

        return self.register(directory, read)

    def clusters(self):
        return self.names("clusters")

    def catalog(self, cluster):
        value = self.sealed_register(f"clusters/{cluster}/catalog", CATALOG)
        if value.get("cluster") != cluster:
            raise Bad(f"the catalog of {cluster} is that of another cluster")
        return value


def parse_json(data, what):
    try:
        return json.loads(data)
    except ValueError as e:
        raise Bad(f"{what}: {e}") from None


def read_exactly(f, n, name):
    data = f.read(n)
    if len(data) != n:
        raise Bad(f"{name}: cut short")
    return data


def origin(key, tail, size, digest):
    """(size, BLAKE3) of the object that a later seal was made of."""
    if len(tail) != TAIL_BYTES or tail[:8] != b"PGARKORG":
        raise Bad(f"{key.name}: it does not say which object was sealed anew")
    plain = key.open(5, size, struct.pack("<Q", size) + bytes.fromhex(digest), tail[8:])
    return struct.unpack("<Q", plain[:8])[0], plain[8:].hex()


class Stream:
    """The blocks of a sealed stream. When all were read it was whole, and `fingerprint` is (size, BLAKE3 or None)."""

    def __init__(self, repo, kind, name, most=None):
        self.repo, self.kind, self.name, self.most = repo, kind, name, most
        self.fingerprint = None

    def __iter__(self):
        seal = self.name if self.kind in (HEAD, CATALOG) else self.repo.newest_seal(self.name)
        later = seal != self.name
        hasher, size, total = Hasher(needed=later or self.repo.keys.algorithm == NONE and self.kind == RECORD), 64, 0
        with self.repo.open(seal) as f:
            header = read_exactly(f, 64, self.name)
            key = ObjectKey(self.repo.keys, header, self.kind, self.name)
            hasher.update(header)
            number, last = 0, False
            while not last:
                head = read_exactly(f, 12, self.name)
                stored, length, codec, flags, zero = struct.unpack("<IIBBH", head)
                last = flags == 1
                if flags > 1 or zero or length > BLOCK_MAX or not 16 <= stored <= length + 16:
                    raise Bad(f"{self.name}: a block of impossible form")
                total += length
                if self.most is not None and total > self.most:
                    raise Bad(f"{self.name}: larger than any that is written")
                sealed = read_exactly(f, stored, self.name)
                hasher.update(head)
                hasher.update(sealed)
                size += 12 + stored
                if key.facts and number == 0:
                    # For a writer, under a key of its own.
                    if last:
                        raise Bad(f"{self.name}: ends before it begins")
                    number = 1
                    continue
                plain = key.open(3 if last else 2, number, head, sealed)
                yield decode(codec, plain, length, self.name)
                number += 1
            tail = f.read(TAIL_BYTES + 1)
        self.fingerprint = (size, hasher.hexdigest())
        if later:
            self.fingerprint = origin(key, tail, *self.fingerprint)
        elif tail:
            raise Bad(f"{self.name}: goes on after its end")

    def check(self, expected):
        size, digest = self.fingerprint
        if size != expected["size"] or digest is not None and digest != expected["blake3"]:
            raise Bad(f"{self.name}: not the one that this backup wrote")


# The key ring.


def open_ring(data, args):
    lines = data.split(b"\n")
    if len(lines) != 3 or lines[2]:
        raise Bad("the key ring does not parse")
    text, code = lines[0], lines[1].decode("ascii", "replace")
    ring = parse_json(text, "the key ring")
    if ring.get("format") != "pgark-repository":
        raise Bad("not a pgark key ring")
    if ring.get("version") not in (1, 2):
        raise Bad(f"the key ring has version {ring.get('version')}, this program knows 1 and 2")
    algorithm = ALGORITHMS.get(ring["encryption"])
    if algorithm is None:
        raise Bad(f"encryption {ring['encryption']!r} is not known")
    if algorithm == NONE:
        if args.passphrase_file or args.age_identity_file:
            raise Bad("a key was given and the repository says that it is not encrypted: somebody may have replaced it")
        if blake3(text).hex() != code:
            raise Bad("the key ring is damaged")
        return Keys(NONE, {}, blake3(b"", context="pgark v1 content id without encryption"))
    identity = bytes.fromhex(ring["repository_id"])
    master = open_slots(ring, identity, args)
    if not hmac.compare_digest(blake3(text, key=hkdf(master, b"", b"pgark v1 key ring")).hex(), code):
        raise Bad("the key ring was changed by somebody without the key")
    masters = {}
    for old in ring.get("previous", []):
        masters[old["generation"]] = unwrap(master, identity, bytes.fromhex(old["wrapped"]))
    if ring.get("content_key") is not None:
        content = unwrap(master, identity + b"content id", bytes.fromhex(ring["content_key"]))
    elif not masters:
        content = hkdf(master, b"", b"pgark v1 content id")
    else:
        content = None
    if content is None or None in masters.values():
        raise Bad("an earlier key of the key ring does not open")
    masters[ring["generation"]] = master
    return Keys(algorithm, masters, content)


def open_slots(ring, identity, args):
    if not args.passphrase_file and not args.age_identity_file:
        raise Bad("the repository is encrypted: give --passphrase-file or --age-identity-file")
    slots = ring.get("slots", [])
    if len(slots) > 32:
        raise Bad("the key ring has more slots than any that is written")
    for slot in slots:
        if "writer" in slot:
            # It opens nothing that could be extracted.
            continue
        wrapped = bytes.fromhex(slot.get("wrapped", ""))
        if slot["kind"] == "passphrase" and args.passphrase_file:
            key = from_passphrase(slot, args.passphrase_file)
            master = unwrap(key, identity, wrapped)
        elif slot["kind"] == "age" and args.age_identity_file:
            master = from_age(wrapped, identity, args.age_identity_file)
        else:
            continue
        if master is not None:
            return master
    kinds = ", ".join(sorted({slot["kind"] for slot in slots}))
    raise Bad(f"what was given opens no slot of the key ring (it has: {kinds})")


def from_passphrase(slot, file):
    memory, passes, lanes = slot["memory_kib"], slot["passes"], slot["lanes"]
    if slot["kdf"] != "argon2id" or not (19456 <= memory <= 1 << 20 and 2 <= passes <= 16 and 1 <= lanes <= 16):
        raise Bad("the key ring asks for a key derivation that is not known to be safe")
    try:
        from argon2.low_level import Type, hash_secret_raw
    except ImportError:
        raise Bad("a passphrase needs argon2: install python3-argon2") from None
    with open(file, "rb") as f:
        passphrase = f.read(1 << 20)
    if passphrase.endswith(b"\n"):
        passphrase = passphrase[:-1]
        if passphrase.endswith(b"\r"):
            passphrase = passphrase[:-1]
    salt = bytes.fromhex(slot["salt"])
    return hash_secret_raw(passphrase, salt, passes, memory, lanes, 32, Type.ID)


def from_age(wrapped, identity, file):
    try:
        done = subprocess.run(["age", "--decrypt", "-i", file], input=wrapped, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    except FileNotFoundError:
        raise Bad("an age identity needs the command age: install it") from None
    plain = done.stdout
    if done.returncode != 0 or len(plain) != 48 or plain[:16] != identity:
        return None
    return plain[16:]


# The manifest.


class Cursor:
    def __init__(self, data, name):
        self.data, self.at, self.name = data, 0, name

    def bad(self):
        return Bad(f"{self.name}: an item does not parse")

    def take(self, n):
        end = self.at + n
        if end > len(self.data):
            raise self.bad()
        piece = self.data[self.at : end]
        self.at = end
        return piece

    def byte(self):
        return self.take(1)[0]

    def varint(self, most=(1 << 64) - 1):
        value = shift = 0
        while True:
            b = self.byte()
            value |= (b & 0x7F) << shift
            if not b & 0x80:
                if (b == 0 and shift) or value > most:
                    raise self.bad()
                return value
            shift += 7
            if shift > 63:
                raise self.bad()

    def bytes(self):
        return self.take(self.varint(PATH_MAX))

    def u32(self):
        return self.varint((1 << 32) - 1)


def items(stream):
    """(type, Cursor) of each item."""
    pending, at = b"", 0
    blocks = iter(stream)
    while True:
        length = shift = 0
        p, whole = at, False
        while p < len(pending) and p - at < 10:
            b = pending[p]
            length |= (b & 0x7F) << shift
            shift += 7
            p += 1
            if not b & 0x80:
                whole = True
                break
        if whole and length > ITEM_MAX or not whole and p - at >= 10:
            raise Bad(f"{stream.name}: an item larger than any that is written")
        if whole and p + length <= len(pending):
            c = Cursor(pending[p : p + length], stream.name)
            at = p + length
            yield c.byte(), c
            if c.at != len(c.data):
                raise c.bad()
            continue
        block = next(blocks, None)
        if block is None:
            if at != len(pending):
                raise Bad(f"{stream.name}: ends within an item")
            return
        pending, at = pending[at:] + block, 0


def check_path(path, name):
    parts = path.split(b"/") if path else []
    if len(path) >= PATH_MAX or b"\0" in path or any(p in (b"", b".", b"..") for p in parts):
        raise Bad(f"{name}: a path that cannot be: {path!r}")


class Parts:
    """Reads parts; each may be short by what the one before said."""

    def __init__(self):
        self.last = None

    def read(self, c):
        flags = c.byte()
        if flags & ~7:
            raise c.bad()
        if flags & 1:
            if self.last is None:
                raise c.bad()
        else:
            if flags & 2:
                if self.last is None:
                    raise c.bad()
                pack, offset, stored = self.last[:3]
                offset += stored
            else:
                pack, offset = c.u32(), c.varint()
            stored, length, codec = c.u32(), c.u32(), c.byte()
            if length > FRAME_MAX or not 16 <= stored <= length + 16 or codec > 2:
                raise c.bad()
            self.last = (pack, offset, stored, length, codec)
        length = self.last[3]
        skip, take = (0, length) if flags & 4 else (c.u32(), c.u32())
        if take == 0 or skip + take > length:
            raise c.bad()
        return self.last, skip, take


class Packs:
    def __init__(self, repo, cluster):
        self.repo, self.cluster = repo, cluster
        self.declared, self.open_packs, self.frames = {}, {}, {}

    def declare(self, index, backup, number):
        if index in self.declared or not re.fullmatch(r"\d{8}-\d{6}[FILDS]", backup):
            raise Bad("the manifest declares a pack twice, or one that cannot be")
        self.declared[index] = f"clusters/{self.cluster}/backups/{backup}/packs/{number:06}"

    def frame(self, where):
        found = self.frames.pop(where, None)
        if found is None:
            pack, offset, stored, length, codec = where
            file, key = self.pack(pack)
            file.seek(offset)
            sealed = read_exactly(file, stored, key.name)
            data = bytes([codec]) + struct.pack("<I", length)
            found = decode(codec, key.open(1, offset, data, sealed), length, key.name)
            while len(self.frames) >= FRAMES_KEPT:
                self.frames.pop(next(iter(self.frames)))
        self.frames[where] = found
        return found

    def pack(self, index):
        if index not in self.declared:
            raise Bad("the manifest uses a pack that it does not declare")
        if index not in self.open_packs:
            while len(self.open_packs) >= 64:
                self.open_packs.pop(next(iter(self.open_packs)))[0].close()
            name = self.declared[index]
            file = self.repo.open(self.repo.newest_seal(name))
            self.open_packs[index] = (file, ObjectKey(self.repo.keys, read_exactly(file, 64, name), PACK, name))
        return self.open_packs[index]


def chunks(c, parts, packs, keys, check):
    """The bytes of each chunk, or (zeros, n)."""
    count = c.varint(CHUNKS_MAX)
    for _ in range(count):
        b = c.byte()
        if b == 0:
            n = c.varint()
            if n == 0:
                raise c.bad()
            yield n
            continue
        n, patched = b & 0x7F, b & 0x80
        if not 1 <= n <= PARTS_MAX:
            raise c.bad()
        ids = [bytes(c.take(16)) for _ in range(n if patched else 1)]
        read = [parts.read(c) for _ in range(n)]
        if sum(take for _, _, take in read) > FRAME_MAX:
            raise c.bad()
        out = bytearray()
        for i, (where, skip, take) in enumerate(read):
            plain = packs.frame(where)
            if patched and check and keys.content_id(plain) != ids[i]:
                raise Bad("a frame is not what the manifest lists")
            out += plain[skip : skip + take]
        if not patched and check and keys.content_id(bytes(out)) != ids[0]:
            raise Bad("a chunk is not what the manifest lists")
        yield bytes(out)


# What is written.


class Target:
    """A new directory, and others for tablespaces. Nothing is written through a link or over anything."""

    def __init__(self, to, tablespaces, record):
        self.to, self.links = os.fsencode(os.path.abspath(to)), {}
        spaces = os.fsencode(os.path.abspath(tablespaces or to.rstrip("/") + ".tablespaces"))
        self.new_dir(self.to, (record["owner"]["mode"] & 0o750) | 0o700)
        outside = [t for t in record["tablespaces"] if not t["in_place"]]
        if outside:
            self.new_dir(spaces, 0o700)
        for t in outside:
            place = os.path.join(spaces, str(int(t["oid"])).encode())
            self.new_dir(place, 0o700)
            self.links[b"pg_tblspc/%d" % int(t["oid"])] = place

    @staticmethod
    def new_dir(path, mode):
        try:
            os.mkdir(path, mode)
        except FileExistsError:
            if os.path.islink(path) or not os.path.isdir(path) or os.listdir(path):
                raise Bad(f"{os.fsdecode(path)} exists and is not an empty directory") from None
        os.chmod(path, mode)

    def place(self, path):
        for link, place in self.links.items():
            if path == link or path.startswith(link + b"/"):
                return place + path[len(link) :]
        return os.path.join(self.to, path) if path else self.to

    def directory(self, path, mode):
        place = self.place(path)
        if path in self.links or not path:
            return
        try:
            os.mkdir(place, 0o700)
        except FileExistsError:
            if os.path.islink(place) or not os.path.isdir(place):
                raise Bad(f"{path!r} is in the way") from None
        os.chmod(place, (mode & 0o750) | 0o700)

    def create(self, path):
        fd = os.open(self.place(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        return open(fd, "wb", buffering=0)

    def file(self, path, content, mode=0o600):
        with self.create(path) as f:
            write_all(f, content)
            os.fchmod(f.fileno(), mode)
            os.fsync(f.fileno())


def write_all(f, data):
    view = memoryview(data)
    while view:
        view = view[f.write(view) :]


def crc32c(data):
    crc = 0xFFFFFFFF
    for b in data:
        crc ^= b
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def without_checkpoint(control, version_num):
    """So that PostgreSQL cannot start without backup_label, which alone knows where recovery begins."""
    at = 292 if version_num >= 180000 else 288
    if crc32c(control[:at]) != struct.unpack("<I", control[at : at + 4])[0]:
        raise Bad("pg_control of the backup has a wrong checksum")
    changed = bytearray(control)
    changed[32:40] = struct.pack("<Q", 0xDEAD)
    changed[at : at + 4] = struct.pack("<I", crc32c(bytes(changed[:at])))
    return bytes(changed)


REMOVED = (
    "recovery_target recovery_target_action recovery_target_inclusive recovery_target_lsn recovery_target_name recovery_target_time "
    "recovery_target_timeline recovery_target_xid restore_command recovery_end_command archive_cleanup_command primary_conninfo "
    "primary_slot_name promote_trigger_file standby_mode archive_mode archive_command archive_library"
).split()
ELSEWHERE = "data_directory hba_file ident_file external_pid_file include include_dir include_if_exists".split()


def sets(line, names):
    m = re.match(rb"\s*([A-Za-z_]+)(?=[\s=]|$)", line)
    return bool(m) and m.group(1).decode().lower() in names


def auto_conf(original):
    lines = [line for line in original.splitlines(keepends=True) if not sets(line, REMOVED)]
    if lines and not lines[-1].endswith(b"\n"):
        lines.append(b"\n")
    lines.append(b"# Written by extract.py: a copy must not archive into the history of the original.\narchive_mode = 'off'\n")
    return b"".join(lines)


def local_config(name, content):
    if name != "postgresql.conf":
        return content
    return b"".join(b"# " + line if sets(line, ELSEWHERE) else line for line in content.splitlines(keepends=True))


# Commands.


def choose_cluster(repo, args):
    clusters = repo.clusters()
    if args.cluster:
        if args.cluster not in clusters:
            raise Bad(f"there is no cluster {args.cluster!r}; there are: {', '.join(clusters)}")
        return args.cluster
    if len(clusters) != 1:
        raise Bad(f"say which cluster with --cluster: {', '.join(clusters)}")
    return clusters[0]


def command_list(repo, args):
    for cluster in [args.cluster] if args.cluster else repo.clusters():
        for b in repo.catalog(cluster)["backups"]:
            physical = b["kind"] == "physical"
            where = (f"{b['lsn_start']}..{b['lsn_stop']}", f"timeline {b['timeline']}") if physical else ()
            print(cluster, b["id"], b["type"] if physical else b["kind"], b["finished"], f"{b['size_bytes']} bytes", *where, sep="  ")


def lsn(text):
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


class Wal:
    def __init__(self, repo, cluster, system, segment_size):
        self.repo, self.system, self.size = repo, str(int(system)), int(segment_size)
        self.dir = f"clusters/{cluster}/wal/{self.system}"
        if self.size & (self.size - 1) or not 1 << 20 <= self.size <= 1 << 30:
            raise Bad("a WAL segment size that cannot be")
        self.head = repo.sealed_register(self.dir + "/head", HEAD)

    def name(self, timeline, segment):
        per = (1 << 32) // self.size
        return f"{timeline:08X}{segment // per:08X}{segment % per:08X}"

    def history(self, timeline):
        name = f"{self.dir}/history/{timeline:08X}.history"
        return b"".join(Stream(self.repo, SIDE_FILE, name, most=SIDE_FILE_MAX))

    def ranges(self, timeline):
        """(timeline, begin) of each on the way to this one, oldest first."""
        if timeline == 1:
            return [(1, 0)]
        out, begin = [], 0
        for line in self.history(timeline).decode("utf-8", "replace").splitlines():
            m = re.match(r"\s*(\d+)\s+([0-9A-Fa-f]+/[0-9A-Fa-f]+)", line)
            if m:
                out.append((int(m.group(1)), begin))
                begin = lsn(m.group(2))
        return out + [(timeline, begin)]

    def segments(self, timeline, start, stop):
        ranges = self.ranges(timeline)
        for number in range(start // self.size, (stop - 1) // self.size + 1):
            begun = [t for t, begin in ranges if begin // self.size <= number]
            yield begun[-1] if begun else ranges[0][0], number

    def write(self, timeline, number, f):
        name = self.name(timeline, number)
        span = next((t for t in self.head["timelines"] if t["timeline"] == timeline), None)
        if span is None or not any(a <= number <= b for a, b in span.get("ranges", [])):
            raise Bad(f"WAL segment {name} is not in the archive")
        copy = next((c for n, c in span.get("copies", []) if n == number), 0)
        stream = Stream(self.repo, SEGMENT, f"{self.dir}/{timeline:08X}/{name[8:16]}/{name}" + (f".r{copy}" if copy else ""))
        blocks = iter(stream)
        index = parse_json(next(blocks), stream.name)
        expected = (self.system, timeline, number, self.size)
        if (str(index["system_id"]), index["timeline"], index["segment"], index["segment_size"]) != expected:
            raise Bad(f"{stream.name}: its index is that of another segment")
        changes, written = index.get("changes_bytes") or 0, 0
        hasher = Hasher(needed=False)
        for block in blocks:
            if changes > 0:
                changes -= len(block)
                if changes < 0:
                    raise Bad(f"{stream.name}: its changes are longer than its index says")
                continue
            written += len(block)
            if written > self.size:
                raise Bad(f"{stream.name}: longer than a segment")
            hasher.update(block)
            write_all(f, block)
        digest = hasher.hexdigest()
        if written != self.size or changes or digest is not None and digest != index["content"]:
            raise Bad(f"{stream.name}: not the WAL that was archived")


def command_backup(repo, args):
    cluster = choose_cluster(repo, args)
    backups = repo.catalog(cluster)["backups"]
    entry = next((b for b in backups if b["id"] == args.id), None)
    if entry is None:
        raise Bad(f"there is no backup {args.id} of {cluster}; 'list' shows them")
    base = f"clusters/{cluster}/backups/{args.id}"
    stream = Stream(repo, RECORD, f"{base}/record", most=RECORD_MAX)
    record = parse_json(b"".join(stream), stream.name)
    stream.check(entry["record"])
    if record["id"] != args.id or record["cluster"] != cluster or record["kind"] != entry["kind"]:
        raise Bad(f"{stream.name}: the record of another backup")
    check = FAST_BLAKE3 or repo.keys.algorithm == NONE
    if not FAST_BLAKE3:
        note(
            "note: neither b3sum nor the Python module blake3 is there. "
            + ("Every byte is checked by a slow BLAKE3 of this file's own." if check else "Everything is authenticated by the key; content ids are not compared besides.")
        )
    if record["kind"] != "physical":
        target = Target(args.to, None, {"owner": {"mode": 0o700}, "tablespaces": []})
        later = Later(target)
        files, size, _ = extract_files(repo, cluster, f"{base}/manifest", record, target, check, later)
        later.finish()
        os.sync()
        print(f"extracted {files} files, {size} bytes into {args.to}")
        for database in record.get("databases", []):
            print(f"{database['name']!r}: pg_restore --create --exit-on-error -d postgres {args.to}/{database['path']}/dump")
        return
    wal = Wal(repo, cluster, record["system_id"], record["segment_size"])
    segments = list(wal.segments(record["timeline"], lsn(record["lsn_start"]), lsn(record["lsn_stop"])))
    target = Target(args.to, args.tablespaces, record)
    files, size, original = extract_files(repo, cluster, f"{base}/manifest", record, target, check)
    for path in ["pg_wal", "pg_wal/archive_status"] + (["pg_wal/summaries"] if record["version_num"] >= 170000 else []):
        target.directory(path.encode(), 0o700)
    for timeline, _ in wal.ranges(record["timeline"]):
        if timeline > 1:
            target.file(f"pg_wal/{timeline:08X}.history".encode(), wal.history(timeline))
    for timeline, number in segments:
        with target.create(f"pg_wal/{wal.name(timeline, number)}".encode()) as f:
            wal.write(timeline, number, f)
            os.fsync(f.fileno())
    target.file(b"postgresql.auto.conf", auto_conf(original))
    for config in record["config_files"]:
        name = config["name"]
        if name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf") and not os.path.lexists(target.place(name.encode())):
            target.file(name.encode(), local_config(name, bytes.fromhex(config["content"])))
    target.file(b"backup_label", bytes.fromhex(record["backup_label"]))
    for link, place in target.links.items():
        os.symlink(place, os.path.join(target.to, link))
    os.sync()
    target.file(b"global/pg_control", without_checkpoint(bytes.fromhex(record["pg_control"]), record["version_num"]))
    print(f"extracted {files} files, {size} bytes, and {len(segments)} WAL segments into {args.to}")
    for link, place in target.links.items():
        print(f"tablespace {link.decode()} is in {os.fsdecode(place)}")
    print(f"start it with PostgreSQL {record['version_num'] // 10000}: pg_ctl -D {args.to} start")


class Later:
    """Links, owners, modes and times of files: set when all content is written, so that nothing is written through a link and
    no right stands in the way."""

    def __init__(self, target):
        self.target, self.symlinks, self.links, self.attributes, self.last = target, [], [], [], None

    def item(self, kind, path, mode=None, aim=None):
        self.last = (kind, path, mode)
        if kind == 2:
            self.symlinks.append((path, aim))
        elif kind == 11:
            self.links.append((path, aim))

    def note(self, c):
        if self.last is None or c.byte() > 1:
            raise c.bad()
        uid, gid = c.u32(), c.u32()
        c.take(c.varint(255)), c.take(c.varint(255))
        zigzag = c.varint()
        modified = zigzag >> 1 ^ -(zigzag & 1)
        xattrs = [(bytes(c.take(c.varint(255))), bytes(c.take(c.varint(65536)))) for _ in range(c.varint(128))]
        self.attributes.append((*self.last, uid, gid, modified, xattrs))
        self.last = None

    def finish(self):
        lost = 0
        for path, aim in self.links:
            first = self.target.place(aim)
            if os.path.islink(first) or not os.path.isfile(first):
                raise Bad(f"{path!r} is a link to what is no file")
            os.link(first, self.target.place(path), follow_symlinks=False)
        for path, aim in self.symlinks:
            os.symlink(aim, self.target.place(path))
        # What is within a directory comes before it.
        for kind, path, mode, uid, gid, modified, xattrs in reversed(self.attributes):
            place = self.target.place(path)
            try:
                os.chown(place, uid, gid, follow_symlinks=False)
            except OSError:
                lost, mode = lost + 1, mode and mode & 0o1777
            if kind != 2:
                os.chmod(place, mode & 0o7777)
                for key, value in xattrs:
                    try:
                        os.setxattr(place, key, value, follow_symlinks=False)
                    except OSError:
                        lost += 1
            os.utime(place, ns=(modified, modified), follow_symlinks=False)
        if lost:
            note(f"note: {lost} owners or extended attributes could not be set by this user, or in this file system")


def extract_files(repo, cluster, name, record, target, check, later=None):
    stream, packs, parts = Stream(repo, MANIFEST, name), Packs(repo, cluster), Parts()
    before, out, covered, files, total, original = None, None, 0, 0, 0, b""
    for kind, c in items(stream):
        if later is None and kind in (10, 11):
            raise Bad(f"{name}: an item of a backup of files")
        if kind in (1, 2, 3, 6, 11):
            path = bytes(c.bytes())
            check_path(path, name)
            order = path.replace(b"/", b"\0").split(b"\0") if path else []
            if out is not None or before is not None and not before < order:
                raise Bad(f"{name}: items in an impossible order")
            before = order
        if kind == 1:
            mode = c.u32()
            target.directory(path, mode)
            if later:
                later.item(kind, path, mode)
        elif kind == 2 and later:
            later.item(kind, path, aim=bytes(c.bytes()))
        elif kind == 11:
            aim = bytes(c.bytes())
            check_path(aim, name)
            if not aim or not aim.replace(b"/", b"\0").split(b"\0") < order:
                raise Bad(f"{name}: a hard link to what does not come before it")
            later.item(kind, path, aim=aim)
        elif kind == 10:
            later.note(c)
        elif kind == 2:
            note(f"{os.fsdecode(path)!r} was a symbolic link to {os.fsdecode(bytes(c.bytes()))!r} and is left out")
        elif kind == 3:
            mode, _modified = c.u32(), c.varint()
            keep = path == b"postgresql.auto.conf"
            skip = path in (b"standby.signal", b"recovery.signal")
            if later:
                keep = skip = False
                later.item(kind, path, mode)
            out, covered = Sink(None if keep or skip else target.create(path), keep, mode), 0
        elif kind == 4:
            if out is None:
                raise Bad(f"{name}: items in an impossible order")
            for piece in chunks(c, parts, packs, repo.keys, check):
                covered += out.put(piece)
        elif kind == 5:
            if out is None or c.varint() != covered:
                raise Bad(f"{name}: chunks do not cover their file")
            if out.keep:
                original = bytes(out.kept)
            files, total = files + 1, total + covered
            out.close(covered)
            out = None
        elif kind == 7:
            c.bytes(), c.u32()
        elif kind == 8:
            packs.declare(c.u32(), c.take(c.varint(16)).decode("ascii", "replace"), c.u32())
        elif kind == 9:
            if c.u32() not in packs.declared:
                raise Bad(f"{name}: an undeclared pack")
            c.varint(), c.take(32)
        elif kind != 6:
            raise Bad(f"{name}: an item of unknown type {kind}")
    if out is not None:
        raise Bad(f"{name}: ends within a file")
    stream.check(record["manifest"])
    return files, total, original


class Sink:
    """Where a file's content goes: into a file, into memory, or nowhere."""

    def __init__(self, file, keep, mode):
        self.file, self.keep, self.mode, self.kept = file, keep, mode, bytearray()

    def put(self, piece):
        zeros = isinstance(piece, int)
        n = piece if zeros else len(piece)
        if self.file and zeros:
            # A hole: reads as zeros.
            self.file.seek(n, os.SEEK_CUR)
        elif self.file:
            write_all(self.file, piece)
        elif self.keep:
            if len(self.kept) + n > 16 << 20:
                raise Bad("postgresql.auto.conf of an impossible size")
            self.kept += bytes(n) if zeros else piece
        return n

    def close(self, size):
        if self.file:
            self.file.truncate(size)
            os.fchmod(self.file.fileno(), self.mode & 0o750)
            self.file.close()


def command_wal(repo, args):
    cluster = choose_cluster(repo, args)
    lineage = repo.catalog(cluster)["lineages"][-1]
    wal = Wal(repo, cluster, lineage["system_id"], lineage["segment_size"])
    part = args.to + ".part"
    segment = re.fullmatch(r"([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})", args.name)
    history = re.fullmatch(r"([0-9A-F]{8})\.history", args.name)
    if not segment and not history:
        raise Bad(f"{args.name} is not the name of a WAL segment or of a history file")
    if os.path.lexists(args.to):
        raise Bad(f"{args.to} exists")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with open(fd, "wb", buffering=0) as f:
            if history:
                write_all(f, wal.history(int(history.group(1), 16)))
            else:
                timeline, high, low = (int(g, 16) for g in segment.groups())
                per = (1 << 32) // wal.size
                if low >= per:
                    raise Bad(f"{args.name} is no segment of {wal.size} bytes")
                wal.write(timeline, high * per + low, f)
            os.fsync(f.fileno())
        os.rename(part, args.to)
    except BaseException:
        os.unlink(part)
        raise


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo", required=True, metavar="DIR", help="a repository in a local directory (copy one from elsewhere first)")
    parser.add_argument("--passphrase-file", metavar="FILE")
    parser.add_argument("--age-identity-file", metavar="FILE")
    parser.add_argument("--cluster", metavar="NAME", help="needed when the repository has several")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the backups")
    backup = commands.add_parser("backup", help="writes a backup's data directory")
    backup.add_argument("id", metavar="ID")
    backup.add_argument("--to", required=True, metavar="DIR", help="absent or empty")
    backup.add_argument("--tablespaces", metavar="DIR", help="absent or empty; default: the name of --to and .tablespaces")
    wal = commands.add_parser("wal", help="writes a WAL segment or a timeline's history file")
    wal.add_argument("name", metavar="NAME")
    wal.add_argument("--to", required=True, metavar="FILE")
    args = parser.parse_args()
    try:
        repo = Repository(args.repo, args)
        {"list": command_list, "backup": command_backup, "wal": command_wal}[args.command](repo, args)
    except Bad as e:
        note(f"error: {e}")
        return 1
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, UnicodeError, RecursionError, struct.error) as e:
        note(f"error: something in the repository is not as it must be: {type(e).__name__}: {e}")
        return 1
    except OSError as e:
        note(f"error: {e}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
