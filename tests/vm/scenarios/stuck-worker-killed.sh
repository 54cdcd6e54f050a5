# what: the udev worker that handles the event is killed; nobody completes.
# expect: waiting, not leaked, while the owner lives; leaked when it is killed
udevd_rule 50-slow.rules 'KERNEL=="dm-*", ACTION=="change", PROGRAM="/bin/sleep 600"'
trace
dmsetup create a --table '0 2048 zero' &
pid=$!
until_ok 10 in_semop $pid
until_ok 10 pidof sleep
worker=$(cut -d' ' -f4 "/proc/$(pidof sleep)/stat")
kill -KILL "$worker"
kill -KILL "$(pidof sleep)"
sleep 2.5
kill_it $pid
expect leaked culprit=$pid how=owner_killed signal=9 step=waiting confidence=observed device=a
expect cookies created=1 live=1
