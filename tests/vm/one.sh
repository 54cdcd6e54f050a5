#!/bin/sh
# Runs one scenario with the helpers at hand, and closes its trace if it has not.
. "$SUITE/udevd.sh"
. "$SUITE/lib.sh"
. "$1"
[ -z "$tracer" ] || finish
