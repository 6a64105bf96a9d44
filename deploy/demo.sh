#!/usr/bin/env bash
# The main job, end to end, with one command: a RabbitMQ, the stand-in API, the daemon, five jobs and their results.
#
#   deploy/demo.sh          run it and clean up
#   deploy/demo.sh --keep   leave everything running until Ctrl-C, to try more
#   deploy/demo.sh --command send_group_msg   the same jobs with the API's other call
#
# deploy/rabbitmq.sh gets the broker: the one at GROUPCAST__BROKER__URL, or a private one. Everything else is in a folder
# of its own, and only what was started here is ended here. GROUPCAST_BIN names a binary that is built already.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD

if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' off=$'\e[0m'; else bold='' dim='' off=''; fi
title() { printf '\n%s%s%s\n' "$bold" "$*" "$off"; }
note() { printf '%s%s%s\n' "$dim" "$*" "$off"; }

usage() {
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 2
}

keep=
command=send_group_system_notification
while [ $# -gt 0 ]; do
    case $1 in
        --keep) keep=yes ;;
        --command)
            command=${2:-}
            shift
            ;;
        *) usage ;;
    esac
    shift
done
case $command in
    send_group_system_notification) settings='' calls=three ;;
    send_group_msg) settings='group_msg.targeting = true' calls=25 ;;
    *) usage ;;
esac

work=$(mktemp -d "${TMPDIR:-/tmp}/groupcast-demo-XXXXXX")
pids=()

# Each child leads a process group, so that Ctrl-C reaches this script alone, and it ends them in order.
in_background() {
    set -m
    "$@" </dev/null &
    set +m
    pids+=($!)
}

# A trap waits for a command in the foreground, but not for `wait`.
in_foreground() {
    in_background "$@"
    wait $! || return
    unset 'pids[${#pids[@]}-1]'
}

# TERM, and KILL if that is not enough: the daemon gives the calls in flight 20 s.
# shellcheck disable=SC2317,SC2329 # by the trap
end() {
    kill -TERM -- "-$1" 2>/dev/null || return 0
    for _ in $(seq 250); do
        kill -0 "$1" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -KILL -- "-$1" 2>/dev/null || true
}

