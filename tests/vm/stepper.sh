#!/bin/sh
# stepper.sh MOMENTS: stops the programs of stepped.sh at each system call, again and again, until
# that many moments were looked at. What it leaves in /out is judged by
# xtask/src/scenario/stepper.rs.
set -eu
. /job/lib.sh
. /job/stepped.sh
export DM_DISABLE_UDEV=
unset DM_DISABLE_UDEV
wanted=$1
: >/out/steps

# step PROGRAM...: every moment of it.
step() {
    [ "$(moments)" -lt "$wanted" ] || return 0
    cookie-stepper --files "$folder" -- "$@" >/tmp/step 2>/tmp/step.err </dev/null ||
        { cat /tmp/step.err >&2; return 1; }
    # The last line is the stepper's: the program may have something to say, too.
    tail -n 1 /tmp/step >>/out/steps
    rm /tmp/step
}

moments() {
    sed -n 's/.*"moments":\([0-9]*\).*/\1/p' /out/steps | awk '{ n += $1 } END { print n + 0 }'
}

stepped_setup
while [ "$(moments)" -lt "$wanted" ]; do
    stepped_devices
    stepped_scripts
done
