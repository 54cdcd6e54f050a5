#!/bin/sh
# The lab's service under systemd: what pid1 does in the plain mode, less what systemd did.
. /lab/lib
frame hello "$(uname -r)"
modprobe -a dm_mod loop || broken "modprobe dm_mod loop"
[ -S /run/udev/control ] || broken "systemd-udevd opened no control socket"
exec /bin/sh /lab/run
