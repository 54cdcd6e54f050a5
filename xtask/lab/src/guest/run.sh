#!/bin/sh
# Runs the command and reports. Its streams go through pipes, not straight to the ports: a port
# can be opened only once, which would break `>/dev/stderr` in a script.
. /lab/lib
. /lab/settings
dir=/run/lab
mkdir -p $dir
mkfifo $dir/stdout $dir/stderr
cat $dir/stdout >"$(port stdout)" 2>/dev/null &
out=$!
cat $dir/stderr >"$(port stderr)" 2>/dev/null &
err=$!

export HOME=/root LANG=C.UTF-8 TERM=dumb
export PATH=/job:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
cd /job
frame start
began=$(cut -d. -f1 /proc/uptime)
timeout --kill-after=3 "$LAB_TIMEOUT" /bin/sh /lab/command </dev/null >$dir/stdout 2>$dir/stderr
code=$?
ended=$(cut -d. -f1 /proc/uptime)

# A process left in the background may hold the pipes open; it is not waited for.
tries=0
while kill -0 $out 2>/dev/null || kill -0 $err 2>/dev/null; do
    tries=$((tries + 1))
    [ $tries -gt 20 ] && break
    sleep 0.05
done

case $code in
124 | 137) [ $((ended - began)) -ge "$LAB_TIMEOUT" ] && frame timeout ;;
esac
frame exit "$code"
frame taint "$(cat /proc/sys/kernel/tainted)"
dmesg >$dir/dmesg
frame_file dmesg $dir/dmesg
if [ -n "$(ls -A /out)" ]; then
    tar -C /out -cf $dir/out.tar .
    frame_file out $dir/out.tar
fi
frame end
