# what: nothing traces. Accidents of many kinds leave cookies: killed, out of memory, a fault, a timer, a daemon that lives, one whose number an innocent has now, two in one second. Then somebody asks who it was, with the journal or without, with process accounting or without, with text logs or without, with audit rules or without; and after the clock was set. Its time is virtual.
# expect: whoever is named has done it, an innocent is never named, and where the witnesses suffice somebody is
# kernels: 6.1 newest
# because: rests on programs, not on the kernel
# boot: systemd virtual-clock
# with: audit
# limit: 900
mkdir -p /var/log/account
mount -t tmpfs tmpfs /var/log/account
: >/var/log/account/pacct
perl -e '$file = "/var/log/account/pacct"; syscall(163, $file) == 0 or die "acct: $!\n"'
mkdir -p /etc/audit /var/log/audit
cat >/etc/audit/auditd.conf <<'END'
log_file = /var/log/audit/audit.log
log_format = RAW
flush = INCREMENTAL_ASYNC
freq = 1
max_log_file = 8
num_logs = 2
max_log_file_action = ROTATE
END
auditd
until_ok 20 auditctl -s
# The rules of docs/broken-host.md.
auditctl -a always,exit -F arch=b64 -S semget
auditctl -a always,exit -F arch=b64 -S kill,tkill,tgkill
auditctl -a always,exit -F arch=b64 -S execve -F path=/usr/sbin/dmsetup

# made: the semid of the cookie that is new, in $set. The numbers of cookies stay out of this shell:
# who has one may be a suspect.
seen=' '
made() {
    for set in $(awk '$1 >= 223150080 && $1 <= 223215615 { print $2 }' /proc/sysvipc/sem); do
        case $seen in
        *" $set "*) ;;
        *)
            seen="$seen$set "
            return
            ;;
        esac
    done
    return 1
}
has_new() {
    before=$seen
    made || return 1
    seen=$before
}

# did KEY=VALUE...: who made the new cookie, and which witnesses suffice to tell.
did() {
    made
    expect suspect semid="$set" "$@"
}

# apart: so long that nobody can be taken for somebody of the accident before.
apart() {
    sleep 150
}

# main UNIT: its first process, in $pid.
main() {
    until_ok 20 has_main "$1"
    pid=$(systemctl show --property=MainPID --value "$1")
}
has_main() {
    [ "$(systemctl show --property=MainPID --value "$1")" != 0 ]
}
run_unit() {
    unit=$1
    shift
    systemd-run --quiet --unit="$unit" "$@"
}

# ask WITNESSES: who it was, by these alone.
ask() {
    case $1 in *accounting*) ;; *) mv /var/log/account/pacct /var/log/account/kept ;; esac
    case $1 in *audit*) ;; *) mv /var/log/audit/audit.log /var/log/audit/kept ;; esac
    case $1 in *journal*) ;; *) for dir in $journals; do mount -t tmpfs tmpfs "$dir"; done ;; esac
    case $1 in
    *text*) ;;
    *)
        mv /var/log/syslog /var/log/kept
        mount --bind /dev/null /dev/kmsg
        ;;
    esac
    dmtrace report --json >"$OUT/suspects-$1.json" || [ $? -le 4 ]
    case $1 in *accounting*) ;; *) mv /var/log/account/kept /var/log/account/pacct ;; esac
    case $1 in *audit*) ;; *) mv /var/log/audit/kept /var/log/audit/audit.log ;; esac
    case $1 in *journal*) ;; *) for dir in $journals; do umount "$dir"; done ;; esac
    case $1 in
    *text*) ;;
    *)
        umount /dev/kmsg
        mv /var/log/kept /var/log/syslog
        ;;
    esac
    # What one question has found out is not known to the next one.
    rm -rf /run/dmtrace
}
journals=
for dir in /run/log/journal /var/log/journal; do
    ! [ -d $dir ] || journals="$journals $dir"
done
[ -n "$journals" ]

