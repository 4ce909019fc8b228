# common.sh - sourced by the scripts here: steps as lines, packages, the virtual environment.
# shellcheck shell=bash
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
VENV=$ROOT/build/venv
LOGS=$ROOT/build/logs
MILVUS_PIP=(milvus==2.3.5 pymilvus==2.3.7 'marshmallow<4' 'setuptools<80' pyyaml pytest requests)

say() { printf '%s\n' "$*"; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# step TEXT COMMAND...: runs it quietly; one line when done, the end of its output when it fails.
step() {
    local text=$1 log started=$SECONDS
    shift
    mkdir -p "$LOGS"
    log=$(mktemp "$LOGS/step.XXXXXX")
    [ -t 1 ] && printf '[..] %s' "$text"
    if "$@" >"$log" 2>&1; then
        [ -t 1 ] && printf '\r'
        say "[ok] $text ($((SECONDS - started)) s)"
        rm -f "$log"
    else
        [ -t 1 ] && printf '\n'
        say "[failed] $text, the end of $log:" >&2
        tail -n 40 "$log" >&2
        return 1
    fi
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root: run as root, or install sudo"
    fi
}

missing_packages() {
    local p
    for p in "$@"; do
        dpkg-query -W -f='${db:Status-Abbrev}' "$p" 2>/dev/null | grep -q '^ii' || echo "$p"
    done
}

# Services are not started on installation: Debian's etcd would take the port of Milvus's own.
apt_install_now() {
    local policy=/usr/sbin/policy-rc.d made= rc=0
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::Retries=3 update || return 1
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod 755 "$policy"
        made=1
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Acquire::Retries=3 \
        install --no-install-recommends "$@" || rc=$?
    [ -z "$made" ] || as_root rm -f "$policy"
    return $rc
}

# apt_packages WHAT PACKAGE...: installs those that are missing.
apt_packages() {
    local what=$1 missing
    shift
    mapfile -t missing < <(missing_packages "$@")
    if [ ${#missing[@]} = 0 ]; then
        say "[ok] packages for $what: all there"
    else
        step "packages for $what: ${missing[*]}" apt_install_now "${missing[@]}"
    fi
}

# Milvus 2.3.5 and its client for Python, in build/venv. A second run downloads nothing.
ensure_venv() {
    local want="${MILVUS_PIP[*]}" stamp=$VENV/stamp
    if [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then
        say "[ok] Milvus 2.3.5 and pymilvus: there already"
        return
    fi
    python3 -c 'import ensurepip, venv' 2>/dev/null || apt_packages Python python3 python3-venv
    rm -rf "$VENV"
    step "Python environment in build/venv" python3 -m venv "$VENV"
    step "Milvus 2.3.5 and pymilvus 2.3.7 from PyPI" \
        "$VENV/bin/pip" install --quiet --disable-pip-version-check "${MILVUS_PIP[@]}"
    printf '%s' "$want" >"$stamp"
}

# Milvus Lite, in an environment of its own: its pymilvus is newer than that of the tests.
ensure_lite() {
    local lite=$ROOT/build/lite
    [ -x "$lite/bin/milvus-lite" ] && return
    step "Milvus Lite from PyPI" bash -c "python3 -m venv '$lite' && '$lite/bin/pip' install -q milvus-lite==3.2.2 pymilvus"
}
