#!/usr/bin/env bash
# Gets a RabbitMQ for the demo and the tests, and ends it again.
#
#   rabbitmq.sh start DIR        start a broker in DIR, or the one there again; prints its AMQP URL
#   rabbitmq.sh kill DIR         end it as a crash does; its data stay
#   rabbitmq.sh stop DIR         end it and remove its data
#   rabbitmq.sh ctl DIR ARGS...  rabbitmqctl against it
#   rabbitmq.sh install          make sure that a server is installed
#
# `start` takes the first of these that is there:
#   1. the broker at GROUPCAST__BROKER__URL; nothing is started, and `kill` and `ctl` refuse
#   2. an installed rabbitmq-server, as a node of its own: loopback, free ports, no plugins, a port mapper of its own
#   3. the same, after an installation with apt-get, by root or with a sudo that asks for no password
#   4. a Docker container
# It owns DIR/broker, DIR/url (the URL) and DIR/env (to be sourced: the node's own settings), and ends no process but
# those that it wrote down there. A service of the same name on this machine stays as it is.
#
#   RABBITMQ_EXTRA_CONF  lines for the node's rabbitmq.conf, at its first start
#   RABBITMQ_OWNER       a process id; the broker is stopped when that process is gone, however it ended
#   RABBITMQ_BIN         where another rabbitmq-server and rabbitmqctl are
#   RABBITMQ_IMAGE       another image for Docker
set -euo pipefail
umask 077

# Debian's `rabbitmq-server` in the PATH changes to the service's user; the scripts behind it run as whoever calls them.
bin=${RABBITMQ_BIN:-/usr/lib/rabbitmq/bin}
image=${RABBITMQ_IMAGE:-rabbitmq:4-alpine}
# A busy machine takes half a minute; a node that is not up by then will not come.
start_seconds=90
self=$(cd "$(dirname "$0")" && pwd)/$(basename "$0")

say() { printf 'rabbitmq.sh: %s\n' "$*" >&2; }

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

remember() { printf '%s %s\n' "$2" "$(birth "$2")" >"$broker/$1.process"; }

is_running() {
    local pid born
    { read -r pid born <"$broker/$1.process"; } 2>/dev/null && [ "$(birth "$pid")" = "$born" ]
}

# Ends a remembered process and those that it started (each leads a session of its own), and waits until it is gone.
end() {
    local pid
    is_running "$1" || return 0
    read -r pid _ <"$broker/$1.process"
    kill -KILL -- "-$pid" 2>/dev/null || true
    for _ in $(seq 100); do
        is_running "$1" || return 0
        sleep 0.05
    done
    die "process $pid ($1) does not end"
}

# --- a node of an installed server -----------------------------------------------------------------------------------

is_installed() { [ -x "$bin/rabbitmq-server" ] && [ -x "$bin/rabbitmqctl" ]; }

is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Sets `port`, the first of four in a row, below the range from which the system serves whoever asks for any.
choose_ports() {
    for _ in $(seq 50); do
        port=$((10000 + RANDOM % 5000 * 4))
        if is_free $port && is_free $((port + 1)) && is_free $((port + 2)); then return; fi
    done
    die "found no free ports"
}

# A broker that is ready answers the protocol header with a method frame. Asking it is quicker than rabbitmqctl, which
# boots an Erlang machine to ask.
speaks_amqp() {
    (
        exec 3<>"/dev/tcp/127.0.0.1/$port" &&
            printf 'AMQP\0\0\11\1' >&3 &&
            LC_ALL=C IFS= read -r -t 5 -n 1 frame <&3 &&
            [ "$frame" = $'\1' ]
    ) 2>/dev/null
}

# Sets `node_env`, all that the node and its rabbitmqctl see of the environment.
node_environment() {
    read -r port <"$broker/port"
    local loopback="-kernel inet_dist_use_interface {127,0,0,1}"
    node_env=(
        "PATH=$PATH" "HOME=$broker/home" "LANG=C.UTF-8"
        "ERL_EPMD_PORT=$((port + 2))" "ERL_EPMD_ADDRESS=127.0.0.1" "ERL_CRASH_DUMP=$broker/erl_crash.dump"
        "RABBITMQ_NODENAME=groupcast$port@localhost"
        "RABBITMQ_NODE_IP_ADDRESS=127.0.0.1" "RABBITMQ_NODE_PORT=$port" "RABBITMQ_DIST_PORT=$((port + 1))"
        "RABBITMQ_MNESIA_BASE=$broker/data" "RABBITMQ_LOG_BASE=$broker/log" "RABBITMQ_LOGS=$broker/log/node.log"
        "RABBITMQ_PID_FILE=$broker/node.pid" "RABBITMQ_CONF_ENV_FILE=/dev/null"
        "RABBITMQ_CONFIG_FILE=$broker/rabbitmq" "RABBITMQ_ADVANCED_CONFIG_FILE=$broker/advanced.config"
        "RABBITMQ_ENABLED_PLUGINS_FILE=$broker/enabled_plugins"
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=$loopback"
        "RABBITMQ_CTL_ERL_ARGS=$loopback"
        "RABBITMQ_CTL_DIST_PORT_MIN=$((port + 3))" "RABBITMQ_CTL_DIST_PORT_MAX=$((port + 400))"
    )
}

