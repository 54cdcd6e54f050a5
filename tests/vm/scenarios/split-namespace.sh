# what: dmsetup create in an IPC namespace of its own (unshare -i); udev completes in the host's.
# expect: stuck: namespace split, seen from the failed completion; leaked when the waiter is killed
trace
unshare -i --fork --kill-child sh -c 'echo $$ >/tmp/inside; sleep 100 & exec dmsetup create a --table "0 2048 zero"' &
outer=$!
until_ok 10 test -s /tmp/inside
pid=$(cat /tmp/inside)
until_ok 10 in_semop $pid
udevadm settle --timeout=60
sleep 1.5
# Only events know of the lookup: list, which joins the trace, says waiting.
expect stuck creator=$pid cause=namespace_split confidence=observed device=a \
    missing=completion lost=1 evidence="in vain in IPC namespace"
expect change change=lookup_failed
expect cookies created=1 live=1
expect explain cause=namespace_split missing=completion victim=$pid remedy=share_ipc evidence="in vain"
