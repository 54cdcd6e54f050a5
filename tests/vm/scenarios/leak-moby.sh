# what: a daemon removes a busy device again and again and skips the wait when that fails, at 128 sets.
# expect: a leak for each, by the living daemon; dmsetup, which gets ENOSPC, is a victim
device busy
exec 9</dev/mapper/busy
echo '250 32000 32 128' >/proc/sys/kernel/sem
trace
cookie-actor moby --device busy --until-enospc --every-ms 40 --hold >/tmp/actor &
pid=$!
until_ok 60 grep -q holding /tmp/actor
made=$(grep -c '"step":"leaked"' /tmp/actor)
[ "$made" -eq 128 ]
dmsetup create a --table '0 2048 zero' && exit 1
dmsetup mknodes
sleep 6
# Whoever has made two others since cannot come back; of the last two that is less sure.
moby() {
    expect leaked culprit=$pid count="$1" how=never_waited confidence="$2" device=busy \
        missing=wait evidence="failed with EBUSY + is alive" \
        command="cookie-actor moby --device busy --until-enospc --every-ms 40 --hold"
}
moby 126 observed
moby 2 inferred
expect victim also_culprit=true pid=$pid
expect victim also_culprit=false
expect cookies created=128 live=128
exec 9<&-
expect explain culprit=$pid how=never_waited missing=wait remedy=report_program avoid=complete \
    life="ioctl remove busy"
