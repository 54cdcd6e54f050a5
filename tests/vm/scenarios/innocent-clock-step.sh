# what: nothing traces; three cookies are in use while the wall clock is set by hours, forth and back.
# expect: none is called leaked, and none is removed, whatever is asked for
# boot: own
# limit: 300
cookie-actor cycle --stop-at after-inc --how hold >/tmp/armed &
armed=$!
cookie-actor cycle --stop-at after-complete --how hold >/tmp/completed &
until_ok 20 grep -q '"step":"armed"' /tmp/armed
until_ok 20 grep -q completed /tmp/completed
dmsetup udevcreatecookie >/dev/null
have_cookies 3
# At once, after a first look at the clock, and after several steps.
for hours in +3 +3 -2 -9 +1 +24; do
    sleep 2
    date -s "@$(($(date +%s) + hours * 3600))"
    for more in 0 2; do
        sleep $more
        dmtrace list --json >/tmp/list || true
        if grep -q '"state":"leaked"' /tmp/list; then
            dmtrace explain
            exit 1
        fi
        for key in $(grep -o '"key":"0x0d4d[0-9a-f]*"' /tmp/list | cut -d'"' -f4); do
            dmtrace clean --force-unknown "$key" --apply --yes || true
        done
        have_cookies 3
    done
done
fails ended $armed
# The last one that used it is not said to have ended: the clock does not tell.
fails grep -q 'younger process' /tmp/list
# From here on nobody can tell.
kill_it $armed
trace
expect undecided count=3
expect cookies created=0 live=3
