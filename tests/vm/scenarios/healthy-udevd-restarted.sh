# what: udevd is killed while dmsetup waits, and started again; the event is triggered once more.
# expect: stuck meanwhile at most; the waiter is completed by hand and ends well
trace
udevd_stop
dmsetup create a --table '0 2048 zero' &
pid=$!
until_ok 10 in_semop $pid
until_ok 10 grep -q '"type":"finding"' "$OUT/watch.json"
expect was state=stuck cause=udevd_down
udevd_start
cookie=$(dmsetup udevcookies | awk '/^0x/ { print $1 }')
dmsetup udevcomplete "$cookie"
wait $pid
expect cookies created=1 destroyed=1 live=0