node_files() {
    mkdir -p "$broker"/{home,log,data}
    head -c 30 /dev/urandom | base64 | tr -dc A-Za-z0-9 >"$broker/home/.erlang.cookie"
    chmod 400 "$broker/home/.erlang.cookie"
    echo '[].' >"$broker/enabled_plugins"
    # Without this file the server needs no parser for it, which saves a second.
    [ -z "${RABBITMQ_EXTRA_CONF:-}" ] || printf '%s\n' "$RABBITMQ_EXTRA_CONF" >"$broker/rabbitmq.conf"
}

# The server looks for each of its modules in the folder of each plugin. A view of it without the plugins starts in two
# thirds of the time.
view_without_plugins() {
    local scripts name
    scripts=$(readlink -f "$bin/rabbitmq-server")
    scripts=${scripts%/*}
    [ -d "$scripts/../plugins" ] || return 0
    mkdir -p "$broker/server/plugins"
    ln -sfn "$scripts" "$broker/server/sbin"
    for name in "$scripts/../plugins"/*; do
        case ${name##*/} in
            rabbitmq_prelaunch*) ;;
            rabbitmq_*) continue ;;
        esac
        ln -sfn "$name" "$broker/server/plugins/"
    done
}

# The node would start one itself, as a daemon without a known id. Being there first also reserves the ports against
# another start at the same time.
start_port_mapper() {
    is_running port_mapper && return 0
    local epmd root
    epmd=$(command -v epmd) || {
        root=$(dirname "$(readlink -f "$(command -v erl)")")
        for epmd in "$root"/epmd "$root"/../erts-*/bin/epmd; do [ ! -x "$epmd" ] || break; done
    }
    setsid "$epmd" -port $((port + 2)) -address 127.0.0.1 </dev/null >>"$broker/log/epmd.log" 2>&1 &
    disown # or the shell reports its end
    remember port_mapper $! || return 1
    for _ in $(seq 100); do
        is_running port_mapper || return 1
        is_free $((port + 2)) || break
        sleep 0.02
    done
    # Whoever came second has seen the other one's answer, and is about to end.
    sleep 0.05
    is_running port_mapper
}

# Says 0 once the node speaks AMQP, 1 if it ended before.
run_node() {
    local view=() end=$((SECONDS + start_seconds))
    [ ! -d "$broker/server" ] || view=("RABBITMQ_SCRIPTS_DIR=$broker/server/sbin")
    # As under systemd the script becomes the node, rather than its parent.
    setsid env -i "${node_env[@]}" ${view[@]+"${view[@]}"} RUNNING_UNDER_SYSTEMD=true \
        "$bin/rabbitmq-server" </dev/null >>"$broker/log/start.log" 2>&1 &
    disown
    remember node $! || return 1
    until speaks_amqp; do
        is_running node || return 1
        [ $SECONDS -lt $end ] || { show_log; die "the node is not ready after $start_seconds s"; }
        sleep 0.1
    done
    # The port may be somebody else's, and our node about to find that out.
    is_running node
}

show_log() {
    local log
    for log in "$broker"/log/{start,node}.log; do
        [ ! -s "$log" ] || { printf '%s:\n' "$log"; tail -n 20 "$log"; } >&2
    done
}

start_node() {
    if [ -f "$broker/port" ]; then
        node_environment
        is_running node && return
        # The ports of a broker that comes back are given; somebody may hold one of them for a moment.
        for _ in 1 2 3; do
            if start_port_mapper && run_node; then return; fi
            end node
            sleep 1
        done
        show_log
        die "the node did not start again"
    fi
    node_files
    view_without_plugins
    for _ in 1 2 3; do
        choose_ports
        echo $port >"$broker/port"
        node_environment
        if ! start_port_mapper; then continue; fi
        if run_node; then return; fi
        end node
        end port_mapper
        # Either a port was taken between the look and the start, or this server needs what the view leaves out.
        rm -rf "$broker"/{data,server}
        mkdir "$broker/data"
    done
    show_log
    die "the node did not start"
}

# --- the server's installation ---------------------------------------------------------------------------------------

install_server() {
    is_installed && return
    "$(dirname "$self")/debian.sh" rabbitmq-server && is_installed
}

# --- a container -----------------------------------------------------------------------------------------------------

has_docker() { command -v docker >/dev/null && docker info >/dev/null 2>&1; }

