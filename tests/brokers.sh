#!/usr/bin/env bash
# The tests against a newer RabbitMQ, from a later Debian: 4.0 (trixie) or 4.3 (sid). Needs root (tests/rabbitmq.sh).
#
#   tests/brokers.sh trixie                      all that a broker has a part in
#   tests/brokers.sh sid delivery:: failures::   these
set -euo pipefail
cd "$(dirname "$0")/.."

suite=${1:?trixie or sid}
shift
tests/tools.sh
RABBITMQ_BIN=$(tests/rabbitmq.sh "$suite")

[ $# -gt 0 ] || set -- bad_input:: connections:: dead_letters:: delivery:: failures:: memory:: parking:: pacing:: replies:: soak:: status_page:: undeliverable:: unreadable:: unrouted:: whose_fault::
export RABBITMQ_BIN RABBITMQ_OWNER=$$ REDIS_OWNER=$$
exec cargo test --locked --test promises -- "$@"
