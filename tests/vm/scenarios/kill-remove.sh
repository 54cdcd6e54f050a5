# what: dmsetup remove gets SIGKILL at each of its semaphore calls.
# expect: one leaked cookie for each death between semget and IPC_RMID, made by the one that died
. "$SUITE/kill-points.sh"
device model
calls /tmp/calls dmsetup remove model
for n in $(seq "$(wc -l </tmp/calls)"); do
    dmsetup create "k$n" --noudevsync --table '0 2048 zero'
done
udevadm settle --timeout=60
trace
attempt() {
    device=k$point
    inject dmsetup remove "$device"
}
points /tmp/calls
expect cookies created=$made live=$made
