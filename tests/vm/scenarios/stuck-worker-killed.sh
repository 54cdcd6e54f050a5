# what: the udev worker that handles the event is killed; nobody completes.
# expect: waiting, not leaked, while the owner lives; leaked when it is killed
cp /bin/sleep /tmp/forever
udevd_rule 50-slow.rules 'KERNEL=="dm-*", ACTION=="change", PROGRAM="/tmp/forever 600"'
trace
dmsetup create a --table '0 2048 zero' &
pid=$!
until_ok 10 in_semop $pid
kill_udev_worker forever
sleep 2.5
kill_it $pid
expect leaked culprit=$pid how=owner_killed signal=9 step=waiting confidence=observed device=a \
    missing=completion lost=1 evidence="killed by SIGKILL + 1 uevent sent, 0 completed by udev"
expect cookies created=1 live=1
expect explain culprit=$pid missing=completion remedy=fix_killer life="killed by SIGKILL"
