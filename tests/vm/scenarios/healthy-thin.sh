# what: a thin pool, a thin volume, its snapshot, all activated and removed.
# expect: no finding
loop 64M
pvcreate -q "$loop"
vgcreate -q vg "$loop"
trace
lvcreate -q -y -L 16M -T vg/pool
lvcreate -q -y -W n -V 8M -T vg/pool -n t
lvcreate -q -y -s vg/t -n s
lvchange -q -a y -K vg/s
lvremove -q -y vg
expect cookies created=5+ live=0
