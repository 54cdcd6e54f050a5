#!/bin/sh
# storm.sh SECONDS none|dmtrace|udevcomplete_all
# Real operations of dmsetup, lvm2 and cryptsetup, some of which are killed at a semaphore call,
# while a cleaner works in a tight loop. What it leaves in /out, judged by xtask/src/vm/storm.rs:
#   summary   `name number`, one per line
#   harm      a line for each live operation that failed or lost its node
seconds=$1
cleaner=$2
workers=3
mkdir -p /out/count /run/udev/rules.d
: >/out/harm
limits=$(cat /proc/sys/kernel/sem)

uptime_s() {
    cut -d. -f1 /proc/uptime
}

sets() {
    awk 'NR > 1 { n++ } END { print n + 0 }' /proc/sysvipc/sem
}

random() {
    od -An -N2 -tu2 /dev/urandom | tr -d ' '
}

# harm WHAT: a live operation was harmed.
harm() {
    echo "$(cut -d' ' -f1 /proc/uptime) $*" >>/out/harm
}

# add NAME: one more, of this worker.
add() {
    echo >>"/out/count/$1.$worker"
}

count() {
    cat /out/count/"$1".* 2>/dev/null | wc -l
}

# live COMMAND...: must succeed, and in time.
live() {
    add operations
    timeout 120 "$@" >/out/last.$worker 2>&1
    code=$?
    [ $code -eq 0 ] || harm "$* ended with $code: $(tr '\n' ' ' </out/last.$worker)"
    return $code
}

# Its node is there when the operation that made it has returned, and gone after the other.
there() {
    [ -e "/dev/mapper/$1" ] || harm "no node $1 after $2"
}
gone() {
    ! [ -e "/dev/mapper/$1" ] || harm "node $1 left after $2"
}

# killed COMMAND...: gets SIGKILL when it enters one of its semaphore calls.
killed() {
    add kills
    nth=$(($(random) % 4 + 1))
    strace -qq -o /dev/null -e trace=semtimedop,semctl \
        -e "inject=semtimedop:signal=SIGKILL:when=$nth" "$@" >/dev/null 2>&1
}

# Whatever a killed command has left of the devices of this worker. Not of the cookies.
recover() {
    dmsetup info -c --noheadings -o name,suspended 2>/dev/null | sed -n 's/:Suspended$//p' |
        grep -e "^w$worker" -e "^vg$worker-" | while read -r name; do
        dmsetup resume --noudevsync "$name"
    done
    lvremove -q -y -f "vg$worker" >/dev/null 2>&1
    dmsetup ls 2>/dev/null | cut -f1 | grep -e "^w$worker" -e "^vg$worker-" | while read -r name; do
        dmsetup remove --noudevsync --retry --force "$name" >/dev/null 2>&1
        rm -f "/dev/mapper/$name"
    done
}

work() {
    worker=$1
    number=0
    while [ "$(uptime_s)" -lt "$end" ]; do
        number=$((number + 1))
        name=w${worker}n$number
        case $(($(random) % 9)) in
        0 | 1)
            live dmsetup create "$name" --table '0 2048 zero' && there "$name" create
            live dmsetup remove --retry "$name" && gone "$name" remove
            ;;
        2)
            live dmsetup create "$name" --table '0 2048 zero' && there "$name" create
            live dmsetup rename "$name" "${name}b" && there "${name}b" rename
            live dmsetup remove --retry "${name}b" && gone "${name}b" remove
            ;;
        3 | 4)
            live lvcreate -q -y -W n -L 4M -n "$name" "vg$worker" && there "vg$worker-$name" lvcreate
            live lvremove -q -y "vg$worker/$name" && gone "vg$worker-$name" lvremove
            ;;
        5)
            eval "disk=\$disk$worker"
            live sh -c "echo secret | cryptsetup open --type plain --cipher aes-cbc-essiv:sha256 \
                --key-size 256 --hash sha256 $disk $name" && there "$name" "cryptsetup open"
            live cryptsetup close "$name" && gone "$name" "cryptsetup close"
            ;;
        6 | 7)
            killed dmsetup create "$name" --table '0 2048 zero'
            recover
            ;;
        8)
            killed lvcreate -q -y -W n -L 4M -n "$name" "vg$worker"
            recover
            ;;
        esac
    done
}

clean_up() {
    case $cleaner in
    dmtrace)
        dmtrace clean --apply --yes --json --older-than 0s --max 100000 --audit /out/audit \
            >>/out/clean 2>>/out/clean.err
        ;;
    udevcomplete_all) dmsetup udevcomplete_all -y ;;
    esac
}

# udev gives up an event after 20 seconds (10, and 10 of grace): only then is it sure that a
# killed operation has none outstanding.
echo event_timeout=10 >/etc/udev/udev.conf
udevadm control --reload
for worker in $(seq $workers); do
    for use in disk vgdisk; do
        file=$(mktemp /tmp/disk.XXXXXX)
        truncate -s 48M "$file"
        eval "$use$worker=\$(losetup --find --show $file)"
    done
    eval "pvcreate -q \$vgdisk$worker && vgcreate -q vg$worker \$vgdisk$worker" >/dev/null
done
udevadm settle
begin=$(sets)
if [ "$cleaner" = dmtrace ]; then
    dmtrace watch --json --record /out/trace.dmt >/out/watch 2>/out/watch.err &
    tracer=$!
    until grep -q '"type":"start"' /out/watch; do sleep 0.1; done
fi
end=$(($(uptime_s) + seconds))
jobs=
for worker in $(seq $workers); do
    work $worker &
    jobs="$jobs $!"
done
rounds=0
peak=0
while [ "$(uptime_s)" -lt "$end" ]; do
    if [ "$cleaner" = none ]; then
        sleep 1
    else
        clean_up >/dev/null
    fi
    rounds=$((rounds + 1))
    now=$(sets)
    [ "$now" -le "$peak" ] || peak=$now
done
# The operations that are under way come to their ends with the cleaner still at work.
for job in $jobs; do
    while kill -0 "$job" 2>/dev/null; do
        [ "$cleaner" = none ] || clean_up >/dev/null
        sleep 0.2
    done
done
udevadm settle --timeout=60
left=$(sets)
tries=0
while [ "$cleaner" = dmtrace ] && [ "$left" -gt "$begin" ] && [ $tries -lt 30 ]; do
    sleep 1
    clean_up
    left=$(sets)
    tries=$((tries + 1))
done
[ "$left" -le "$begin" ] || dmtrace list >/out/left 2>&1
if [ -n "${tracer-}" ]; then
    kill -INT "$tracer"
    wait "$tracer"
fi
suspended=$(dmsetup info -c --noheadings -o suspended | grep -c '^Suspended$')
{
    echo "operations $(count operations)"
    echo "kills $(count kills)"
    echo "harmed $(wc -l </out/harm)"
    echo "rounds $rounds"
    echo "begin $begin"
    echo "peak $peak"
    echo "left $left"
    echo "suspended $suspended"
} >/out/summary
echo "$limits" >/proc/sys/kernel/sem
