#!/bin/sh
# PID 1 of the plain mode: what systemd would set up, as far as udev and eBPF need it.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
. /lab/lib
. /lab/settings
frame hello "$(uname -r)"
load_modules

# udevd kills what is left in its control group, so it gets one of its own, as under systemd.
mkdir -p /sys/fs/cgroup/system.slice/systemd-udevd.service /sys/fs/cgroup/lab
(
    echo 0 >/sys/fs/cgroup/system.slice/systemd-udevd.service/cgroup.procs
    exec /lib/systemd/systemd-udevd --daemon
) || broken "systemd-udevd does not start"
tries=0
until [ -S /run/udev/control ]; do
    tries=$((tries + 1))
    [ $tries -gt 100 ] && broken "systemd-udevd opened no control socket"
    sleep 0.05
done
udevadm trigger --action=add --subsystem-match=block --subsystem-match=misc
udevadm settle --timeout=20 || broken "udev does not settle"

(
    echo 0 >/sys/fs/cgroup/lab/cgroup.procs
    exec /bin/sh /lab/run
) &
wait $!
# The host ends the machine; this is for a host that does not.
echo o >/proc/sysrq-trigger
sleep 60
