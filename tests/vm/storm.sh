#!/bin/sh
# storm.sh SECONDS none|dmtrace|udevcomplete_all SEED WORKERS steady|stepped
# Prepares the machine and runs cookie-storm (tests/src/storm). What it leaves in /out is judged by
# xtask/src/scenario/storm.rs.
set -e
# udev gives up an event after the time-out and 10 seconds of grace: only then is it sure that a
# killed operation has none outstanding.
echo event_timeout=30 >/etc/udev/udev.conf
udevadm control --reload
places=
for worker in $(seq "$4"); do
    place=/run/storm/$worker
    mkdir -p $place
    for use in disk pv; do
        truncate -s 256M $place/$use.img
        losetup --find --show $place/$use.img >$place/$use
    done
    # Looks at its own disk only, and leaves nothing behind: the worker's commands are many.
    cat >$place/lvm.conf <<END
devices {
    filter = [ "a|^$(cat $place/pv)$|", "r|.*|" ]
    global_filter = [ "a|^$(cat $place/pv)$|", "r|.*|" ]
    obtain_device_list_from_udev = 0
}
global { event_activation = 0 }
activation { monitoring = 0 }
backup { backup = 0 archive = 0 }
END
    export LVM_SYSTEM_DIR=$place
    pvcreate -q "$(cat $place/pv)"
    vgcreate -q -s 64k vg$worker "$(cat $place/pv)"
    places="$places --place $place"
done >/dev/null
udevadm settle --timeout=60
# step_clock: sets the wall clock forth or back by up to three hours, again and again.
step_clock() {
    random=$1
    while sleep 1.5; do
        random=$(((random * 1103515245 + 12345) % 2147483648))
        date -s "@$(($(date +%s) + random % 21600 - 10800))"
    done
}
case $5 in stepped) step_clock "$3" >/dev/null 2>&1 & ;; esac
exec cookie-storm --seconds "$1" --cleaner "$2" --seed "$3" $places
