# what: udevd is gone, dmsetup create waits for ever; somebody kills it.
# expect: first stuck, then leaked: killed while waiting
trace
udevd_stop
dmsetup create a --table '0 2048 zero' &
pid=$!
until_ok 10 in_semop $pid
until_ok 10 grep -q '"type":"finding"' "$OUT/watch.json"
expect was state=stuck cause=udevd_down device=a
kill_it $pid
unsettled=yes
expect leaked culprit=$pid how=owner_killed signal=9 step=waiting confidence=observed device=a \
    missing=completion lost=1 evidence="killed by SIGKILL + 1 uevent sent, 0 completed by udev"
expect cookies created=1 live=1
