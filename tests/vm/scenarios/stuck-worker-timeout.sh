# what: a rule's program takes longer than udev's timeout of 1 s; udevd kills the worker.
# expect: stuck: the event is lost; then the waiter is killed: leaked
udevd_stop
echo 'KERNEL=="dm-*", ACTION=="change", PROGRAM="/bin/sleep 600"' >/run/udev/rules.d/50-slow.rules
echo 'event_timeout=1' >/etc/udev/udev.conf
udevd_start --event-timeout=1
trace
dmsetup create a --table '0 2048 zero' &
pid=$!
until_ok 10 in_semop $pid
sleep 12.5
expect was state=stuck cause=event_lost device=a
unsettled=yes
kill_it $pid
expect leaked culprit=$pid how=owner_killed signal=9 step=waiting confidence=observed device=a \
    missing=completion lost=1 evidence="killed by SIGKILL + 1 uevent sent, 0 completed by udev"
expect cookies created=1 live=1
