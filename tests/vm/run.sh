#!/bin/sh
# Runs scenarios in a guest, one after the other: run.sh NAME[@BACKEND]...
# What each leaves is in /out/NAME; the host judges it (xtask/src/scenario).
export SUITE=/job/suite
export DM_DISABLE_UDEV=
unset DM_DISABLE_UDEV
group=/sys/fs/cgroup/scenario
mkdir -p $group /run/suite /run/udev/rules.d
limits=$(cat /proc/sys/kernel/sem)
max=$(cat /proc/sys/kernel/pid_max)
. $SUITE/udevd.sh

# header FIELD: a field of the scenario's header.
header() {
    sed -n "s/^# $1: //p" "$script"
}

kill_all() {
    tries=0
    while [ $tries -lt 50 ]; do
        left=$(cat $(find $group -name cgroup.procs))
        [ -z "$left" ] && break
        kill -9 $left 2>/dev/null
        tries=$((tries + 1))
        sleep 0.05
    done
    find $group -mindepth 1 -depth -type d -exec rmdir {} +
}

# state: what hangs and why, for a scenario that will run out of time.
state() {
    uptime
    for process in /proc/[0-9]*; do
        # Threads of the kernel have none.
        command=$(tr '\0' ' ' <"$process/cmdline")
        [ -n "$command" ] || continue
        printf '%s %s %s: %s\n' "${process#/proc/}" \
            "$(sed 's/.*) \(.\).*/\1/' "$process/stat")" "$(cat "$process/wchan")" "$command"
    done
    dmsetup udevcookies
    dmsetup info -c --noheadings
    grep . /run/udev/queue /proc/sys/kernel/sem
    udevadm control --ping --timeout=1 && echo 'udevd answers'
    cat /proc/interrupts
}

# Back to the state before the first scenario.
clean_up() {
    kill_all
    # A service that was killed is to be followed by another one.
    ! [ -e /sys/fs/bpf/dmtrace ] || dmtrace serve --remove >/dev/null
    echo "$limits" >/proc/sys/kernel/sem
    echo "$max" >/proc/sys/kernel/pid_max
    if [ -e /run/suite/udevd ] || ! pidof systemd-udevd >/dev/null; then
        rm -f /run/udev/rules.d/* /etc/udev/rules.d/* /run/suite/udevd
        udevd_stop
        udevd_start
    fi
    dmsetup udevcomplete_all -y >/dev/null
    udevadm settle --timeout=60
    if [ "$(dmsetup ls)" != "No devices found" ]; then
        timeout 20 dmsetup remove_all --force
        udevadm settle --timeout=60
    fi
    losetup -D
    ! [ -e /tmp/pin ] || umount /tmp/pin
    rm -f /etc/udev/udev.conf
    rm -rf /run/suite/* /tmp/* /run/lvm/*
    ipcrm --all=sem
}

remaining=$#
for entry; do
    name=${entry%@*}
    case $entry in
    *@*) export BACKEND="${entry#*@}" ;;
    *) export BACKEND= ;;
    esac
    script=$SUITE/scenarios/$name.sh
    export SERVICE=yes
    # Its own probes would be in the way where certain ones are looked at.
    [ "$(header probes)$BACKEND" = "" ] || SERVICE=no
    export OUT="/out/$entry"
    mkdir -p "$OUT"
    limit=$(header limit)
    limit=${limit:-120}
    # Hours that nobody waits for: the host's clock ends it.
    case $(header boot) in
    *virtual-clock*) limit=10000000 ;;
    esac
    cut -d' ' -f1 /proc/uptime >"$OUT/began"
    # Its sleep outlives it, and is not to hold the streams that the guest ends with.
    (
        sleep $((limit - 3))
        state >"$OUT/state" 2>&1
    ) >/dev/null 2>&1 &
    watcher=$!
    (
        echo 0 >$group/cgroup.procs
        cd /tmp
        exec timeout --kill-after=2 "$limit" sh -eu "$SUITE/one.sh" "$script"
    ) >"$OUT/log" 2>&1
    code=$?
    kill $watcher 2>/dev/null
    echo $code >"$OUT/status"
    ! [ -e /run/suite/docker.log ] || cp /run/suite/docker.log "$OUT/"
    # The last one leaves its traces to the end of the guest.
    remaining=$((remaining - 1))
    [ $remaining -eq 0 ] || clean_up >>"$OUT/log" 2>&1
    cut -d' ' -f1 /proc/uptime >"$OUT/ended"
    echo "$entry $code"
done
