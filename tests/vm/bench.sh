# Part `vm` of cargo xtask bench, in the guest: what a call costs with each backend, and with empty
# programs in the same places. Says a line before each mode, then what bench-load says.
set -u
calls='--count 2000 --batches 5 --of semop,syscall,ioctl'
rare='--count 100 --batches 5 --of life,exit'
common='raw_tp:sched_process_exit raw_tp:sched_process_exec'

load() {
    # The first makes caches of the kernel warm.
    bench-load calls --count 200 --batches 1 > /dev/null
    bench-load calls $calls
    bench-load calls $rare
}

# armed FILE PID: waits until the tracer says that it is ready.
armed() {
    for _ in $(seq 600); do
        grep -q -e '^armed' -e 'tracing (' "$1" && return 0
        kill -0 "$2" 2> /dev/null || return 1
        sleep 0.1
    done
    return 1
}

# mode NAME CMD...: the load while a tracer runs.
mode() {
    echo "mode $1"
    shift
    mkfifo /tmp/hold
    sleep 100000 > /tmp/hold &
    holder=$!
    "$@" < /tmp/hold > /tmp/out 2>&1 &
    tracer=$!
    if armed /tmp/out $tracer; then
        sleep 1
        load
    else
        echo "not armed: $(tail -n 1 /tmp/out)"
    fi
    kill -INT $tracer 2> /dev/null
    kill $holder
    wait $tracer 2> /dev/null
    rm -f /tmp/hold
}

bench-load calibrate
echo 'mode none'
load
mode 'empty fentry' bench-floor floor.o fexit:newary fexit:newary fentry:freeary \
    fexit:semctl_setval 'fentry:__do_semtimedop|fentry:do_semtimedop' \
    'fexit:__do_semtimedop|fexit:do_semtimedop' fexit:ipcget $common
mode 'dmtrace fentry' dmtrace watch --backend fentry
mode 'empty kprobe' bench-floor floor.o kprobe:newary kretprobe:newary kretprobe:newary \
    kprobe:freeary kprobe:semctl_setval kretprobe:semctl_setval \
    'kprobe:__do_semtimedop|kprobe:do_semtimedop' kprobe:perform_atomic_semop \
    kretprobe:perform_atomic_semop $common
mode 'dmtrace kprobe' dmtrace watch --backend kprobe
syscalls=
for call in semget semop semtimedop semctl; do
    syscalls="$syscalls syscalls:sys_enter_$call syscalls:sys_exit_$call"
done
mode 'empty tracepoint' bench-floor floor.o $syscalls syscalls:sys_exit_semget $common
mode 'dmtrace tracepoint' dmtrace watch --backend tracepoint
echo 'mode none again'
load
