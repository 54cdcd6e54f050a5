# what: two cookies are in use, and a third is left by a killed process; meanwhile the wall clock is set by hours and the machine is suspended. Its time is virtual: minutes pass in seconds.
# expect: only the third is ever called leaked, and only it is removed, whatever is asked for
# boot: virtual-clock
# limit: 300
cookie-actor cycle --stop-at after-inc --how hold >/tmp/older &
older=$!
until_ok 20 grep -q '"step":"armed"' /tmp/older
trace
cookie-actor cycle --stop-at after-inc --how hold >/tmp/armed &
armed=$!
until_ok 20 grep -q '"step":"armed"' /tmp/armed
cookie-actor cycle --stop-at after-inc --how kill &
killed=$!
wait $killed || true
have_cookies 3

# look: the third is leaked, the others are in use, and only it goes.
look() {
    dmtrace list --json >/tmp/list || true
    [ "$(grep -o '"state":"leaked"' /tmp/list | wc -l)" -eq "$1" ] || { dmtrace explain; exit 1; }
    dmtrace clean --abandoned --older-than 1s --apply --yes || true
    for key in $(grep -o '"key":"0x0d4d[0-9a-f]*"' /tmp/list | cut -d'"' -f4); do
        dmtrace clean --force-unknown "$key" --older-than 1s --apply --yes || true
    done
    have_cookies 2
    fails ended $older
    fails ended $armed
}

# The machine is suspended for five seconds: the clocks stop, all but that since boot.
if grep -q core /sys/power/pm_test; then
    echo core >/sys/power/pm_test
    echo mem >/sys/power/state
    dmesg | grep -q 'PM: suspend exit'
else
    echo 'this kernel has no test of suspending'
fi
# Until udev has had its time.
sleep 200
leaked=1
for hours in 3 -9 24; do
    date -s "@$(($(date +%s) + hours * 3600))"
    sleep 2
    look $leaked
    leaked=0
done
look 0
expect change change=destroyed ending=by_other
expect was state=leaked culprit=$killed confidence=observed device=-
expect cookies created=2 destroyed=1 live=2
