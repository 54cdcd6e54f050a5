# what: dmsetup remove fails because the device is open; libdm completes and waits all the same.
# expect: no finding
device a
exec 9</dev/mapper/a
trace
if dmsetup remove a; then exit 1; fi
exec 9<&-
expect cookies created=1 destroyed=1 live=0
