# what: 95-dm-notify.rules is masked by an empty file; udev handles the event and completes nothing.
# expect: stuck: the rule is missing; not leaked while the waiter lives
touch /run/suite/udevd
touch /etc/udev/rules.d/95-dm-notify.rules
udevadm control --reload
trace
dmsetup create a --table '0 2048 zero' &
pid=$!
until_ok 10 in_semop $pid
udevadm settle --timeout=60
sleep 1
# A worker that has the old rules may still complete, until the timeout.
expect stuck creator=$pid cause=rule_missing confidence=inferred device=a \
    missing=completion lost=1 evidence="1 uevent sent, 0 completed by udev + 95-dm-notify.rules is missing or masked"
expect cookies created=1 live=1
expect explain cause=rule_missing missing=completion victim=$pid culprit=- remedy=install_rule
