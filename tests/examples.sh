#!/usr/bin/env bash
# Runs the producers' examples, those in Go and Java too. Their tools are no part of tests/tools.sh: with a JDK, Debian's
# packages are 206 MB to fetch and 760 MB on the disk.
#
#   tests/examples.sh
set -euo pipefail
cd "$(dirname "$0")/.."

missing=()
has() { command -v "$1" >/dev/null; }
has go || missing+=(golang-go)
[ -d /usr/share/gocode/src/github.com/rabbitmq/amqp091-go ] || missing+=(golang-github-rabbitmq-amqp091-go-dev)
has javac || missing+=(default-jdk-headless)
[ -f /usr/share/java/amqp-client.jar ] || missing+=(librabbitmq-client-java)
[ -f /usr/share/java/slf4j-api.jar ] || missing+=(libslf4j-java)
[ ${#missing[@]} -eq 0 ] || deploy/debian.sh "${missing[@]}"
exec tests/run.sh --test promises examples:: -- --include-ignored
