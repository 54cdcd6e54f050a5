# what: nothing traces; a daemon leaks cookies until the limit is reached and is killed, others die in the middle, and live users hold theirs: a program, a thread whose leader has ended, five script languages, a pipe, a file, another namespace, lvcreate at each of its semaphore calls. Then dmtrace comes. Its time is virtual.
# expect: before the end of the daemon nothing of it is removed; after that every leak is, in one run, and every live user finishes its work
# boot: virtual-clock
# limit: 600
sysctl -q kernel.sem='32000 1024000000 500 128'
users=

# user COMMAND...: one in mid-transaction. Each keeps the number in another way.
user() {
    "$@" >/dev/null &
    users="$users $!"
}

# script SHELL
script() {
    user "$1" -c 'c=$(dmsetup udevcreatecookie); c=${c##*=}; sleep 1800; dmsetup udevreleasecookie $c'
}

loop 32M
pvcreate -q "$loop"
vgcreate -q -s 1M vg "$loop"
calls /tmp/calls lvcreate -q -y -W n -Z n -L 1M -n model vg
cat /tmp/calls
# Only behind the call that makes it there is a cookie. Groups first: who makes one waits for all who
# use some.
made=$(grep -n IPC_CREAT /tmp/calls | cut -d: -f1)
loops=$(($(wc -l </tmp/calls) - made))
for number in $(seq $loops); do
    loop 32M
    pvcreate -q "$loop"
    vgcreate -q -s 1M "vg$number" "$loop"
done
number=0
while read -r line; do
    number=$((number + 1))
    call=${line%%(*}
    nth=$(head -n $number /tmp/calls | grep -c "^$call(")
    # Held by ptrace where it enters that call.
    [ $number -le "$made" ] ||
        user strace -qq -o /dev/null -e "trace=$call" \
            -e "inject=$call:delay_enter=1800000000:when=$nth" \
            lvcreate -q -y -W n -Z n -L 1M -n held "vg$((number - made))"
done </tmp/calls
rm /tmp/calls
until_ok 60 have_cookies $loops

user cookie-actor cycle --stop-at after-inc --how pause --pause-ms 1800000
user cookie-actor leaderless --pause-ms 1800000
script bash
script sh
script ksh93
user sh -c 'dmsetup udevcreatecookie | { sleep 1800; read -r c; dmsetup udevreleasecookie ${c##*=}; }'
user sh -c 'dmsetup udevcreatecookie >/var/tmp/kept-here; sleep 1800; read -r c </var/tmp/kept-here; dmsetup udevreleasecookie ${c##*=}'
user perl -e '$c = `dmsetup udevcreatecookie`; $c =~ s/.*=//; sleep 1800; exit(system("dmsetup udevreleasecookie $c") ? 1 : 0)'
user python3 -c '
import subprocess, time
cookie = int(subprocess.check_output(["dmsetup", "udevcreatecookie"]).split(b"=")[-1], 16)
time.sleep(1800)
subprocess.check_call(["dmsetup", "udevreleasecookie", hex(cookie)])'
live=$((loops + 9))
until_ok 60 have_cookies $live
# In another namespace, so not counted here.
user unshare --ipc sh -c 'c=$(dmsetup udevcreatecookie); c=${c##*=}; sleep 1800; dmsetup udevreleasecookie $c'

# One killed at each point, and a daemon that takes all the rest.
for point in after-semget after-setval after-inc after-complete in-wait after-wait; do
    cookie-actor cycle --stop-at $point --how kill >/dev/null || true
done
have_cookies $((live + 6))
cookie-actor moby --until-enospc --hold >/dev/null &
daemon=$!
until_ok 60 have_cookies 128
if dmsetup udevcreatecookie; then false; fi
leaks=$((128 - live))
of_daemon=$((leaks - 6))

sleep 700
masked dmtrace report || [ $? -eq 1 ]
masked dmtrace clean --apply --yes || [ $? -le 4 ]
echo "left with the daemon: $(cookies)"
have_cookies $((128 - 6))
kill_it $daemon
masked dmtrace report >/tmp/report || [ $? -eq 1 ]
cat /tmp/report
# Those of the daemon; and the one that is only in a file, where files were not searched.
orphans=$(sed -n 's/^\([0-9]*\) cookies are orphaned.*/\1/p' /tmp/report)
[ "$orphans" -eq $of_daemon ] || [ "$orphans" -eq $((of_daemon + 1)) ]
# Every verb says the same. What is written down would keep a number: it only goes through pipes.
[ "$(dmtrace explain | grep -c -e 'by search: no process' -e 'remove it: `dmtrace clean')" -eq 2 ]
[ "$(dmtrace list | grep -c ' orphaned ')" -ge $of_daemon ]
masked dmtrace doctor --no-attach >/tmp/doctor || true
grep "safe to remove $orphans of" /tmp/doctor
# Of the live users' cookies nobody can tell: that is no clean bill.
masked dmtrace clean --apply --yes || [ $? -eq 4 ]
echo "left without it: $(cookies), of which $live are needed"
if ! have_cookies $live; then
    # Who has the number of one too many? At the end of the log, where it is seen.
    masked dmtrace clean | tail -n 40
    false
fi
uptime
echo "at $now s all wait for their ends"
for user in $users; do
    wait $user
done
have_cookies 0
[ "$(lvs --noheadings -o lv_name -S lv_active=active | grep -c held)" -eq $loops ]
trace
expect cookies created=0 live=0
