# what: dmsetup makes a cookie and is killed while it waits; the tracer sleeps until it is gone.
# expect: the whole chain of calls from the first function of dmsetup to semget
# variants: kprobe tracepoint
# probes: yes
trace
kill -STOP "$tracer"
udevd_hold
dmsetup create a --table '0 2048 zero' &
pid=$!
until_ok 10 in_semop $pid
kill_it $pid
udevd_go
kill -CONT "$tracer"
# dmsetup is stripped: of its functions only main and _start have names, the others are addresses.
expect leaked culprit=$pid how=finished_after_death step=waiting confidence=observed device=a \
    missing=removal evidence="killed by SIGKILL + completed by udev" site=complete named=semget,dm_task_set_cookie,main,__libc_start_main,_start
expect row creator=$pid site=complete named=semget,dm_task_set_cookie,main,__libc_start_main,_start
expect cookies created=1 live=1
