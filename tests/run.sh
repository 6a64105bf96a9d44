#!/usr/bin/env bash
# All tests. Gets what they need (tests/tools.sh, from Debian's packages), then runs them. The tests start their own
# servers on free loopback ports and touch no other. Arguments go to `cargo test`.
#
#   tests/run.sh                     everything
#   tests/run.sh --test promises replies::   one file of the promises
set -euo pipefail
cd "$(dirname "$0")/.."

tests/tools.sh
# The configuration under test is each test's own.
unset "${!GROUPCAST__@}"
# `exec` keeps the id: whatever ends the tests, Ctrl-C too, no server of theirs outlives cargo.
export RABBITMQ_OWNER=$$ REDIS_OWNER=$$
exec cargo test --locked "$@"
