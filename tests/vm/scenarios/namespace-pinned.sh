# what: the processes of a namespace with a leaked cookie end, but a bind mount keeps it.
# expect: leaked, by the one that died, in a namespace without processes
# probes: yes
trace
touch /tmp/pin
unshare --ipc=/tmp/pin sh -c '
    strace -D -qq -o /dev/null -e trace=semget -e inject=semget:signal=SIGKILL:when=2 \
        dmsetup create a --table "0 2048 zero" &
    echo $! >/tmp/leaker
    wait $!
' || true
pid=$(cat /tmp/leaker)
expect leaked culprit=$pid how=owner_killed signal=9 step=armed confidence=observed device=a \
    missing=wait evidence="killed by SIGKILL + 1 uevent sent, 0 completed by udev" \
    command="dmsetup create a --table 0 2048 zero"
expect cookies created=1 live=1
