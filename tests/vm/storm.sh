#!/bin/sh
# storm.sh SECONDS none|dmtrace|udevcomplete_all SEED WORKERS
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
exec cookie-storm --seconds "$1" --cleaner "$2" --seed "$3" $places
