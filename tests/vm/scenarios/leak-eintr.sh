# what: a program in the manner of devicemapper-rs gives up its wait on a signal and goes on.
# expect: leaked: abandoned on EINTR, by a process that lives; kprobe, blind to the result, says open
# variants: kprobe tracepoint
# probes: yes
trace
cookie-actor eintr --then-cycle --hold >/tmp/actor &
pid=$!
until_ok 10 grep -q holding /tmp/actor
if [ "$BACKEND" = kprobe ]; then
    # It does not see the results of calls that sleep.
    expect row state=open creator=$pid
else
    # The map of the running trace has no later cookies of a thread: list keeps silent.
    expect leaked culprit=$pid command="cookie-actor eintr --then-cycle --hold" \
        how=abandoned_on_eintr confidence=observed device=- missing=wait_again \
        evidence="interrupted (EINTR) + is alive"
fi
expect cookies created=2 destroyed=1 live=1
