# what: cookies with several uevents each, whose waiters remove them as soon as the last one is completed.
# expect: no finding; watch shows every step of every life, in its order, with each backend (tracepoint: healthy-steps-syscalls)
# variants: kprobe
# probes: yes
trace
for worker in 1 2 3 4; do
    cookie-actor cycle --events 3 --count 25 >/dev/null &
done
for job in $(jobs -p); do
    [ "$job" = "$tracer" ] || wait "$job"
done
dmsetup create a --table '0 2048 zero'
dmsetup remove a
expect lives up=3 down=4 count=100
expect lives up=1 down=2 count=2
expect cookies created=102 destroyed=102 live=0
