# what: one leaked cookie, one of a live waiter, one of a script; dmtrace clean --apply.
# expect: clean removes the leaked one and no other
# probes: yes
trace
killed semtimedop 2 dmsetup create a --table '0 2048 zero'
leaker=$killed
script=$(dmsetup udevcreatecookie)
udevd_hold
dmsetup create b --table '0 2048 zero' &
waiter=$!
until_ok 10 in_semop $waiter
until_ok 15 grep -q '"type":"finding"' "$OUT/watch.json"
expect was state=leaked culprit=$leaker device=a
have_cookies 3
dmtrace clean --apply --yes --older-than 0s
have_cookies 2
in_semop $waiter
udevd_go
wait $waiter
dmsetup udevreleasecookie "$script"
expect change change=destroyed ending=by_other
expect change change=destroyed ending=by_waiter count=2
expect cookies created=3 destroyed=3 live=0
