#!/usr/bin/env bash
# docker-compose.yml for real: its images built, `up`, the demo's jobs and a restart, `down`. Asks no registry for anything.
#
#   tests/compose.sh
#
# The engine is the one that `docker info` finds; else, for root with dockerd installed (Debian's docker.io), one of its own:
# it ends with this script, has a network of its own in which no port is taken, and keeps its images in target/compose for the
# next time. Without an engine this says that nothing was tested, and exits 0.
#
# Two images that compose would fetch are made here from Debian's packages instead, and so are not tested:
#   rabbitmq:4-management   Debian's RabbitMQ 4.0, set as the official image sets it
#   rust:1.95-bookworm      a `cargo` that hands out a binary built on this machine, from no more than .dockerignore lets
#                           through; or the one at GROUPCAST_BIN
# They and the rest have names that begin with groupcast-compose.
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

place=$PWD/target/compose daemon=groupcast-compose-groupcast-1
work='' engine='' up='' inside=() compose=()

say() { printf 'compose.sh: %s\n' "$*" >&2; }

# Ctrl-C reaches the command too, or this script would wait for its end.
within() { timeout --foreground "$@"; }

# shellcheck disable=SC2317,SC2329 # by the trap
clean_up() {
    trap - EXIT
    trap '' HUP INT TERM
    [ -z "$up" ] || down >/dev/null 2>&1 || true
    [ -z "$engine" ] || stop_engine
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

fail() {
    if [ -n "$up" ]; then
        within 20 "${compose[@]}" logs >"$place/containers.log" 2>&1 || true
        if within 20 docker logs --tail 10 "$daemon" >"$work/daemon.log" 2>&1; then cat "$work/daemon.log" >&2; fi
        say "what the containers said: $place/containers.log; how they came up: $place/up.log"
    fi
    printf '\ncompose.sh: %s\n' "$*" >&2
    exit 1
}

skip() {
    printf '\n!!! docker-compose.yml was NOT tested: %s\n\n' "$*" >&2
    exit 0
}

# until_true SECONDS WHAT COMMAND...
until_true() {
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        [ $SECONDS -lt $end ] || fail "waited in vain for $what"
        sleep 0.2
    done
}

# --- the engine ------------------------------------------------------------------------------------------------------

answers() { within 20 docker info >/dev/null 2>&1; }

# Sets `kind`: given or own.
choose_engine() {
    command -v docker >/dev/null || skip "docker is not installed"
    kind=given
    answers && return
    kind=own
    [ "$(id -u)" -eq 0 ] || skip "no Docker engine answers, and only root could start one"
    command -v dockerd >/dev/null || skip "no Docker engine answers, and dockerd (Debian's docker.io) is not installed"
}

# Sets `engine`, the process with which dockerd and all that it started ends, and `inside`, the way into its network.
start_engine() {
    local end=$((SECONDS + 60))
    # In a folder with a short name, because a socket's path has no more than 107 bytes.
    unset "${!DOCKER_@}"
    export DOCKER_HOST=unix://$work/socket DOCKER_BUILDKIT=1
    # shellcheck disable=SC2016 # the inner shell's own arguments
    setpriv --pdeathsig KILL unshare --mount --net --pid --fork --kill-child --mount-proc sh -c '
        ip link set lo up && exec dockerd --data-root "$1" --exec-root "$2/exec" --pidfile "$2/pid" --host "$DOCKER_HOST"
    ' sh "$place/engine" "$work" </dev/null >"$place/engine.log" 2>&1 9>&- &
    engine=$!
    until answers; do
        if ! kill -0 "$engine" 2>/dev/null || [ $SECONDS -ge $end ]; then
            tail -n 3 "$place/engine.log" >&2
            skip "dockerd does not start here"
        fi
        sleep 0.2
    done
    inside=(nsenter --target "$(dockerd_pid)" --net)
}

dockerd_pid() { tr -d ' ' 2>/dev/null <"/proc/$engine/task/$engine/children"; }

# shellcheck disable=SC2317,SC2329 # by the trap
stop_engine() {
    kill -TERM "$(dockerd_pid)" 2>/dev/null || true
    for _ in $(seq 100); do
        kill -0 "$engine" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -KILL "$engine" 2>/dev/null || true
}

# --- the images ------------------------------------------------------------------------------------------------------

# debian OPTIONS... TARGET
debian() {
    command -v mmdebstrap >/dev/null || deploy/debian.sh mmdebstrap
    within 300 mmdebstrap --quiet --aptopt='APT::Sandbox::User "root"' "${@:1:$#-1}" trixie "${!#}" http://deb.debian.org/debian
}

# Sets `compose`. The version 2 that docker-compose.yml is for comes from a later Debian, if docker has none.
get_compose() {
    compose=(docker compose)
    if ! docker compose version >/dev/null 2>&1; then
        compose=("$place/docker-compose")
        if [ ! -x "${compose[0]}" ]; then
            debian --variant=extract --include=docker-compose "$work/client"
            install "$work/client/usr/libexec/docker/cli-plugins/docker-compose" "${compose[0]}"
        fi
    fi
    compose+=(--ansi never --project-name groupcast-compose --file docker-compose.yml --file "$place/override.yml")
}

get_debian() {
    docker image inspect groupcast-compose/debian >/dev/null 2>&1 && return
    debian --variant=minbase --include=rabbitmq-server,ca-certificates "$work/debian.tar"
    within 120 docker import "$work/debian.tar" groupcast-compose/debian >/dev/null
    rm "$work/debian.tar"
}

# Sets `binary`. The dev profile in cargo's own folder, because what the tests built there is good for this too.
get_binary() {
    local copy
    binary=${GROUPCAST_BIN:-}
    [ -z "$binary" ] || return 0
    within 60 "${compose[@]}" build context >"$place/up.log" 2>&1 || fail "compose: $(tail -n 3 "$place/up.log")"
    copy=$(docker create groupcast-compose/context)
    within 60 docker cp "$copy:/context" "$work/context" >"$place/up.log" 2>&1 || fail "docker cp: $(tail -n 3 "$place/up.log")"
    docker rm "$copy" >/dev/null
    binary=${CARGO_TARGET_DIR:-target}/debug/groupcast
    cargo build --locked --quiet --bin groupcast --manifest-path "$work/context/Cargo.toml" --target-dir "${CARGO_TARGET_DIR:-target}" ||
        fail "groupcast does not build from what .dockerignore lets through"
}

# What the first base of deploy/Dockerfile is made from.
write_rust() {
    mkdir -p "$place/rust"
    install -m 755 --strip "$binary" "$place/rust/groupcast"
    cat >"$place/rust/cargo" <<'CARGO'
#!/bin/sh
set -e
[ "$*" = "build --release --locked --bin groupcast" ]
ls Cargo.toml Cargo.lock src/main.rs
install -D /usr/local/lib/groupcast target/release/groupcast
CARGO
    chmod 755 "$place/rust/cargo"
    cat >"$place/rust/Dockerfile" <<'DOCKERFILE'
FROM groupcast-compose/debian
COPY cargo /usr/local/bin/
COPY groupcast /usr/local/lib/
DOCKERFILE
    sed 's|^FROM rust:[^ ]*|FROM groupcast-compose/rust|' deploy/Dockerfile >"$place/Dockerfile"
}

# Under other names, so that those of an engine that is there keep their meaning.
write_override() {
    cat >"$place/override.yml" <<'YAML'
services:
  rabbitmq:
    image: groupcast-compose/rabbitmq
    build:
      dockerfile_inline: |
        FROM groupcast-compose/debian
        ENV HOME=/var/lib/rabbitmq PATH=/usr/lib/rabbitmq/bin:/usr/sbin:/usr/bin:/sbin:/bin RABBITMQ_LOGS=-
        RUN echo "[rabbitmq_management]." >/etc/rabbitmq/enabled_plugins
        RUN echo "loopback_users.guest = false" >/etc/rabbitmq/rabbitmq.conf
        VOLUME /var/lib/rabbitmq
        ENTRYPOINT ["setpriv", "--reuid=rabbitmq", "--regid=rabbitmq", "--init-groups"]
        CMD ["rabbitmq-server"]
  sandbox: &groupcast
    image: groupcast-compose/groupcast
    build:
      dockerfile: target/compose/Dockerfile
  groupcast: *groupcast
  rust:
    profiles: [base]
    image: groupcast-compose/rust
    build: target/compose/rust
  context:
    profiles: [base]
    image: groupcast-compose/context
    build:
      dockerfile_inline: |
        FROM scratch
        COPY . /context
        CMD ["/none"]
YAML
}

# --- the checks ------------------------------------------------------------------------------------------------------

down() { within 90 "${compose[@]}" down --volumes --remove-orphans --timeout 30; }

get() { "${inside[@]}" curl --silent --show-error --fail --max-time 10 --noproxy '*' "$@"; }

is_ready() { get http://127.0.0.1:9464/readyz >/dev/null 2>&1; }

# same WHAT EXPECTED FOUND
same() {
    [ "$2" = "$3" ] || fail "$1: expected '$2', found '$3'"
    printf '  %s\n' "$1"
}

# has WHAT TEXT PART...: each part is in the text.
has() {
    local what=$1 text=$2 part
    shift 2
    for part in "$@"; do
        [[ $text == *"$part"* ]] || fail "$what: expected '$part' in: $text"
    done
    printf '  %s\n' "$what"
}

# What `groupcast ARGS...` says in the daemon's container.
groupcast() { within 30 "${compose[@]}" exec -T groupcast groupcast "$@" 2>&1 || true; }

# How many recipients each call had that the sandbox took for a group.
received() {
    get "http://127.0.0.1:8089/_sandbox/received?group=$1" | grep -oE '"recipient_count": *[0-9]+' | grep -oE '[0-9]+' | sort -n | xargs
}

try_image() {
    same "the daemon is not root" 65532:65532 "$(docker inspect --format '{{.Config.User}}' "$daemon")"
    has "it has no shell" "$(within 30 "${compose[@]}" exec -T groupcast sh 2>&1 || true)" '"sh": executable file not found'
}

try_jobs() {
    has "three recipients" "$(groupcast send --group few --content hello --to alice,bob,carol --id order-1 --wait)" \
        '"status": "sent"' '"sent": 3,' '"calls": 1'
    has "1,234 recipients: three calls" \
        "$(seq -f 'user-%g' 1234 | groupcast send --group many --content hello --to-file /dev/stdin --wait)" \
        '"status": "sent"' '"sent": 1234,' '"calls": 3'
    has "every member" "$(groupcast send --group all --content hello --wait)" '"status": "sent"' '"audience": "all"'
    has "an unknown group" "$(groupcast send --group unknown --content hello --to alice --wait)" '"status": "failed"' 10010
    has "a misspelt field" "$(groupcast send - --wait <<<'{"GroupId":"few","Content":"hello","ToMember_Account":["alice"]}')" \
        '"status": "rejected"' ToMember_Account
    same "what the sandbox received" "3, 234 500 500, 0" "$(received few), $(received many), $(received all)"
}

try_pages() {
    has "the status page" "$(get http://127.0.0.1:9464/)" '<title>groupcast</title>'
    has "the metrics" "$(get http://127.0.0.1:9464/metrics)" 'groupcast_'
    has "RabbitMQ's page" "$(get --user guest:guest http://127.0.0.1:15672/api/queues/%2F/groupcast.default.dead)" '"type":"quorum"'
}

try_restart() {
    within 60 "${compose[@]}" stop groupcast 2>/dev/null
    same "the daemon stops well" 0 "$(docker inspect --format '{{.State.ExitCode}}' "$daemon")"
    within 60 "${compose[@]}" up --detach --wait --wait-timeout 50 groupcast 2>/dev/null
    until_true 30 "the daemon at port 9464" is_ready
    has "it remembers a job" "$(groupcast send --group few --content hello --to alice,bob,carol --id order-1 --wait)" '"duplicate": true'
}

# How many containers, volumes and networks there are of it.
parts() {
    local label=label=com.docker.compose.project=groupcast-compose
    { docker ps --all --quiet --filter $label && docker volume ls --quiet --filter $label && docker network ls --quiet --filter $label; } | wc -l
}

choose_engine
# What the environment says is for another daemon, and another project.
unset "${!GROUPCAST__@}" "${!COMPOSE_@}"
export DOCKER_BUILDKIT=1
mkdir -p "$place"
# One run at a time: there is one folder for an engine, and one name for the project.
exec 9>"$place/lock"
flock --wait 300 9 || fail "another run holds $place/lock"
work=$(mktemp -d "${TMPDIR:-/tmp}/groupcast-compose-XXXXXX")
[ "$kind" = given ] || start_engine
command -v curl >/dev/null || deploy/debian.sh curl
write_override
get_compose
say "Docker $(docker version --format '{{.Server.Version}}') ($kind), Compose $("${compose[@]}" version --short)"
get_debian
get_binary
write_rust

up=yes
# What a run that was killed left behind.
down >"$place/up.log" 2>&1 || fail "compose: $(tail -n 3 "$place/up.log")"
if [ "$kind" = given ]; then
    for port in 5672 15672 8089 9464; do
        ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || fail "port $port is in use, and docker-compose.yml wants it"
    done
fi
{
    within 120 "${compose[@]}" build rust && within 240 "${compose[@]}" up --build --detach --wait --wait-timeout 120
} >"$place/up.log" 2>&1 || { tail -n 30 "$place/up.log" >&2; fail "it does not come up"; }
until_true 30 "the daemon at port 9464" is_ready
try_image
try_jobs
try_pages
try_restart
same "three containers, two volumes and a network" 6 "$(parts)"
down >/dev/null 2>&1 || fail "it does not come down"
same "nothing is left of them" 0 "$(parts)"
# The images that this run replaced. On an engine that is there, only its owner can tell what may go.
[ "$kind" = given ] || within 60 docker system prune --force >"$work/pruned"
