# what: somebody runs dmsetup udevcomplete_all -y while lvcreate waits for udev.
# expect: removed while in use, by that dmsetup, with the device of lvcreate; no leak
# variants: kprobe tracepoint
loop 32M
pvcreate -q "$loop"
vgcreate -q -s 1M vg "$loop"
trace
udevd_hold
lvcreate -q -y -W n -Z n -L 1M -n a vg &
pid=$!
until_ok 20 in_semop $pid
dmsetup udevcomplete_all -y &
admin=$!
wait $admin
wait $pid || true
udevd_go
expect change change=destroyed ending=while_live by=$admin device=vg-a
expect was state=accident confidence=observed culprit=$admin device=vg-a
expect cookies created=1+ live=0
expect explain state=accident culprit=$admin victim=$pid remedy=check_suspended \
    evidence="not completed" life="removes it while it is in use"
