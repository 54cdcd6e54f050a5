# what: LVM at work and a killed dmsetup, with the smallest ring there is and a tracer that is stopped meanwhile.
# expect: messages are dropped and counted, cookies are not lost: the leak is found, by whom, with its device
# variants: kprobe tracepoint
# limit: 120
# probes: yes
loop 64M
pvcreate -q "$loop"
vgcreate -q vg "$loop"
trace --ring 4
kill -STOP "$tracer"
for number in 1 2 3; do
    lvcreate -q -y -W n -L 8M -n "a$number" vg
    lvrename -q vg "a$number" "b$number"
done
killed semget 2 dmsetup create k --table '0 2048 zero'
lvremove -q -y vg
kill -CONT "$tracer"
expect leaked culprit=$killed how=finished_after_death step=armed confidence=observed device=k \
    missing=wait evidence="killed by SIGKILL + completed by udev" \
    command="dmsetup create k --table 0 2048 zero"
expect cookies created=8 destroyed=7 live=1
finish
grep '"type":"summary"' "$OUT/watch.json" | grep -q '"dropped":[1-9]'
# Findings, and complete.
[ $tracer_code = 1 ]
