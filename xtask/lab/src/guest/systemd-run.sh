#!/bin/sh
# The lab's service under systemd: what pid1 does in the plain mode, less what systemd did.
. /lab/lib
. /lab/settings
frame hello "$(uname -r)"
load_modules
[ -S /run/udev/control ] || broken "systemd-udevd opened no control socket"
exec /bin/sh /lab/run
