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
# Whatever ends the tests, Ctrl-C too, no server of theirs outlives this process.
export RABBITMQ_OWNER=$$ REDIS_OWNER=$$
[ $# -eq 0 ] || exec cargo test --locked "$@"
# Most of them wait more than they work. Those that measure speed have the machine for themselves, and so come last.
alone=(pacing:: a_real_limit_below a_changed_rate_holds)
cargo test --locked -- --test-threads=4 "${alone[@]/#/--skip=}"
cargo test --locked --test promises -- "${alone[@]}"
