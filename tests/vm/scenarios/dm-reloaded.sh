# what: modprobe -r dm_mod under the tracer, and dm_mod again, three times; then dmsetup create is killed.
# expect: trampolines hold the module until the trace ends, kprobes do not; leaked with its device all the same
# variants: kprobe
# boot: own
# limit: 120
udevadm settle --timeout=20
modprobe -r dm_mod || skip "dm_mod cannot be removed here"
modprobe dm_mod
udevadm settle --timeout=20
trace
use() {
    dmsetup create "$1" --table '0 2048 zero'
    dmsetup remove "$1"
    udevadm settle --timeout=20
    rmmod dm_zero
    expect change change=ioctl name="$1" count=2
}
use before
times=3
if head -n 1 "$OUT/watch.json" | grep -q '"by":"fentry","state":"attached"'; then
    [ -z "$BACKEND" ]
    fails modprobe -r dm_mod
    times=0
fi
for time in $(seq $times); do
    modprobe -r dm_mod
    # The tracer sees that it is gone, or that there is another one: it looks once a second.
    [ "$time" = 2 ] || sleep 1.5
    modprobe dm_mod
    udevadm settle --timeout=20
    sleep 2.5
    use "again$time"
done
killed semget 2 dmsetup create a --table '0 2048 zero'
expect leaked culprit=$killed how=finished_after_death step=armed confidence=observed device=a \
    missing=wait evidence="killed by SIGKILL + completed by udev" \
    command="dmsetup create a --table 0 2048 zero"
expect cookies created=$((2 * times + 3)) live=1
finish
# Nothing holds it any more; the kernel frees trampolines a moment later.
dmsetup remove --noudevsync a
udevadm settle --timeout=20
rmmod dm_zero
until_ok 20 modprobe -q -r dm_mod
