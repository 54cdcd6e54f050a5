# what: a script keeps the cookie of dmsetup udevcreatecookie for a while and releases it.
# expect: no finding, although the creator is gone and the value is 1
trace
cookie=$(dmsetup udevcreatecookie)
sleep 2.5
dmsetup udevreleasecookie "$cookie"
cookie=$(dmsetup udevcreatecookie)
DM_UDEV_COOKIE=$cookie dmsetup create a --table '0 2048 zero'
sleep 1.5
dmsetup udevreleasecookie "$cookie"
expect cookies created=2 destroyed=2 live=0
