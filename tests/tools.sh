#!/usr/bin/env bash
# Gets what the tests need beside cargo, from Debian's packages: RabbitMQ, Redis, Chromium with its driver, promtool,
# systemd-analyze, and for the producers' examples pika and Node; amqplib comes from npm.
set -euo pipefail
cd "$(dirname "$0")/.."

deploy/rabbitmq.sh install
deploy/redis.sh install
missing=()
has() { command -v "$1" >/dev/null; }
{ has chromium && has chromedriver; } || missing+=(chromium chromium-driver)
has promtool || missing+=(prometheus)
has systemd-analyze || missing+=(systemd)
/usr/bin/python3 -c 'import pika' 2>/dev/null || missing+=(python3-pika)
{ has node && has npm; } || missing+=(nodejs npm)
[ ${#missing[@]} -eq 0 ] || deploy/debian.sh "${missing[@]}"

amqplib=2.3.1
if [ ! -d target/node/node_modules/amqplib ]; then
    mkdir -p target/node
    npm install --prefix target/node --no-audit --no-fund --ignore-scripts --loglevel error "amqplib@$amqplib" >/dev/null
fi
