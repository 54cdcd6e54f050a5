# what: dmsetup create is stopped (SIGSTOP) before its wait for three seconds, then goes on.
# expect: no finding
trace
strace -qq -o /dev/null -e trace=semtimedop -e inject=semtimedop:signal=SIGSTOP:when=3 \
    dmsetup create a --table '0 2048 zero' &
pid=$!
sleep 3.5
expect change change=down meaning=completion
for task in /proc/[0-9]*; do
    if [ "$(cat "$task/comm" 2>/dev/null)" = dmsetup ]; then kill -CONT "${task#/proc/}"; fi
done
wait $pid
expect cookies created=1 destroyed=1 live=0
