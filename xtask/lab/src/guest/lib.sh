# Shared by the guest's scripts: the way to the host.
port() {
    for name in /sys/class/virtio-ports/*/name; do
        read -r have <"$name"
        if [ "$have" = "$1" ]; then
            name=${name%/name}
            echo "/dev/${name##*/}"
            return
        fi
    done
}
LAB_PORT=$(port lab)

# frame NAME [TEXT]: one message to the host.
frame() {
    printf '%s %s\n%s' "$1" "${#2}" "$2" >"$LAB_PORT"
}

# frame_file NAME FILE: one message with a file's content.
frame_file() {
    { printf '%s %s\n' "$1" "$(stat -c %s "$2")"; cat "$2"; } >"$LAB_PORT"
}

# load_modules: those that the lab says are to be there.
load_modules() {
    [ -z "$LAB_MODULES" ] || modprobe -a $LAB_MODULES || broken "modprobe $LAB_MODULES"
}

# broken WHAT: the guest cannot be used.
broken() {
    frame broken "$1"
    frame end
    echo o >/proc/sysrq-trigger
    sleep 60
}
