# what: somebody runs dmsetup udevcomplete on the cookie of a live operation; udev completes, too.
# expect: over-completed in the end, by the one that udev did not start; not leaked
# probes: yes
trace
udevd_hold
dmsetup create a --table '0 2048 zero' --udevcookie "$(dmsetup udevcreatecookie | tee /tmp/cookie)" 
cookie=$(cat /tmp/cookie)
dmsetup udevcomplete "$cookie" &
hand=$!
wait $hand
udevd_go
udevadm settle --timeout=60
until_ok 15 grep -q '"class":"over_completed"' "$OUT/watch.json"
expect was state=over_completed confidence=observed culprit=$hand device=a
dmsetup udevreleasecookie "$cookie" || true
expect cookies created=1 destroyed=1 live=0
expect explain state=over-completed culprit=$hand evidence="udev did not start it" remedy=find_completer
