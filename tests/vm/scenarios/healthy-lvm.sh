# what: lvcreate, lvextend, lvrename, vgchange off and on, lvremove.
# expect: no finding
loop 64M
pvcreate -q "$loop"
vgcreate -q vg "$loop"
trace
lvcreate -q -y -W n -L 8M -n a vg
lvextend -q -L 16M vg/a
lvrename -q vg a b
vgchange -q -a n vg
vgchange -q -a y vg
lvremove -q -y vg/b
expect cookies created=6+ live=0
