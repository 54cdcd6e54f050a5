# what: lvcreate gets SIGKILL at each of its semaphore calls.
# expect: one leaked cookie for each death between semget and IPC_RMID, made by the one that died
# limit: 240
. "$SUITE/kill-points.sh"
loop 64M
pvcreate -q "$loop"
vgcreate -q -s 1M vg "$loop"
calls /tmp/calls lvcreate -q -y -W n -Z n -L 1M -n model vg
trace
attempt() {
    device=vg-k$point
    inject lvcreate -q -y -W n -Z n -L 1M -n "k$point" vg
}
points /tmp/calls
expect cookies created=$made live=$made
