#!/usr/bin/env bash
# Makes the file system of an image: the binary, the C libraries that it asks for, the certificates of public authorities,
# a user without rights, and nothing else; no shell either.
#
#   rootfs.sh BINARY DIR
set -euo pipefail

[ $# -eq 2 ] || { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p;}' "$0" >&2; exit 2; }
binary=$1 root=$2

install -D -m 755 "$binary" "$root/usr/local/bin/groupcast"
ldd "$binary" | awk '$2 == "=>" { print $3 } $1 ~ /^\// { print $1 }' | while read -r library; do
    install -D -m 755 "$library" "$root$library"
done
install -D -m 644 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
printf 'groupcast:x:65532:65532::/var/lib/groupcast:/nonexistent\n' >"$root/etc/passwd"
printf 'groupcast:x:65532:\n' >"$root/etc/group"
printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
install -d -m 1777 "$root/tmp"
install -d -m 700 "$root/var/lib/groupcast"
[ "$(id -u)" -ne 0 ] || chown 65532:65532 "$root/var/lib/groupcast"
