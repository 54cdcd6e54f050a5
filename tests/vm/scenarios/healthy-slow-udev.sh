# what: a rule makes udev take four seconds for an event; dmsetup create waits for it.
# expect: no finding
udevd_rule 50-slow.rules 'KERNEL=="dm-*", ACTION=="change", PROGRAM="/bin/sleep 4"'
trace
dmsetup create a --table '0 2048 zero'
expect cookies created=1 destroyed=1 live=0
