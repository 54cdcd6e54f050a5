# what: a waiting dmsetup gets signals (SIGWINCH, SIGSTOP, SIGCONT) and waits on.
# expect: no finding
# probes: yes
trace
udevd_hold
dmsetup create a --table '0 2048 zero' &
pid=$!
until_ok 10 in_semop $pid
for signal in WINCH STOP CONT STOP; do
    kill -$signal $pid
    sleep 0.5
done
sleep 1.5
kill -CONT $pid
udevd_go
wait $pid
expect cookies created=1 destroyed=1 live=0
