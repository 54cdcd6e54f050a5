# what: with systemd, udevd is stopped; the socket starts it again at the event. Then a restart.
# expect: no finding
# boot: systemd
trace
systemctl stop systemd-udevd
dmsetup create a --table '0 2048 zero'
systemctl restart systemd-udevd
dmsetup remove a
expect cookies created=2 destroyed=2 live=0
