# what: a program in the manner of devicemapper-rs gives up its wait on a signal and goes on.
# expect: leaked: abandoned on EINTR, by a process that lives
# variants: kprobe tracepoint
trace
cookie-actor eintr --then-cycle --hold >/tmp/actor &
pid=$!
until_ok 10 grep -q holding /tmp/actor
expect leaked culprit=$pid command="cookie-actor eintr --then-cycle --hold" how=abandoned_on_eintr \
    confidence=observed device=-
expect cookies created=2 destroyed=1 live=1
