#!/usr/bin/env bash
# The tests against a newer RabbitMQ, from a later Debian: 4.0 (trixie) or 4.3 (sid). Needs root; takes it apart from this system
# in target/brokers, where it stays for the next time.
#
#   tests/brokers.sh trixie                      all that a broker has a part in
#   tests/brokers.sh sid delivery:: failures::   these
set -euo pipefail
cd "$(dirname "$0")/.."

suite=${1:?trixie or sid}
shift
[ "$(id -u)" -eq 0 ] || { echo "brokers.sh: needs root, to mount and to change the root" >&2; exit 1; }
tests/tools.sh
command -v mmdebstrap >/dev/null || deploy/debian.sh mmdebstrap

place=$PWD/target/brokers/$suite
root=$place/root
if [ ! -x "$root/usr/lib/rabbitmq/bin/rabbitmq-server" ]; then
    rm -rf "$place"
    mkdir -p "$place"
    mmdebstrap --variant=minbase --include=rabbitmq-server,ca-certificates --aptopt='APT::Sandbox::User "root"' \
        --aptopt='Acquire::Check-Valid-Until "false"' --quiet "$suite" "$root" http://deb.debian.org/debian
    echo "127.0.0.1 localhost" >"$root/etc/hosts"
fi
mkdir -p "$place/bin"
for program in rabbitmq-server rabbitmqctl; do
    # Its mounts are its own and end with it; exec keeps the process id.
    cat >"$place/bin/$program" <<END
#!/bin/sh
exec unshare --mount --propagation private sh -c '
    for place in proc dev tmp; do mount --rbind /\$place "$root/\$place" || exit; done
    exec chroot "$root" /usr/lib/rabbitmq/bin/$program "\$@"' sh "\$@"
END
    chmod 755 "$place/bin/$program"
done
# shellcheck disable=SC2016 # dpkg's own variable
chroot "$root" dpkg-query --show --showformat='RabbitMQ ${Version}\n' rabbitmq-server

[ $# -gt 0 ] || set -- bad_input:: connections:: dead_letters:: delivery:: failures:: memory:: parking:: pacing:: replies:: soak:: status_page:: undeliverable:: unreadable:: unrouted:: whose_fault::
export RABBITMQ_BIN=$place/bin RABBITMQ_OWNER=$$ REDIS_OWNER=$$
exec cargo test --locked --test promises -- "$@"
