# what: in a container-like namespace dmsetup is killed with a cookie; then the container ends.
# expect: leaked by it while the namespace is there, then ended with it
# probes: yes
trace
# sleep, the first process there, does not reap: the dead dmsetup keeps its number.
unshare -i -m -p -u --fork --mount-proc --kill-child sh -c '
    strace -D -qq -o /dev/null -e trace=semget -e inject=semget:signal=SIGKILL:when=2 \
        dmsetup create a --table "0 2048 zero" &
    exec sleep 100
' &
outer=$!
until_ok 15 zombie dmsetup
until_ok 15 grep -q '"type":"finding"' "$OUT/watch.json"
expect was state=leaked culprit=$zombie how=owner_killed step=armed confidence=observed device=a
kill_it $outer
until_ok 10 grep -q '"change":"destroyed"' "$OUT/watch.json"
expect change change=destroyed ending=with_namespace
expect cookies created=1 destroyed=1 live=0
