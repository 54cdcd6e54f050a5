# what: udevd is gone, its socket is there; dmsetup create waits for ever.
# expect: stuck: udevd is down; not leaked while the waiter lives
trace
udevd_stop
dmsetup create a --table '0 2048 zero' &
pid=$!
until_ok 10 in_semop $pid
unsettled=yes
sleep 1
expect stuck creator=$pid cause=udevd_down confidence=observed device=a \
    missing=completion lost=1 evidence="1 uevent sent, 0 completed by udev + no udevd runs"
expect cookies created=1 live=1
expect explain cause=udevd_down missing=completion victim=$pid culprit=- remedy=start_udevd \
    avoid=kill_waiter life="sleeps until"
