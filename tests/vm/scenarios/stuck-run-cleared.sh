# what: a later rule says RUN:="/bin/true", so that udev never runs udevcomplete; timeout 1 s.
# expect: waiting as long as udev may come back, then stuck: the event is lost
udevd_stop
echo 'KERNEL=="dm-*", RUN:="/bin/true"' >/run/udev/rules.d/96-clear.rules
mkdir -p /etc/udev
echo 'event_timeout=1' >/etc/udev/udev.conf
udevd_start --event-timeout=1
trace
dmsetup create a --table '0 2048 zero' &
pid=$!
until_ok 10 in_semop $pid
udevadm settle --timeout=60
sleep 11
expect stuck creator=$pid cause=event_lost confidence=inferred device=a
expect cookies created=1 live=1
