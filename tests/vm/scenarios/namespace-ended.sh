# what: in a container-like namespace dmsetup is killed with a cookie; then the container ends.
# expect: leaked while the namespace is there, then ended with it
trace
unshare -i -m -p -u --fork --mount-proc --kill-child sh -c '
    echo $$ >/tmp/inside
    strace -D -qq -o /dev/null -e trace=semget -e inject=semget:signal=SIGKILL:when=2 \
        dmsetup create a --table "0 2048 zero"
    sleep 100
' &
outer=$!
until_ok 15 grep -q '"type":"finding"' "$OUT/watch.json"
expect was state=leaked how=owner_killed step=armed confidence=observed
kill_it $outer
until_ok 10 grep -q '"change":"destroyed"' "$OUT/watch.json"
expect change change=destroyed ending=with_namespace
expect cookies created=1 destroyed=1 live=0
