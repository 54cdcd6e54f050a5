#!/bin/sh
# The unit at boot: it traces before udev announces the devices that are there, and nothing waits for
# itself. The guest is given the enabled unit before systemd starts:
#
# mkdir wants && ln -s ../dmtrace.service wants/dmtrace.service
# cargo xtask vm --systemd --file target/release/dmtrace:/usr/sbin/dmtrace \
#   --file packaging/dmtrace.service:/etc/systemd/system/dmtrace.service \
#   --file wants:/etc/systemd/system/sysinit.target.wants --file target/release/cookie-actor \
#   --file tests/vm/boot.sh -- boot.sh
set -u
failed=0
bad() { echo "boot: FAILED: $*"; failed=1; }
at() { systemctl show -P "$2" "$1"; }

ready=$(at dmtrace.service ActiveEnterTimestampMonotonic)
[ "$(at dmtrace.service SubState)" = running ] || bad "not running: $(journalctl -b -u dmtrace -o cat --no-pager)"
[ "$ready" != 0 ] || bad "never ready"
echo "boot: dmtrace traces at $((ready / 1000)) ms after the kernel's start, $(at dmtrace.service NRestarts) restarts"
for unit in systemd-udev-trigger.service lvm2-monitor.service local-fs-pre.target sysinit.target; do
    start=$(at $unit InactiveExitTimestampMonotonic)
    [ "$start" = 0 ] && { echo "boot: $unit is not started here"; continue; }
    echo "boot: $unit starts at $((start / 1000)) ms"
    [ "$start" -ge "$ready" ] || bad "$unit does not wait for it"
done
[ "$(at systemd-udev-trigger.service InactiveExitTimestampMonotonic)" != 0 ] || bad "udev is not started"
journalctl -b -o cat --no-pager | grep -i 'ordering cycle' && bad "a cycle"
systemctl is-system-running --wait >/dev/null
systemctl --failed --no-legend --no-pager
systemctl show -P Before -P After dmtrace.service | fold -w 100
journalctl -b -u dmtrace -o cat --no-pager | head -6
dmtrace serve --status

# Where /var comes later than the service, the history is begun as soon as it is there.
systemctl stop dmtrace.service
rm -rf /var/lib/dmtrace
systemctl start dmtrace.service || bad "it does not start without /var/lib/dmtrace"
mount -t tmpfs tmpfs /var/lib && mkdir -m 700 /var/lib/dmtrace
cookie-actor cycle --stop-at after-inc --how kill >/tmp/actor 2>&1
n=0
until [ -s /var/lib/dmtrace/history.redb ] || [ $n = 300 ]; do n=$((n + 1)); sleep 0.5; done
ls -l /var/lib/dmtrace
[ -s /var/lib/dmtrace/history.redb ] || bad "no history after /var/lib was mounted"
journalctl -b -u dmtrace -o cat --no-pager | grep -i history | cut -c1-200 | tail -4
umount -l /var/lib
[ $failed = 0 ] && echo "boot: all well"
exit $failed
