# what: the tracer starts before the module dm_mod is loaded; then dmsetup create is killed.
# expect: leaked by it, with its device all the same
# boot: own
udevadm settle --timeout=60
modprobe -r dm_mod || skip "dm_mod cannot be removed here"
trace
modprobe dm_mod
udevadm settle --timeout=60
sleep 2
killed semget 2 dmsetup create a --table '0 2048 zero'
expect leaked culprit=$killed how=finished_after_death step=armed confidence=observed device=a \
    missing=wait evidence="killed by SIGKILL + completed by udev" \
    command="dmsetup create a --table 0 2048 zero"
expect cookies created=1 live=1
