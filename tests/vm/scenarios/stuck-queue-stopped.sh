# what: udevd's queue is stopped (udevadm control --stop-exec-queue) while dmsetup create waits.
# expect: stuck: the queue is stopped; udevd goes on, and the waiter is completed
trace
udevd_hold
dmsetup create a --table '0 2048 zero' &
pid=$!
until_ok 10 in_semop $pid
sleep 12
unsettled=yes
expect stuck creator=$pid cause=queue_stopped confidence=inferred device=a \
    missing=completion lost=1 evidence="1 uevent sent, 0 completed by udev + no worker"
expect explain cause=queue_stopped missing=completion victim=$pid culprit=- remedy=start_queue \
    avoid=complete evidence="no worker"
expect cookies created=1 live=1
finish
udevd_go
wait $pid
