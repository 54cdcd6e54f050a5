# what: a thread that is not the first one makes a cookie; then the whole process is killed.
# expect: leaked by the process; the thread's number is not taken for a process
# probes: yes
trace
cookie-actor thread >/tmp/actor &
pid=$!
until_ok 10 grep -q armed /tmp/actor
kill_it $pid
expect leaked culprit=$pid command="cookie-actor thread" how=owner_killed signal=9 step=armed \
    confidence=observed device=- missing=wait evidence="killed by SIGKILL"
expect cookies created=1 live=1
