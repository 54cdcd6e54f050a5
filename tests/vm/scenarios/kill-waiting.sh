# what: dmsetup create is killed while it waits for a udevd that is held; udevd goes on afterwards.
# expect: leaked, killed while waiting, and then completed by udev
# variants: kprobe tracepoint
# probes: yes
trace
udevd_hold
dmsetup create a --table '0 2048 zero' &
pid=$!
until_ok 10 in_semop $pid
kill_it $pid
udevd_go
expect leaked culprit=$pid command="dmsetup create a --table 0 2048 zero" how=finished_after_death \
    step=waiting confidence=observed device=a \
    missing=removal evidence="killed by SIGKILL + completed by udev"
expect cookies created=1 live=1
