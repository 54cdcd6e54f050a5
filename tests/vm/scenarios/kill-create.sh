# what: dmsetup create gets SIGKILL at each of its semaphore calls.
# expect: one leaked cookie for each death between semget and IPC_RMID, made by the one that died
# probes: yes
. "$SUITE/kill-points.sh"
calls /tmp/calls dmsetup create model --table '0 2048 zero'
trace
attempt() {
    device=k$point
    inject dmsetup create "$device" --table '0 2048 zero'
}
points /tmp/calls
expect cookies created=$made live=$made
