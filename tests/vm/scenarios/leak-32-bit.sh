# what: a 32-bit program is killed with a cookie: by ipc(2), and by semtimedop_time64.
# expect: leaked by it; the tracepoint backend, blind to 32 bits, names nobody
# variants: kprobe tracepoint
# probes: yes
command -v cookie-actor32 >/dev/null || skip "the host's Rust has no i686-unknown-linux-gnu"
trace
for abi in semop semtimedop; do
    cookie-actor32 cycle --abi $abi --stop-at after-inc >/tmp/actor &
    pid=$!
    wait $pid || true
    if [ "$BACKEND" != tracepoint ]; then
        expect leaked culprit=$pid command="cookie-actor32 cycle --abi $abi --stop-at after-inc" \
            how=owner_killed signal=9 step=armed confidence=observed device=- \
            missing=wait evidence="killed by SIGKILL"
    fi
done
if [ "$BACKEND" = tracepoint ]; then
    expect undecided count=2
    expect row state=unknown creator=- culprit=- count=2
    expect cookies created=0 live=2
    expect inexact
else
    expect cookies created=2 live=2
fi
