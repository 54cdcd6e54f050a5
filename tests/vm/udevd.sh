# Stopping and starting udevd, for the scenarios and for what cleans up after them.

# udevd_start ARG...: a udevd in its control group, ready.
udevd_start() {
    if [ -d /run/systemd/system ]; then
        systemctl start systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-udevd
    else
        (
            echo 0 >/sys/fs/cgroup/system.slice/systemd-udevd.service/cgroup.procs
            exec /lib/systemd/systemd-udevd --daemon "$@"
        )
    fi
    udevadm control --ping --timeout=10
}

# udevd_stop: udevd and its workers are gone at once, its socket stays, as after a crash.
udevd_stop() {
    touch /run/suite/udevd
    if [ -d /run/systemd/system ]; then
        systemctl stop systemd-udevd
    fi
    procs=/sys/fs/cgroup/system.slice/systemd-udevd.service/cgroup.procs
    tries=0
    while [ $tries -lt 100 ]; do
        left=$(cat $procs)
        [ -z "$left" ] && break
        kill -9 $left 2>/dev/null || true
        tries=$((tries + 1))
        sleep 0.05
    done
}

# Makes an event that concerns nobody.
null_event='udevadm trigger --action=change --subsystem-match=mem --sysname-match=null'

# udevd_hold: udevd takes no event from its queue until udevd_go. Once in some hundred times it went on
# all the same. That an event which concerns nobody stays in the queue is the proof.
udevd_hold() {
    touch /run/suite/udevd
    tries=0
    while [ $tries -lt 10 ]; do
        udevadm control --stop-exec-queue
        $null_event
        udevadm settle --timeout=1 >/dev/null 2>&1 || return 0
        tries=$((tries + 1))
    done
    echo 'udevd does not hold its queue' >&2
    return 1
}

# udevd_go: udevd takes events again. Now and then it did not although it was told to; that an event
# which concerns nobody is handled is the proof.
udevd_go() {
    tries=0
    while [ $tries -lt 20 ]; do
        udevadm control --start-exec-queue
        timeout 5 $null_event --settle && return 0
        tries=$((tries + 1))
    done
    echo 'udevd does not go on with its queue' >&2
    return 1
}

# udevd_rule NAME TEXT: one more file of rules.
udevd_rule() {
    touch /run/suite/udevd
    printf '%s\n' "$2" >"/run/udev/rules.d/$1"
    udevadm control --reload
}
