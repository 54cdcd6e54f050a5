# what: the udev worker that handles the event is killed; the owner goes on waiting.
# expect: stuck, long before udev's timeout: udev is idle, the event was dropped
cp /bin/sleep /tmp/forever
udevd_rule 50-slow.rules 'KERNEL=="dm-*", ACTION=="change", PROGRAM="/tmp/forever 600"'
trace
dmsetup create a --table '0 2048 zero' &
pid=$!
until_ok 10 in_semop $pid
kill_udev_worker forever
sleep 12
expect stuck creator=$pid cause=event_dropped confidence=inferred device=a \
    missing=completion lost=1 evidence="1 uevent sent, 0 completed by udev + udev is idle"
expect explain cause=event_dropped missing=completion victim=$pid culprit=- evidence="udev is idle" \
    remedy=read_journal
expect cookies created=1 live=1