# shellcheck disable=SC2317,SC2329 # by the trap
clean_up() {
    trap - EXIT
    trap '' HUP INT TERM
    # Last come, first gone: the daemon needs its broker to stop well.
    local i
    for ((i = ${#pids[@]} - 1; i >= 0; i--)); do end "${pids[i]}"; done
    "$root/deploy/rabbitmq.sh" stop "$work/rabbitmq" || true
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

fail() {
    printf '\ndemo.sh: %s\n' "$1" >&2
    local log
    for log in "$work"/*.log; do
        [ ! -s "$log" ] || { printf '\n%s:\n' "${log##*/}"; tail -n 20 "$log"; } >&2
    done
    exit 1
}

# until_true SECONDS WHAT COMMAND...: waits for a condition, as long as everything runs that was started.
until_true() {
    local end=$((SECONDS + $1)) what=$2 pid
    shift 2
    until "$@"; do
        for pid in "${pids[@]}"; do kill -0 "$pid" 2>/dev/null || fail "$what ended by itself"; done
        [ $SECONDS -lt $end ] || fail "waited in vain for $what"
        sleep 0.1
    done
}

# Sets `groupcast`. The dev profile, because the tests share what it builds, and a release build takes minutes longer.
get_binary() {
    local quiet=()
    [ -t 2 ] || quiet=(--quiet)
    groupcast=${GROUPCAST_BIN:-}
    if [ -z "$groupcast" ]; then
        note "building groupcast; the first time takes a few minutes"
        in_foreground cargo build --locked ${quiet[@]+"${quiet[@]}"} --bin groupcast \
            --message-format json-render-diagnostics >"$work/build.json" || fail "groupcast does not build"
        groupcast=$(sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' "$work/build.json")
    fi
    [ -x "$groupcast" ] || fail "there is no binary '$groupcast'"
}

# Sets `broker` and `broker_url`. The broker ends with this process, even if that is killed.
get_broker() {
    export RABBITMQ_OWNER=$$
    in_foreground deploy/rabbitmq.sh start "$work/rabbitmq" >/dev/null || fail "there is no broker"
    broker_url=$(cat "$work/rabbitmq/url")
    case $(cat "$work/rabbitmq/broker/kind") in
        given) broker="your RabbitMQ (queues groupcast.$app.* stay there)" ;;
        node) broker="a private RabbitMQ node" ;;
        container) broker="RabbitMQ in a container" ;;
    esac
}

# A name of its own: on a broker that others use too, it must not take their jobs.
app=demo$$
title "Getting ready"
get_binary
note "starting a broker"
get_broker
# What the environment says about apps is for another daemon than this one.
unset "${!GROUPCAST__@}"

in_background "$groupcast" sandbox --listen 127.0.0.1:0 >"$work/sandbox.log" 2>&1
until_true 10 "the sandbox" grep -qs '^endpoint' "$work/sandbox.log"
cat >"$work/groupcast.toml" <<TOML
[broker]
url = "$broker_url"

[state]
url = "sqlite:$work/groupcast.db"

[admin]
listen = "127.0.0.1:0"
token = "demo"

$(grep -A4 '^\[apps' "$work/sandbox.log" | sed "s/^\[apps.*/[apps.$app]/")
command = "$command"
$settings
TOML
cd "$work"
in_background "$groupcast" run >"$work/daemon.log" 2>&1
until_true 30 "the daemon" grep -qs consuming "$work/daemon.log"
"$groupcast" check >"$work/check.log" || fail "groupcast check found something"
title "Running: $broker, the sandbox API, the daemon"
sed 's/^/  /' "$work/check.log"

missed=0

# The parts of a pretty-printed result that matter here, a line each.
summary() {
    awk '
        function value() { sub(/^[^:]*: */, ""); sub(/,$/, ""); return $0 }
        function line(name, text) { printf "  %-11s %s\n", name, text }
        /^  "(status|calls)":/ { gsub(/"/, ""); name = $1; sub(":", "", name); line(name, value()) }
        /^  "(recipients|batches)": \{/ { gsub(/[":]/, ""); group = $1; counts = ""; next }
        group && /^  \}/ { line(group, counts); group = "" }
        group { gsub(/[",]/, ""); name = $1; sub(":", "", name); n = value(); if (n + 0) counts = counts (counts ? ", " : "") n " " name }
        /^      "info":/ { line("because", value()) }
    '
}

# job EXPECTED WHAT ARGS...: publishes a job, waits for its result and shows the part that matters.
job() {
    local expected=$1 what=$2 result
    shift 2
    title "$what"
    result=$("$groupcast" send "$@" --wait) || true
    summary <<<"$result"
    grep -q "\"status\": \"$expected\"" <<<"$result" || { printf '  expected: %s\n%s\n' "$expected" "$result"; missed=$((missed + 1)); }
}

seq -f 'user-%g' 1234 >recipients
printf '%s' '{"GroupId":"@TGS#2C5SZEAEF","Content":"only for Alice","ToMember_Account":["alice"]}' >misspelt.json
job sent "Three recipients" --group '@TGS#2C5SZEAEF' --content 'Maintenance at 22:00' --to alice,bob,carol
job sent "1,234 recipients: $calls calls" --group '@TGS#2C5SZEAEF' --content 'Maintenance at 22:00' --to-file recipients
job sent "Every member of the group" --group '@TGS#2C5SZEAEF' --content 'Maintenance is over'
job failed "A group that does not exist: the API's refusal, and a dead letter" --group unknown-group --content hello --to alice
job rejected "A misspelt field: no call, so no broadcast by mistake" misspelt.json

[ "$missed" -eq 0 ] || fail "$missed of 5 jobs ended otherwise than expected"
title "All five jobs ended as expected. Next:"
cat <<TEXT
  tests/run.sh                      all tests
  deploy/demo.sh --keep             the same, left running to try more
  groupcast.toml of your own        see README.md: sdk_app_id, identifier, secret_key, region; then \`groupcast check\`
TEXT
[ -n "$keep" ] || exit 0

title "Left running until Ctrl-C:"
cat <<TEXT
  $(sed -n 's|.*listening for /livez.*address=\([^ ]*\).*|http://\1/|p' "$work/daemon.log")   the status page; the token for its actions is: demo
  cd $work
  $groupcast send --group g --content hello --to alice --wait
  $groupcast dead list
  $groupcast dead redrive --dry-run
  tail -f $work/daemon.log
TEXT
wait "${pids[${#pids[@]}-1]}" || true
fail "the daemon ended by itself"
