# what: the script that holds a cookie of udevcreatecookie is killed after a dmsetup has used it.
# expect: leaked: whoever used it last has ended and did not release it
trace
cat >/tmp/script <<'INNER'
cookie=$(dmsetup udevcreatecookie)
dmsetup create a --udevcookie "$cookie" --table '0 2048 zero' &
echo $! >/tmp/user
wait $!
echo $$ >/tmp/shell
sleep 100
INNER
sh /tmp/script &
pid=$!
until_ok 10 test -s /tmp/shell
udevadm settle
sleep 1.5
kill_it $pid
expect leaked culprit="$(cat /tmp/user)" confidence=observed device=a
expect cookies created=1 live=1
