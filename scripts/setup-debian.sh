#!/bin/bash
# Installs what `make demo` and `make test` need on a Debian machine. Safe to run again: what is there stays.
#   scripts/setup-debian.sh            for the demo
#   scripts/setup-debian.sh --servers  also the tests' storage servers: sshd, object stores under target/test-servers, and a browser
#                                      (make test)
#   scripts/setup-debian.sh --majors   also npm, for the servers of the other majors, and their client programs under
#                                      target/pg-majors (make test-majors)
#   scripts/setup-debian.sh --check    installs nothing: lists what is missing and ends with 1 if anything is
set -euo pipefail

pg=/usr/lib/postgresql/15/bin
majors=no
servers=no
check=no
store=$(dirname "${BASH_SOURCE[0]}")/../target/test-servers
moto_version=5.2.5 azurite_version=3.35.0 s3s_version=0.14.1 aiosmtpd_version=1.4.6 schemathesis_version=4.32.5
axe_version=4.14.1 oidc_version=8.8.1
for word in "$@"; do
    case $word in
        --majors) majors=yes ;;
        --servers) servers=yes ;;
        --check) check=yes ;;
        -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
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
need /usr/sbin/mkfs.ext4 e2fsprogs
need /usr/sbin/losetup mount
need setpriv util-linux
ls /usr/lib/*/faketime/libfaketime.so.1 >/dev/null 2>&1 || missing+=(libfaketime)
need python3 python3
need tar tar
# What extract.py, which lies in each repository, uses.
python_packages() {
    local pair
    for pair in cryptography:python3-cryptography zstandard:python3-zstandard lz4.block:python3-lz4 argon2:python3-argon2; do
        /usr/bin/python3 -c "import ${pair%%:*}" 2>/dev/null || missing+=("${pair#*:}")
    done
}
need age age
need b3sum b3sum
python_packages
need cc gcc libc6-dev
need make make
need perl perl
[ "$majors$servers" = nono ] || need npm npm
[ "$majors" = no ] || need debootstrap debootstrap
if [ "$servers" = yes ]; then
    need /usr/sbin/sshd openssh-server
    need /usr/lib/openssh/sftp-server openssh-sftp-server
    need ssh openssh-client
    need openssl openssl
    need /usr/bin/prometheus-alertmanager prometheus-alertmanager
    need promtool prometheus
    need lintian lintian
    need systemd-analyze systemd
    need strip binutils
    need /usr/bin/chromium chromium
    need /usr/bin/chromedriver chromium-driver
    python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
fi

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
    # The tests start servers of their own; installing one for them must not open this machine.
    units=()
    case " ${missing[*]} " in *" openssh-server "*) units+=(ssh.service ssh.socket) ;; esac
    case " ${missing[*]} " in *" prometheus-alertmanager "*) units+=(prometheus-alertmanager.service) ;; esac
    case " ${missing[*]} " in *" prometheus "*) units+=(prometheus.service) ;; esac
    command -v systemctl >/dev/null || units=()
    if [ ${#units[@]} -gt 0 ]; then as_root systemctl --quiet mask "${units[@]}"; fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
    if [ ${#units[@]} -gt 0 ]; then
        as_root systemctl --quiet unmask "${units[@]}"
        as_root systemctl --quiet disable "${units[@]}"
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

# Each in a directory of its own, moved into place when it is whole.
install_server() { # NAME PROGRAM COMMAND...
    local name=$1 program=$2 part
    shift 2
    [ -e "$store/$name/$program" ] && return
    echo "installing: $name"
    part=$store/$name.part
    rm -rf "$part" "${store:?}/$name"
    mkdir -p "$part"
    "$@" "$store/$name" "$part"
}
moto() { # an environment knows its own path, so it is made where it stays
    rmdir "$2"
    python3 -m venv "$1.new" && rm -rf "$1.new"
    python3 -m venv "$1"
    "$1/bin/pip" install --quiet "moto[server]==$moto_version" || { rm -rf "$1"; return 1; }
}
azurite() {
    npm install --prefix "$2" --no-audit --no-fund --loglevel=error "azurite@$azurite_version"
    mv "$2" "$1"
}
s3s() {
    # A test's server is to be there soon, not to be fast.
    CARGO_TARGET_DIR=$store/s3s-build CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off \
        CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 cargo install --quiet --locked --features binary --root "$2" "s3s-fs@$s3s_version"
    rm -rf "$store/s3s-build"
    mv "$2" "$1"
}
axe() {
    npm install --prefix "$2" --no-audit --no-fund --loglevel=error "axe-core@$axe_version"
    mv "$2" "$1"
}
oidc() {
    npm install --prefix "$2" --no-audit --no-fund --loglevel=error "oidc-provider@$oidc_version"
    mv "$2" "$1"
}
mail() { # as moto
    rmdir "$2"
    python3 -m venv "$1" && "$1/bin/pip" install --quiet "aiosmtpd==$aiosmtpd_version" || { rm -rf "$1"; return 1; }
}
requests() { # as moto
    rmdir "$2"
    python3 -m venv "$1" && "$1/bin/pip" install --quiet "schemathesis==$schemathesis_version" || { rm -rf "$1"; return 1; }
}
if [ "$servers" = yes ]; then
    mkdir -p "$store"
    store=$(cd "$store" && pwd)
    install_server moto bin/moto_server moto
    install_server azurite node_modules/.bin/azurite-blob azurite
    install_server s3s bin/s3s-fs s3s
    install_server mail bin/python mail
    install_server schemathesis bin/st requests
    install_server axe node_modules/axe-core/axe.min.js axe
    install_server oidc node_modules/oidc-provider/lib/index.js oidc
fi

# pg_dump, pg_restore and the like of the other majors: packages of other releases, unpacked and not installed, started by
# scripts through the loader and the libraries of their own release. apt checks the signatures as ever.
majors_dir=${PGARK_TEST_SERVERS:-$(dirname "${BASH_SOURCE[0]}")/../target/pg-majors}
debian_keys=/usr/share/keyrings/debian-archive-keyring.gpg
apt_apart() { # DIR COMMAND...: apt with lists and packages of its own, which knows nothing of this machine
    local dir=$1
    shift
    apt-get -qq -o Dir::Etc::SourceList="$dir/sources.list" -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists="$dir/lists" \
        -o Dir::State::Status="$dir/status" -o Dir::Cache="$dir/cache" -o APT::Sandbox::User=root -o Debug::NoLocking=true \
        -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false "$@"
}
fetch_packages() { # DIR KEYRING SOURCES PACKAGE: it and what it depends on, unpacked in DIR/root
    local dir=$1 file
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial" "$dir/root"
    : >"$dir/status"
    sed "s#^#deb [signed-by=$2] #" <<<"$3" >"$dir/sources.list"
    apt_apart "$dir" update
    apt_apart "$dir" install -y --download-only --no-install-recommends "$4"
    for file in "$dir"/cache/archives/*.deb; do dpkg-deb --fsys-tarfile "$file" | tar -x --no-same-owner -C "$dir/root"; done
    rm -rf "$dir/lists" "$dir/cache" "$dir/status" "$dir/sources.list"
}
clients() { # MAJOR KEYRING SOURCES
    local major=$1 to=$majors_dir/clients-$1 part=$majors_dir/clients-$1.part libraries program name
    [ -e "$to" ] && return
    echo "installing: client programs of PostgreSQL $major"
    rm -rf "$part"
    fetch_packages "$part" "$2" "$3" "postgresql-client-$major"
    mkdir "$part/bin"
    libraries=$to/root/usr/lib/x86_64-linux-gnu:$to/root/lib/x86_64-linux-gnu
    loader=root/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2
    [ -e "$part/$loader" ] || loader=root/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2
    for program in "$part/root/usr/lib/postgresql/$major/bin"/*; do
        name=${program##*/}
        printf '#!/bin/sh\nexec %s --library-path %s %s "$@"\n' "'$to/$loader'" "'$libraries'" \
            "'$to/root/usr/lib/postgresql/$major/bin/$name'" >"$part/bin/$name"
        chmod 755 "$part/bin/$name"
    done
    chmod 755 "$part"
    mv "$part" "$to"
}
if [ "$majors" = yes ]; then
    # Debian's packages from where this machine has its own, Ubuntu's from where debootstrap takes them.
    debian=${MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | sed -n 's#/debian/$#/debian#p' | head -n 1)}
    ubuntu=${UBUNTU_MIRROR:-$(sed -n 's/^[[:space:]]*default_mirror \(.*archive\..*\)/\1/p' /usr/share/debootstrap/scripts/gutsy | head -n 1)}
    [ -n "$debian" ] && [ -n "$ubuntu" ] || { echo "no package mirror is known: set MIRROR and UBUNTU_MIRROR" >&2; exit 1; }
    mkdir -p "$majors_dir"
    majors_dir=$(cd "$majors_dir" && pwd)
    ubuntu_keys=$majors_dir/ubuntu-keys/root/usr/share/keyrings/ubuntu-archive-keyring.gpg
    [ -e "$ubuntu_keys" ] || fetch_packages "$majors_dir/ubuntu-keys" "$debian_keys" "$debian trixie main" ubuntu-keyring
    clients 13 "$debian_keys" "$debian bullseye main"$'\n'"$debian-security bullseye-security main"
    clients 14 "$ubuntu_keys" "$ubuntu jammy main"$'\n'"$ubuntu jammy-updates main"
    clients 16 "$ubuntu_keys" "$ubuntu noble main"$'\n'"$ubuntu noble-updates main"
    clients 17 "$debian_keys" "$debian trixie main"
    clients 18 "$debian_keys" "$debian sid main"
fi
echo "ready: $("$pg/postgres" --version), $(cargo nextest --version | head -n 1)"
