# what: the uevent is sent while udevd is gone; udevd is started again and never gets it.
# expect: stuck: first udevd is down, then the event was not received
trace
udevd_stop
dmsetup create a --table '0 2048 zero' &
pid=$!
until_ok 10 in_semop $pid
until_ok 10 grep -q '"type":"finding"' "$OUT/watch.json"
expect was state=stuck cause=udevd_down device=a
udevd_start
sleep 11
expect stuck creator=$pid cause=not_received confidence=inferred device=a \
    missing=completion lost=1 evidence="1 uevent sent, 0 completed by udev + was started after the uevent"
expect explain cause=not_received missing=completion victim=$pid culprit=- \
    evidence="was started after the uevent"
expect cookies created=1 live=1
