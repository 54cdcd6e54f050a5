# what: a device is removed with --deferred while it is open, and goes when it is closed.
# expect: no finding: the kernel makes no event, libdm completes by itself
device a
exec 9</dev/mapper/a
trace
dmsetup remove --deferred a
sleep 1.5
exec 9<&-
expect cookies created=1 destroyed=1 live=0
expect change change=down meaning=completion count=0
