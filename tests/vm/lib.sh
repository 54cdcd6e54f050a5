# Helpers of the scenarios. A scenario traces, does something, says what it expects:
#
#   trace                       start the tracer, wait until it is attached
#   expect leaked culprit=$pid how=owner_killed ...
#   finish                      stop the tracer, make the reports (at the end: by itself)
#
# `expect KIND KEY=VALUE...` is one line of $OUT/expect. Kinds and keys: xtask/src/scenario/expect.rs.
# What is not expected must not be there: no other leak, no other culprit, no inexact account.
tracer=
service=
trace_args=

# trace ARG...: starts the tracer and waits until it is attached.
trace() {
    [ -z "$BACKEND" ] || trace_args="--backend $BACKEND"
    # In a control group of its own: the scenario is not to see itself.
    dmtrace watch --json --record "$OUT/trace.dmt" $trace_args "$@" >"$OUT/watch.json" 2>"$OUT/watch.err" &
    tracer=$!
    if ! until_ok 30 grep -q '"type":"start"' "$OUT/watch.json"; then
        cat "$OUT/watch.err"
        exit 1
    fi
    # Where the probes themselves are not what is looked at, a service sees the same.
    if [ "${SERVICE-}" = yes ]; then
        : >"$OUT/told.json"
        printf '#!/bin/sh\ncat >>"%s"\n' "$OUT/told.json" >/tmp/tell
        chmod +x /tmp/tell
        dmtrace serve --history /tmp/history --metrics-textfile "$OUT" --on-leak /tmp/tell \
            >"$OUT/serve.log" 2>&1 &
        service=$!
        until_ok 30 service_answers
    fi
}

# fails COMMAND...: it must. (`! COMMAND` alone ends no script that runs with `set -e`.)
fails() {
    ! "$@"
}

service_answers() {
    dmtrace serve --status --json 2>/dev/null | grep -q '"findings"'
}

# finish: lets the dust settle, looks while the trace still runs, stops it, reads the recording.
# The tracer's exit code is in $tracer_code.
finish() {
    [ -n "${unsettled-}" ] || udevadm settle --timeout=60
    sleep 1.2
    dmtrace list --json >"$OUT/list.json" || true
    dmtrace report --json >"$OUT/report-live.json" || true
    dmtrace explain --json >"$OUT/explain-live.json" || true
    dmtrace clean --json >"$OUT/plan-live.json" || true
    dmtrace doctor --no-attach --json >"$OUT/doctor.json" || true
    [ -z "$service" ] || dmtrace serve --status --json >"$OUT/status.json" || true
    dmtrace list --json >"$OUT/list-again.json" || true
    kill -INT "$tracer"
    tracer_code=0
    wait "$tracer" || tracer_code=$?
    tracer=
    if [ -n "$service" ]; then
        kill -TERM "$service"
        wait "$service" || true
        service=
    fi
    dmtrace report --json "$OUT/trace.dmt" >"$OUT/report.json" || true
    dmtrace explain --json "$OUT/trace.dmt" >"$OUT/explain.json" || true
    take_advice
    rm -f "$OUT/trace.dmt"
}

# take_advice: types the command that the explanation gives for its cookie, and lists what is left.
take_advice() {
    grep -o '`dmtrace clean [^`]*`' "$OUT/explain.json" | head -n 1 | tr -d '`' >"$OUT/advice"
    : >"$OUT/advice.out"
    if [ -s "$OUT/advice" ]; then
        # What is as young as in a test needs more than patience.
        $(cat "$OUT/advice") --older-than 1s --apply --yes --audit "$OUT/audit.jsonl" \
            >"$OUT/advice.out" 2>&1 || true
    fi
    dmtrace list --json >"$OUT/list-after.json" || true
}

expect() {
    printf '%s' "$1" >>"$OUT/expect"
    shift
    for pair; do
        printf '\t%s' "$pair" >>"$OUT/expect"
    done
    echo >>"$OUT/expect"
}

# skip REASON: this kernel or image cannot do it.
skip() {
    echo "$*" >"$OUT/skip"
    exit 0
}

# uptime: whole seconds since boot, in $now; without a process of its own.
uptime() {
    read -r now _ </proc/uptime
    now=${now%.*}
}

