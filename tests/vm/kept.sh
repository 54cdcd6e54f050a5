#!/bin/sh
# The kernel side outlives the service: a real `dmsetup create` that is killed while no service
# runs is attributed by the next one, with its device where trampolines see device-mapper; and
# nothing is left behind at the end. With systemd, a restart keeps the probes and a stop does not.
#
# cargo xtask vm --kernel 5.10,6.12 --file target/release/dmtrace:/usr/sbin/dmtrace \
#   --file tests/vm/kept.sh -- kept.sh
# The same with --systemd and --file packaging/dmtrace.service:/etc/systemd/system/dmtrace.service.
set -u
failed=0
bad() { echo "kept: FAILED: $*"; failed=1; }
# Waits for a command to succeed, a minute at most.
until_true() { n=0; until "$@"; do n=$((n + 1)); [ $n -gt 300 ] && return 1; sleep 0.2; done; }
log=/tmp/log
told() { grep -q "$1" $log; }
start() {
    : > $log
    dmtrace serve --no-history "$@" 2> $log &
    service=$!
    until_true told "backend)" || bad "no start: $(cat $log)"
}
# leak NAME: dmsetup is killed at its second semget, after its increment. Its process is $leaker.
leak() {
    strace -D -qq -o /dev/null -e trace=semget -e inject=semget:signal=SIGKILL:when=2 \
        dmsetup create "$1" --table '0 2048 zero' &
    leaker=$!
    wait $leaker
    udevadm settle --timeout=60
}
chmod +x /usr/sbin/dmtrace
modprobe dm_mod

if [ -d /run/systemd/system ]; then
    log() { journalctl -u dmtrace.service -o cat --no-pager > $log; }
    told() { log; grep -q "$1" $log; }
    systemctl daemon-reload
    systemctl start dmtrace.service || bad "start"
    until_true told "backend)" || bad "no start"
    leak before
    until_true told "by dmsetup\[$leaker\]" || bad "not told"
    systemctl restart dmtrace.service
    until_true told "no semaphore was missed" || bad "a restart loses the probes: $(cat $log)"
    systemctl stop dmtrace.service
    [ -e /sys/fs/bpf/dmtrace ] && bad "a stop leaves something"
    cut -c1-200 $log
    [ $failed = 0 ] && echo "kept: ok"
    exit $failed
fi

start
leak first
first=$leaker
until_true told "by dmsetup\[$first\]" || bad "the first is not told: $(cat $log)"
kill -9 $service
wait $service
leak second
dmtrace list -o key,owner,device --no-trunc 2>&1
dmtrace list -o owner --no-headers 2>/dev/null | grep -q "dmsetup\[$leaker\]" || bad "not in the maps"
start
until_true told "by dmsetup\[$leaker\]" || bad "the second is not told: $(cat $log)"
until_true told "by dmsetup\[$first\]" || bad "the first is not told again"
told "no semaphore was missed" || bad "a gap"
if ! told "device-mapper was not traced meanwhile"; then
    grep "dmsetup\[$leaker\]" $log | grep -q "device second" || bad "its device is not known"
fi
kill $service
wait $service
told "not exact: " && bad "not exact"
[ -e /sys/fs/bpf/dmtrace ] && bad "something is left"
cut -c1-300 $log
dmsetup remove_all --noudevsync
udevadm settle --timeout=60
rmmod dm_zero
until_true modprobe -q -r dm_mod || bad "dm_mod is held"
[ $failed = 0 ] && echo "kept: ok"
exit $failed
