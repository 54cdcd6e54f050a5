# what: udevd is killed with an event in its queue, and started again; that event is gone for ever.
# expect: stuck meanwhile; completed by hand (a triggered event has no cookie) the waiter ends well
trace
udevd_stop
dmsetup create a --table '0 2048 zero' &
pid=$!
until_ok 10 in_semop $pid
until_ok 10 grep -q '"type":"finding"' "$OUT/watch.json"
expect was state=stuck cause=udevd_down device=a
udevd_start
cookie=$(dmsetup udevcookies | awk '/^0x/ { print $1 }')
dmsetup udevcomplete "$cookie"
wait $pid
expect cookies created=1 destroyed=1 live=0
