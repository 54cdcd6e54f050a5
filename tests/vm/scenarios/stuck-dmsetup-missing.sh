# what: udevd finds no dmsetup that it could run; the rule is there.
# expect: stuck: dmsetup is missing
# boot: own
cp /sbin/dmsetup /tmp/tool
: >/tmp/empty
trace
mount --bind /tmp/empty "$(readlink -f /sbin/dmsetup)"
/tmp/tool create a --table '0 2048 zero' &
pid=$!
until_ok 10 in_semop $pid
udevadm settle --timeout=20
sleep 1
expect stuck creator=$pid cause=dmsetup_missing confidence=inferred device=a \
    missing=completion lost=1 evidence="1 uevent sent, 0 completed by udev + missing or not executable"
expect explain cause=dmsetup_missing missing=completion victim=$pid culprit=- remedy=install_dmsetup
expect cookies created=1 live=1
