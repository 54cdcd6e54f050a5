# Killing a program at every one of its semaphore calls.

# points CALLS: for each line of CALLS (made by `calls`) runs the function `attempt`, which sets
# $device and says `inject COMMAND...`; the command is killed when it enters that call. Says what
# is expected of each. udevd is held meanwhile, so that the order of things is certain, and goes
# on at the end: what was under way is completed after the death. $made counts what stays.
points() {
    total=$(wc -l <"$1")
    point=0
    made=0
    stage=
    udevd_hold
    while read -r line; do
        point=$((point + 1))
        call=${line%%(*}
        nth=$(head -n $point "$1" | grep -c "^$call(")
        case $line in
        # The ioctl is behind it: there is a device, and an event that udev will complete.
        semget*,\ 000\)*) how=finished_after_death known=yes completed=' + completed by udev' ;;
        # The wait before it must come to its end.
        *IPC_RMID*) how=owner_killed && udevd_go ;;
        esac
        attempt
        echo "$point of $total: $killed killed at $call $nth after ${stage:-nothing}: $line"
        if [ -n "$stage" ]; then
            made=$((made + 1))
            [ -n "$known" ] || device=-
            expect leaked "culprit=$killed" "command=$command" "how=$how" "step=$stage" \
                confidence=observed "device=$device" "missing=$missing" \
                "evidence=killed by SIGKILL$completed"
        fi
        # What this call changes, for those that are killed at later ones.
        case $line in
        semget*IPC_CREAT*) stage=created missing=set_val how=owner_killed known= completed= ;;
        *SETVAL*) stage=ready missing=increment ;;
        *sem_op=1,*) stage=armed missing=wait ;;
        *sem_op=-1,*) stage=self_completed ;;
        *sem_op=0,*) stage=released missing=removal ;;
        esac
    done <"$1"
    udevd_go
}

# inject COMMAND...
inject() {
    command=$*
    killed "$call" "$nth" "$@"
}