# 1: a timer, each hour.
cat >/usr/local/sbin/rotate.sh <<'END'
#!/bin/sh
echo $$ >>/tmp/rotated
dmsetup udevcreatecookie >/dev/null
exit 0
END
chmod +x /usr/local/sbin/rotate.sh
printf '[Service]\nType=oneshot\nExecStart=/usr/local/sbin/rotate.sh\n' >/etc/systemd/system/rotate.service
printf '[Timer]\nOnCalendar=*:07\nAccuracySec=1s\n[Install]\nWantedBy=timers.target\n' >/etc/systemd/system/rotate.timer
systemctl daemon-reload
systemctl enable --now rotate.timer
rotated() {
    [ "$(wc -l </tmp/rotated)" -eq "$1" ] && has_new
}
: >/tmp/rotated
for number in 1 2 3; do
    sleep $((3600 - ($(date +%s) - 7 * 60) % 3600))
    until_ok 60 rotated $number
    did pid="$(tail -n 1 /tmp/rotated)" name=rotate.sh alive=no unit=rotate.service named=accounting
done
expect schedule unit=rotate.service
dmtrace report --json >"$OUT/suspects-timer.json" || [ $? -le 4 ]
rm -rf /run/dmtrace
systemctl disable --now rotate.timer

# 2: a service is killed while it waits; udev completes.
loop 200M
pvcreate -qq "$loop"
vgcreate -qq vg "$loop"
udevadm settle
apart
udevd_hold
run_unit nightly lvcreate --wipesignatures n -qq -L 8M -n snap vg
main nightly
until_ok 20 in_semop "$pid"
systemctl kill --signal=KILL nightly
udevd_go
udevadm settle
did pid="$pid" name=lvcreate alive=no unit=nightly.service named='journal|accounting|audit'
nightly=$set

# 3: a child of a script is killed; the shell says so.
apart
cat >/tmp/backup.sh <<'END'
dmsetup create bk --table '0 2048 zero' &
echo $! >/tmp/child
wait
exit 0
END
udevd_hold
run_unit backup bash /tmp/backup.sh
until_ok 20 [ -s /tmp/child ]
pid=$(cat /tmp/child)
until_ok 20 in_semop "$pid"
kill -KILL "$pid"
udevd_go
udevadm settle
did pid="$pid" name=dmsetup alive=no unit=backup.service named='journal|accounting|audit'

# 4: killed before device-mapper was asked: nobody else has ever touched it. In the same second another
# one is killed that has left nothing.
apart
killed semop,semtimedop 1 dmsetup create early --table '0 2048 zero'
pid=$killed
did pid="$pid" name=dmsetup alive=no named='accounting|audit'
killed semget 1 dmsetup create other --table '0 2048 zero'

# 5: a script is killed between its dmsetups.
apart
run_unit snapshots bash -c 'c=$(dmsetup udevcreatecookie); sleep 5000; dmsetup udevreleasecookie $c'
main snapshots
until_ok 20 has_new
systemctl kill --signal=KILL snapshots
did pid="$pid" name=bash alive=no unit=snapshots.service named=accounting

# 6: out of memory.
apart
udevd_hold
run_unit thin lvcreate --wipesignatures n -qq -L 8M -n thin vg
main thin
until_ok 20 in_semop "$pid"
echo 4096 >/sys/fs/cgroup/system.slice/thin.service/memory.max
until_ok 20 ended "$pid"
udevd_go
udevadm settle
did pid="$pid" name=lvcreate alive=no unit=thin.service named='journal|accounting|text|audit'
thin=$set

# 7: a fault of the processor.
apart
cat >/tmp/faulty.pl <<'END'
open(my $file, ">", "/tmp/faulty");
print $file $$;
close $file;
my $cookie = qx(dmsetup udevcreatecookie);
sleep 3;
print unpack("p", pack("Q", 1));
END
run_unit faulty perl /tmp/faulty.pl
until_ok 20 [ -s /tmp/faulty ]
pid=$(cat /tmp/faulty)
until_ok 20 has_new
until_ok 20 ended "$pid"
did pid="$pid" name=perl alive=no unit=faulty.service named=accounting

# 8: a daemon that leaks and lives.
apart
run_unit storaged sh -c 'sleep 5; exec cookie-actor moby --count 3 --hold'
main storaged
until_ok 20 has_new
sleep 5
# Its heap has the last number only. That it lived before the others were made can be told where
# somebody has written down what the clock was.
for witness in 'journal|text' 'journal|text' none; do
    did pid="$pid" name=cookie-actor alive=yes unit=storaged.service named="$witness"
done

