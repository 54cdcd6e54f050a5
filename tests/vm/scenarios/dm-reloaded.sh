# what: modprobe -r dm_mod under the tracer, and dm_mod again, three times; then dmsetup create is killed.
# expect: trampolines hold the module, kprobes do not; leaked with its device in either case
# variants: kprobe
# boot: own
udevadm settle --timeout=20
modprobe -r dm_mod || skip "dm_mod cannot be removed here"
modprobe dm_mod
udevadm settle --timeout=20
trace
sleep 1.5
dmsetup create before --table '0 2048 zero'
dmsetup remove before
expect change change=ioctl name=before count=2
times=3
if head -n 1 "$OUT/watch.json" | grep -q '"by":"trampoline","state":"attached"'; then
    [ -z "$BACKEND" ]
    ! modprobe -r dm_mod
    [ -d /sys/module/dm_mod ]
    times=0
fi
for time in $(seq $times); do
    modprobe -r dm_mod
    ! [ -e /sys/module/dm_mod ]
    # While there is no device-mapper.
    sleep 1.2
    modprobe dm_mod
    udevadm settle --timeout=20
    sleep 2
    dmsetup create "again$time" --table '0 2048 zero'
    dmsetup remove "again$time"
    expect change change=ioctl name="again$time" count=2
done
killed semget 2 dmsetup create a --table '0 2048 zero'
expect leaked culprit=$killed how=finished_after_death step=armed confidence=observed device=a \
    command="dmsetup create a --table 0 2048 zero"
cookies=$((2 * times + 3))
expect cookies created=$cookies live=1
finish
# Nothing holds it any more.
dmsetup remove --noudevsync a
udevadm settle --timeout=20
modprobe -r dm_mod
