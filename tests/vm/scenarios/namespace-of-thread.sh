# what: a thread alone in a namespace makes a cookie; the whole process is then killed.
# expect: nothing: the cookie goes with the namespace of the thread
# probes: yes
trace
cookie-actor odd-thread >/tmp/actor &
pid=$!
until_ok 10 grep -q created /tmp/actor
sleep 1.5
kill_it $pid
expect cookies created=1 destroyed=1 live=0
expect change change=destroyed ending=with_namespace
