# what: a shell script's grandchild, a dmsetup started through env and nice, dies with a cookie.
# expect: leaked by that dmsetup; the shells are not named
# variants: kprobe tracepoint
# probes: yes
trace
cat >/tmp/outer <<'INNER'
#!/bin/sh
sh -c 'strace -D -qq -o /dev/null -e trace=semget -e inject=semget:signal=SIGKILL:when=2 \
    env A=1 nice dmsetup create a --table "0 2048 zero" & echo $! >/tmp/leaker; wait $!'
true
INNER
sh /tmp/outer
expect leaked culprit="$(cat /tmp/leaker)" command="dmsetup create a --table 0 2048 zero" \
    how=finished_after_death step=armed confidence=observed device=a \
    missing=wait evidence="killed by SIGKILL + completed by udev"
expect cookies created=1 live=1
