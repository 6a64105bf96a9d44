#!/usr/bin/env bash
# Gets a newer RabbitMQ from a later Debian: 4.0 (trixie) or 4.3 (sid). Needs root. The server stays apart from this system in
# target/brokers, for the next time. Prints the folder of its rabbitmq-server and rabbitmqctl.
#
#   tests/rabbitmq.sh trixie|sid
set -euo pipefail
cd "$(dirname "$0")/.."

suite=${1:?trixie or sid}
[ "$(id -u)" -eq 0 ] || { echo "rabbitmq.sh: needs root, to mount and to change the root" >&2; exit 1; }
command -v mmdebstrap >/dev/null || deploy/debian.sh mmdebstrap

place=$PWD/target/brokers/$suite
root=$place/root
if [ ! -x "$root/usr/lib/rabbitmq/bin/rabbitmq-server" ]; then
    rm -rf "$place"
    mkdir -p "$place"
    mmdebstrap --variant=minbase --include=rabbitmq-server,ca-certificates --aptopt='APT::Sandbox::User "root"' \
        --aptopt='Acquire::Check-Valid-Until "false"' --quiet "$suite" "$root" http://deb.debian.org/debian >&2
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
chroot "$root" dpkg-query --show --showformat='RabbitMQ ${Version}\n' rabbitmq-server >&2
echo "$place/bin"
