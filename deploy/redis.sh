#!/usr/bin/env bash
# Gets a Redis for the tests, and ends it again.
#
#   redis.sh start DIR  start a server in DIR, or the one there again: same port, same data; prints its URL
#   redis.sh kill DIR   end it as a crash does; its data stay
#   redis.sh stop DIR   end it and remove its data
#   redis.sh install    make sure that a server is installed
#
# It owns DIR/redis, listens on a free port of the loopback interface, and ends no process but those that it wrote down
# there. What it has answered for is on its disk. A service of the same name on this machine stays as it is.
#
#   REDIS_EXTRA_CONF  lines for the server's redis.conf, at each start
#   REDIS_OWNER       a process id; the server is stopped when that process is gone, however it ended
set -euo pipefail
umask 077

self=$(cd "$(dirname "$0")" && pwd)/$(basename "$0")
start_seconds=30

say() { printf 'redis.sh: %s\n' "$*" >&2; }

die() {
    say "$*"
    exit 1
}

# --- processes: known by their id and their time of birth, because ids are given again -------------------------------

# Prints when a process was born; fails if it is gone, or dead and only not yet collected.
birth() {
    local stat
    { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
    read -r -a stat <<<"${stat##*) }"
    case ${stat[0]} in Z | X) return 1 ;; esac
    printf '%s\n' "${stat[19]}"
}

remember() { printf '%s %s\n' "$2" "$(birth "$2")" >"$redis/$1.process"; }

is_running() {
    local pid born
    { read -r pid born <"$redis/$1.process"; } 2>/dev/null && [ "$(birth "$pid")" = "$born" ]
}

# Ends a remembered process and those that it started (each leads a session of its own), and waits until it is gone.
end() {
    local pid
    is_running "$1" || return 0
    read -r pid _ <"$redis/$1.process"
    kill -KILL -- "-$pid" 2>/dev/null || true
    for _ in $(seq 100); do
        is_running "$1" || return 0
        sleep 0.05
    done
    die "process $pid ($1) does not end"
}

# --- the server ------------------------------------------------------------------------------------------------------

# Debian has the server in the PATH of users too. Valkey is the same server for all that is asked of it here.
server() { command -v redis-server || command -v valkey-server; }

is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Sets `port`, below the range from which the system serves whoever asks for any.
choose_port() {
    for _ in $(seq 50); do
        port=$((30000 + RANDOM % 2700))
        if is_free $port; then return; fi
    done
    die "found no free port"
}

# One that asks for a password, or still loads its data, answers with an error, and is up.
answers() {
    (
        exec 3<>"/dev/tcp/127.0.0.1/$port" &&
            printf 'PING\r\n' >&3 &&
            IFS= read -r -t 5 answer <&3 &&
            case $answer in +PONG* | -NOAUTH*) ;; *) false ;; esac
    ) 2>/dev/null
}

# Says 0 once the server answers, 1 if it ended before.
run_server() {
    local end=$((SECONDS + start_seconds))
    printf '%s\n' "bind 127.0.0.1" "port $port" "dir $redis/data" "logfile $redis/log" \
        'save ""' "appendonly yes" "appendfsync always" "${REDIS_EXTRA_CONF:-}" >"$redis/redis.conf"
    setsid "$(server)" "$redis/redis.conf" </dev/null >>"$redis/start.log" 2>&1 &
    disown # or the shell reports its end
    remember server $! || return 1
    until answers; do
        is_running server || return 1
        [ $SECONDS -lt $end ] || die "the server is not ready after $start_seconds s"
        sleep 0.05
    done
    # The port may be somebody else's, and our server about to find that out.
    is_running server
}

install_server() {
    server >/dev/null && return
    "$(dirname "$self")/debian.sh" redis-server && server >/dev/null
}

# --- the commands ----------------------------------------------------------------------------------------------------

start() {
    local attempts=3
    install_server || die "there is no Redis: install redis-server (as root: apt-get install redis-server)"
    mkdir -p "$redis/data"
    if [ -n "${REDIS_OWNER:-}" ] && ! is_running watcher; then
        setsid "$self" watch "$dir" "$REDIS_OWNER" </dev/null >/dev/null 2>&1 &
        remember watcher $!
    fi
    is_running server || for _ in $(seq $attempts); do
        if [ -s "$redis/port" ]; then read -r port <"$redis/port"; else choose_port; fi
        if run_server; then echo "$port" >"$redis/port" && break; fi
        # The port of a server that comes back is given; somebody may hold it for a moment.
        end server
        sleep 0.5
    done
    if ! is_running server; then
        tail -n 20 "$redis"/{start.log,log} >&2 || true
        die "the server did not start"
    fi
    printf 'redis://127.0.0.1:%s/0\n' "$(cat "$redis/port")"
}

# Waits until the owner is gone, then stops the server.
watch() {
    local born
    born=$(birth "$1") || born=gone
    while [ "$(birth "$1")" = "$born" ]; do sleep 0.5; done
    rm -f "$redis/watcher.process" # or `stop` would end this process
    stop
}

stop() {
    [ -d "$redis" ] || return 0
    end watcher
    end server
    rm -rf "$redis"
    rmdir "$dir" 2>/dev/null || true
}

usage() {
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p;}' "$self" >&2
    exit 2
}

action=${1:-}
case $action in
    install) install_server || die "install redis-server by hand" ;;
    start | kill | stop | watch)
        dir=${2:-}
        [ -n "$dir" ] || usage
        [ "$action" != start ] || mkdir -p "$dir"
        if [ -d "$dir" ]; then dir=$(cd "$dir" && pwd -P); fi
        redis=$dir/redis
        shift 2
        case $action in
            kill) end server ;;
            *) "$action" "$@" ;;
        esac
        ;;
    *) usage ;;
esac