# 9, 10: a daemon has ended, and an innocent process has its number: a minute later, and at once.
take_number() {
    tries=0
    while :; do
        echo $((pid - 1)) >/proc/sys/kernel/ns_last_pid
        sleep 1000000 &
        [ $! -eq "$pid" ] && break
        kill_it $!
        tries=$((tries + 1))
        [ $tries -lt 200 ]
    done
}
for pause in 60 0; do
    apart
    cookie-actor moby --count 1 >/dev/null &
    pid=$!
    wait $pid
    sleep $pause
    take_number
    did pid="$pid" name=cookie-actor alive=no named="$([ $pause = 0 ] && echo audit || echo 'accounting|audit')"
done

# 11: two in the same second; somebody prints the list of cookies just then.
apart
udevd_hold
dmsetup create one --table '0 2048 zero' &
first=$!
until_ok 20 in_semop $first
did pid=$first name=dmsetup alive=no named=audit
dmsetup create two --table '0 2048 zero' &
second=$!
until_ok 20 in_semop $second
did pid=$second name=dmsetup alive=no named=audit
two=$set
run_unit listing sh -c 'dmsetup udevcookies; echo leaks by lvcreate[1]'
kill_it $first
kill_it $second
udevd_go
udevadm settle

# 12: somebody without rights has a process of such a name killed, and writes that another was.
apart
cp /bin/sleep /tmp/lvcreate
chmod 755 /tmp/lvcreate
chmod 1777 /tmp
setpriv --reuid=1000 --clear-groups sh -c '/tmp/lvcreate 1000 & echo $! >/tmp/decoy; wait' 2>/dev/null &
until_ok 20 [ -s /tmp/decoy ]
udevd_hold
dmsetup create right --table '0 2048 zero' &
pid=$!
until_ok 20 in_semop $pid
kill -KILL "$(cat /tmp/decoy)"
setpriv --reuid=1000 --clear-groups logger "x.sh: line 3:   $$ Killed      lvcreate -n x vg"
kill_it $pid
udevd_go
udevadm settle
did pid=$pid name=dmsetup alive=no named='accounting|audit'

# 13: in a container, with process numbers of its own.
apart
container=4f3c1d0e9b8a7766554433221100ffeeddccbbaa99887766554433221100aabb
systemd-run --quiet --scope --unit=docker-$container unshare --pid --fork --mount-proc \
    sh -c 'cookie-actor cycle --stop-at after-inc --how hold >/dev/null; true' &
until_ok 20 has_new
pid=$(pidof cookie-actor | tr ' ' '\n' | grep -vx "$(systemctl show --property=MainPID --value storaged)")
sleep 2
kill -KILL "$pid"
did pid="$pid" name=cookie-actor alive=no named='accounting|audit'

# 14: systemd ends a service that takes too long.
apart
udevd_hold
run_unit slow --property=RuntimeMaxSec=3 dmsetup create slow --table '0 2048 zero'
main slow
until_ok 20 ended "$pid"
udevd_go
udevadm settle
did pid="$pid" name=dmsetup alive=no unit=slow.service named='journal|accounting|audit'

# What rsyslog would have written.
apart
journalctl --sync
journalctl --boot --output=short --no-pager >/var/log/syslog
for witnesses in none journal accounting text journal+accounting journal+text accounting+text \
    journal+accounting+text audit journal+accounting+text+audit; do
    ask $witnesses
done
# The lines of that second: only what can be about the cookie. A unit's are not where accounting names
# a process: that it is the unit's own nobody says.
for set in $nightly $thin $two; do
    dmtrace explain "$set" >"$OUT/explained-$set" || [ $? -le 4 ]
done
grep 'lvcreate.*inferred' "$OUT/explained-$nightly"
grep 'Killed process' "$OUT/explained-$thin"
grep 'unknown: several fit equally' "$OUT/explained-$two"
fails grep 'leaks by' "$OUT/explained-$two"
rm -rf /run/dmtrace

# The clock is set: nobody else is named, whoever is there to tell.
for hours in 3 -5; do
    date -s "@$(($(date +%s) + hours * 3600))" >/dev/null
    for witnesses in none text journal+accounting+text journal+text+audit; do
        ask doubt+$witnesses+$hours
    done
done

systemctl stop storaged
dmsetup udevcomplete_all -y >/dev/null
trace
expect cookies created=0 live=0
