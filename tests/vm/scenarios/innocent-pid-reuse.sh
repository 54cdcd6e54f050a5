# what: a leaker dies and an innocent process gets its number.
# expect: the leak is that of the dead one; the innocent is not named
# probes: yes
trace
dmsetup create a --table '0 2048 zero'
udevd_hold
killed semget 2 dmsetup create b --table '0 2048 zero'
pid=$killed
tries=0
while :; do
    echo $((pid - 1)) >/proc/sys/kernel/ns_last_pid
    sleep 100 &
    [ $! -eq "$pid" ] && break
    kill_it $!
    tries=$((tries + 1))
    [ $tries -lt 200 ]
done
udevd_go
expect leaked culprit="$pid" command="dmsetup create b --table 0 2048 zero" \
    how=finished_after_death step=armed confidence=observed device=b \
    missing=wait evidence="killed by SIGKILL + completed by udev"
expect cookies created=2 live=1