# until_ok SECONDS COMMAND...: tries until it succeeds. After the first tries less often: what is
# waited for needs the processor, too.
until_ok() {
    uptime
    deadline=$((now + $1))
    shift
    tries=0
    until "$@"; do
        uptime
        if [ "$now" -gt "$deadline" ]; then
            echo "in vain: $*"
            return 1
        fi
        tries=$((tries + 1))
        if [ $tries -lt 40 ]; then sleep 0.05; else sleep 0.3; fi
    done
}

# Whether process $1 sleeps in a semaphore call.
in_semop() {
    sleeps_in_semop "/proc/$1"
}

# Whether the thread of this folder of /proc sleeps in a semaphore call. One that lost the processor
# on the way out of a call that did not block shows the same call: it is runnable.
sleeps_in_semop() {
    read -r call _ <"$1/syscall" || return 1
    case $call in 65 | 220) ;; *) return 1 ;; esac
    read -r state <"$1/stat" || return 1
    case ${state##*) } in S*) return 0 ;; esac
    return 1
}

# Whether process $1 has ended; a zombie has.
ended() {
    read -r state <"/proc/$1/stat" 2>/dev/null || return 0
    case ${state##*) } in Z* | X*) return 0 ;; esac
    return 1
}

# zombie NAME: whether a process of that name is dead and not reaped; its number is in $zombie.
zombie() {
    for stat in /proc/[0-9]*/stat; do
        read -r pid name state _ <"$stat" 2>/dev/null || continue
        [ "$name $state" = "($1) Z" ] && zombie=$pid && return 0
    done
    return 1
}

# kill_it PID [SIGNAL]: kills a child and waits for its end, quietly.
kill_it() {
    kill "-${2:-KILL}" "$1"
    wait "$1" 2>/dev/null || true
}

# kill_udev_worker NAME: waits until a rule runs the program NAME, kills udev's worker and the
# program. udev gives its programs a parent-death signal, so that one may be gone first.
kill_udev_worker() {
    until_ok 10 pidof "$1"
    program=$(pidof "$1")
    worker=$(sed -n 's/^PPid:.//p' "/proc/$program/status")
    kill -KILL "$worker"
    kill -KILL "$program" 2>/dev/null || true
    until_ok 10 ended "$worker"
    until_ok 10 ended "$program"
}

# cookies: how many there are in this namespace.
cookies() {
    awk '$1 >= 223150080 && $1 <= 223215615 { n++ } END { print n + 0 }' /proc/sysvipc/sem
}

# have_cookies N
have_cookies() {
    [ "$(cookies)" -eq "$1" ]
}

# zero NAME [SECTORS]: a device in good order, without a cookie.
device() {
    dmsetup create "$1" --noudevsync --table "0 ${2:-2048} zero"
    udevadm settle --timeout=60
}

# loop SIZE: a loop device with an empty file of that size; its name is in $loop.
loop() {
    file=$(mktemp /tmp/disk.XXXXXX)
    truncate -s "$1" "$file"
    loop=$(losetup --find --show "$file")
}

# killed NAME NTH COMMAND...: the command gets SIGKILL when it enters its NTH call of NAME; its
# process is $killed. strace leaves the command as our own child (-D).
killed() {
    call=$1
    nth=$2
    shift 2
    strace -D -qq -o /dev/null -e "trace=$call" -e "inject=$call:signal=SIGKILL:when=$nth" "$@" &
    killed=$!
    if wait $killed 2>/dev/null; then
        echo "not killed at $call $nth: $*"
        return 1
    fi
}

# calls FILE COMMAND...: the semaphore calls of a run in good order, one per line.
calls() {
    file=$1
    shift
    strace -qq -o "$file" -e trace=semget,semctl,semop,semtimedop "$@"
}

# masked COMMAND...: it, with the numbers of cookies in its output hidden: a log that has one keeps the
# cookie, and so does a shell.
masked() {
    {
        code=0
        "$@" || code=$?
        echo $code >/tmp/masked
    } 2>&1 | sed 's/0x0d4d[0-9a-f]\{4\}/COOKIE/g'
    return "$(cat /tmp/masked)"
}
