# what: many processes use cookies at once on one processor, where the kernel may put one in the middle of another.
# expect: each step is seen, whatever the kernel preempts: exact accounts, and each leak with who made it
# limit: 180
# probes: yes
trace
makers=
for worker in 1 2 3 4 5 6 7 8; do
    taskset -c 0 cookie-actor cycle --events 3 --count 6 >/dev/null &
done
taskset -c 0 cookie-actor churn --tag blink --procs 60 --jobs 12 --sets 3 --leave >/tmp/actor
for number in 1 2 3 4 5 6; do
    taskset -c 0 dmsetup create "d$number" --table '0 2048 zero' &
    makers="$makers $!"
done
wait $makers
for number in 1 2 3 4 5 6; do
    taskset -c 0 dmsetup remove "d$number" &
    makers="$makers $!"
done
for job in $(jobs -p); do
    [ "$job" = "$tracer" ] || wait "$job"
done
sed -n 's/.*"step":"churned","pid":\([0-9]*\),.*/\1/p' /tmp/actor | while read -r pid; do
    expect leaked culprit=$pid how=owner_exited status=0 step=armed confidence=observed device=- \
        missing=wait evidence="exited with status 0"
done
expect change change=set count=120
expect change change=up count=216
expect change change=down count=216
expect change change=waiting count=60
expect change change=released count=60
expect change change=ioctl count=12
expect change change=uevent count=12
expect lives up=3 down=4 count=48
expect lives up=1 down=2 count=12
expect cookies created=120 destroyed=60 live=60
