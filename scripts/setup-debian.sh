#!/bin/bash
# Installs what `make demo` and `make test` need on a Debian machine. Safe to run again: what is there stays.
#   scripts/setup-debian.sh            for demo and tests
#   scripts/setup-debian.sh --majors   also npm, for the servers of the other majors (make test-majors)
#   scripts/setup-debian.sh --check    installs nothing: lists what is missing and ends with 1 if anything is
set -euo pipefail

pg=/usr/lib/postgresql/15/bin
majors=no
check=no
for word in "$@"; do
    case $word in
        --majors) majors=yes ;;
        --check) check=yes ;;
        -h | --help) sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) echo "unknown option: $word" >&2; exit 2 ;;
    esac
done

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo "$@"; else
        echo "needs root to run: $*" >&2; return 1
    fi
}

missing=()
need() { # COMMAND-OR-FILE PACKAGE...
    if ! command -v "$1" >/dev/null && ! [ -e "$1" ]; then missing+=("${@:2}"); fi
}
need "$pg/postgres" postgresql-15
need "$pg/psql" postgresql-client-15
need /usr/share/postgresql/15/extension/amcheck.control postgresql-15
need strace strace
need /usr/sbin/sshd openssh-server
need /usr/lib/openssh/sftp-server openssh-sftp-server
need ssh openssh-client
need /usr/sbin/mkfs.ext4 e2fsprogs
need /usr/sbin/losetup mount
need setpriv util-linux
need python3 python3
need tar tar
need cc gcc libc6-dev
need make make
need perl perl
[ "$majors" = no ] || need npm npm

if [ "$check" = yes ]; then
    command -v cargo >/dev/null || missing+=(cargo)
    cargo nextest --version >/dev/null 2>&1 || missing+=(cargo-nextest)
    if [ ${#missing[@]} -gt 0 ]; then echo "missing: ${missing[*]}"; exit 1; fi
    echo "nothing is missing"
    exit 0
fi

if [ ${#missing[@]} -gt 0 ]; then
    echo "installing: ${missing[*]}"
    as_root apt-get update -qq
    # The tests run clusters of their own: for this installation alone, the package starts none.
    quiet=/etc/postgresql-common/createcluster.d/zz-pgark-setup.conf
    as_root mkdir -p "${quiet%/*}"
    trap 'as_root rm -f "$quiet"' EXIT
    echo 'create_main_cluster = false' | as_root tee "$quiet" >/dev/null
    # The tests start a server of their own; installing one for them must not open this machine.
    ssh_units=()
    case " ${missing[*]} " in *" openssh-server "*) ssh_units=(ssh.service ssh.socket) ;; esac
    command -v systemctl >/dev/null || ssh_units=()
    if [ ${#ssh_units[@]} -gt 0 ]; then as_root systemctl --quiet mask "${ssh_units[@]}"; fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
    if [ ${#ssh_units[@]} -gt 0 ]; then
        as_root systemctl --quiet unmask "${ssh_units[@]}"
        as_root systemctl --quiet disable "${ssh_units[@]}"
    fi
fi

if ! command -v cargo >/dev/null; then
    echo "cargo is missing: install Rust 1.89 or newer (https://rustup.rs), then run this again" >&2
    exit 1
fi
if ! cargo nextest --version >/dev/null 2>&1; then
    echo "installing: cargo-nextest"
    cargo install --locked cargo-nextest
fi
echo "ready: $("$pg/postgres" --version), $(cargo nextest --version | head -n 1)"
