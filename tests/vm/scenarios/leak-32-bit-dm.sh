# what: a 32-bit program (dm_compat_ctl_ioctl) removes a busy device with a cookie, and ends without waiting.
# expect: leaked by it, with the device and the result of its ioctl
# variants: kprobe
# probes: yes
command -v cookie-actor32 >/dev/null || skip "the host's Rust has no i686-unknown-linux-gnu"
device busy
exec 9</dev/mapper/busy
trace
cookie-actor32 moby --device busy >/tmp/actor &
pid=$!
wait $pid
expect leaked culprit=$pid command="cookie-actor32 moby --device busy" how=owner_exited status=0 \
    step=self_completed confidence=observed device=busy missing=wait evidence="failed with EBUSY"
expect change change=ioctl name=busy
expect cookies created=1 live=1
exec 9<&-
