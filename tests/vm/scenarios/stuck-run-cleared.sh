# what: a later rule says RUN:="/bin/true", so that udev never runs udevcomplete; timeout 1 s.
# expect: waiting as long as udev may come back, then stuck: the rule that clears the list is named
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
expect stuck creator=$pid cause=run_cleared confidence=inferred device=a \
    missing=completion lost=1 evidence="1 uevent sent, 0 completed by udev + 96-clear.rules"
expect cookies created=1 live=1
expect explain state=stuck cause=run_cleared missing=completion count=1 victim=$pid culprit=- \
    evidence=96-clear.rules remedy=repair_rule avoid=kill_waiter life="uevent change"
