# what: the script that holds a cookie of udevcreatecookie is killed after a dmsetup has used it.
# expect: open: another script may still release it, for ten minutes
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
udevadm settle --timeout=60
sleep 1.5
kill_it $pid
expect row state=open value=1
expect cookies created=1 live=1