start_container() {
    local mount=() end=$((SECONDS + start_seconds))
    if [ -f "$broker/container" ]; then
        read -r port <"$broker/port"
        docker start "$(cat "$broker/container")" >/dev/null
    else
        choose_ports
        echo $port >"$broker/port"
        if [ -n "${RABBITMQ_EXTRA_CONF:-}" ]; then
            printf '%s\n' "$RABBITMQ_EXTRA_CONF" >"$broker/rabbitmq.conf"
            chmod 644 "$broker/rabbitmq.conf" # the container's user is another one
            mount=(-v "$broker/rabbitmq.conf:/etc/rabbitmq/conf.d/90-extra.conf:ro")
        fi
        # Its data are under its host name, so that needs to stay the same.
        docker create --hostname groupcast -p "127.0.0.1:$port:5672" ${mount[@]+"${mount[@]}"} "$image" >"$broker/container"
        docker start "$(cat "$broker/container")" >/dev/null
    fi
    until speaks_amqp; do
        if [ $SECONDS -ge $end ]; then
            docker logs --tail 20 "$(cat "$broker/container")" >&2
            die "the container is not ready after $start_seconds s"
        fi
        sleep 0.2
    done
}

# --- the commands ----------------------------------------------------------------------------------------------------

# Which of the ways: given, node or container.
choose_kind() {
    if [ -n "${GROUPCAST__BROKER__URL:-}" ]; then
        echo given
    elif is_installed || install_server; then
        echo node
    elif has_docker; then
        echo container
    else
        die "there is no RabbitMQ: install rabbitmq-server (as root: apt-get install rabbitmq-server), or start Docker," \
            "or set GROUPCAST__BROKER__URL to the AMQP URL of a broker"
    fi
}

# shellcheck disable=SC2317,SC2329 # by the trap
undo() {
    trap - EXIT
    trap '' HUP INT TERM
    if [ "$1" = fresh ]; then stop; else end node; fi
}

start() {
    local state=again kind url
    if [ ! -f "$broker/kind" ]; then
        [ ! -e "$broker" ] || die "$broker is there, but is no broker's folder"
        kind=$(choose_kind)
        mkdir "$broker"
        echo "$kind" >"$broker/kind"
        state=fresh
    fi
    trap 'undo $state' EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    case $(cat "$broker/kind") in
        given) url=${GROUPCAST__BROKER__URL:-$(cat "$dir/url")} ;;
        node) start_node ;;
        container) start_container ;;
    esac
    : "${url:=amqp://guest:guest@127.0.0.1:$port/%2f}"
    printf '%s\n' "$url" >"$dir/url"
    {
        printf 'export GROUPCAST__BROKER__URL=%q\n' "$url"
        if [ -n "${node_env+set}" ]; then
            printf 'export %q\n' "RABBITMQ_ERLANG_COOKIE=$(cat "$broker/home/.erlang.cookie")" "${node_env[@]:2}"
        fi
    } >"$dir/env"
    if [ -n "${RABBITMQ_OWNER:-}" ] && ! is_running watcher; then
        setsid "$self" watch "$dir" "$RABBITMQ_OWNER" </dev/null >/dev/null 2>&1 &
        remember watcher $!
    fi
    trap - EXIT
    printf '%s\n' "$url"
}

# Waits until the owner is gone, then stops the broker.
watch() {
    local born
    born=$(birth "$1") || born=gone
    while [ "$(birth "$1")" = "$born" ]; do sleep 0.5; done
    rm -f "$broker/watcher.process" # or `stop` would end this process
    stop
}

crash() {
    local kind
    kind=$(kind)
    case $kind in
        node) end node ;;
        container) docker kill "$(cat "$broker/container")" >/dev/null ;;
        given) die "the broker in $dir was not started here" ;;
    esac
}

stop() {
    [ -f "$broker/kind" ] || return 0
    end watcher
    end node
    end port_mapper
    [ ! -s "$broker/container" ] || docker rm -f -v "$(cat "$broker/container")" >/dev/null
    rm -rf "$broker" "$dir/url" "$dir/env"
    rmdir "$dir" 2>/dev/null || true
}

ctl() {
    local kind
    kind=$(kind)
    case $kind in
        node)
            node_environment
            exec env -i "${node_env[@]}" "$bin/rabbitmqctl" -q "$@"
            ;;
        container) exec docker exec "$(cat "$broker/container")" rabbitmqctl -q "$@" ;;
        given) die "the broker in $dir was not started here" ;;
    esac
}

kind() { cat "$broker/kind" 2>/dev/null || die "there is no broker in $dir"; }

usage() {
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p;}' "$self" >&2
    exit 2
}

# Sets `dir` and `broker`, absolute.
in_folder() {
    dir=$1 broker=$1/broker
    [ -d "$dir" ] || return 0
    dir=$(cd "$dir" && pwd -P)
    broker=$dir/broker
}

action=${1:-}
case $action in
    install) install_server || die "install rabbitmq-server by hand, start Docker, or set GROUPCAST__BROKER__URL" ;;
    start | kill | stop | ctl | watch)
        [ -n "${2:-}" ] || usage
        [ "$action" != start ] || mkdir -p "$2"
        in_folder "$2"
        shift 2
        case $action in
            kill) crash ;;
            *) "$action" "$@" ;;
        esac
        ;;
    *) usage ;;
esac
