#!/usr/bin/env bash
# Two replicas on one Redis beside a RabbitMQ cluster of three nodes, whose nodes crash, freeze, lose each other, lose the
# majority and are restarted one by one. RabbitMQ 4.0 (trixie) or 4.3 (sid); needs root (tests/rabbitmq.sh). Takes a quarter of an
# hour, so it is no part of the gate.
#
#   tests/cluster.sh trixie            every scenario
#   tests/cluster.sh sid a_partition   one
set -euo pipefail
cd "$(dirname "$0")/.."

suite=${1:?trixie or sid}
shift
deploy/redis.sh install
RABBITMQ_BIN=$(tests/rabbitmq.sh "$suite")
export RABBITMQ_BIN REDIS_OWNER=$$
# One at a time: each has a cluster of its own.
exec cargo test --locked --test cluster -- --test-threads=1 --nocapture "$@"
