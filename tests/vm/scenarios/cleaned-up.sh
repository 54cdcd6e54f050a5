# what: dmsetup create dies with a cookie; dmsetup udevcomplete_all -y removes that later.
# expect: leaked, then removed by another process; nothing is left
trace
killed semget 2 dmsetup create a --table '0 2048 zero'
until_ok 15 grep -q '"type":"finding"' "$OUT/watch.json"
expect was state=leaked culprit=$killed confidence=observed device=a
dmsetup udevcomplete_all -y &
admin=$!
wait $admin
expect change change=destroyed ending=by_other by=$admin
expect cookies created=1 destroyed=1 live=0
