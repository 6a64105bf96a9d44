#!/usr/bin/env bash
# Installs Debian packages, by root or with a sudo that asks for no password, and starts none of their services: nobody
# asked for one, neither now nor at the next boot. Services that are there already may restart.
#
#   debian.sh PACKAGE...
set -euo pipefail

say() { printf 'debian.sh: %s\n' "$*" >&2; }

[ $# -gt 0 ] || { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p;}' "$0" >&2; exit 2; }
command -v apt-get >/dev/null || { say "there is no apt-get to install $* with"; exit 1; }
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    sudo -n true 2>/dev/null || { say "installing $* needs root, or a sudo without a password"; exit 1; }
    as_root=(sudo -n)
fi
units() { find /lib/systemd/system/ -name '*.service' -o -name '*.socket' -o -name '*.timer' 2>/dev/null | sed 's|.*/||' | sort; }

say "installing $*"
told=$(mktemp)
policy=/usr/sbin/policy-rc.d
ours=
clean_up() {
    rm -f "$told"
    [ -z "$ours" ] || ${as_root[@]+"${as_root[@]}"} rm -f "$policy"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
before=$(units || true)
if [ ! -e "$policy" ]; then
    ours=yes
    # shellcheck disable=SC2016 # the policy's own argument
    printf '#!/bin/sh\ncase "$*" in *" start"*|*" (start)"*) exit 101 ;; esac\nexit 0\n' |
        ${as_root[@]+"${as_root[@]}"} install -m 755 /dev/stdin "$policy"
fi
apt=(${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300)
"${apt[@]}" update >"$told" 2>&1 || say "apt-get update failed; trying with the package lists that are there"
if ! "${apt[@]}" install -y --no-install-recommends "$@" </dev/null >>"$told" 2>&1; then
    tail -n 20 "$told" >&2
    say "apt-get install failed"
    exit 1
fi
if command -v systemctl >/dev/null; then
    for unit in $(comm -13 <(printf '%s\n' "$before") <(units || true)); do
        ${as_root[@]+"${as_root[@]}"} systemctl disable --now "$unit" >/dev/null 2>&1 || true
    done
fi
