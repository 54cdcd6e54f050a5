#!/bin/busybox sh
# First program of the guest: finds the root image, lays a writable layer over it, mounts what
# there is to mount, goes there. It does as much as it can, because under emulation a static
# busybox starts several times faster than the image's own programs.
/bin/busybox mkdir -p /proc /sys /dev /lower /rw /new
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev

for module in /early/*.ko; do
    insmod "$module" || echo "lab: insmod $module failed" >/dev/kmsg
done

disks="/dev/vda /dev/vdb"
[ -f /lab/layer ] && disks="$disks /dev/vdc"
have_disks() {
    for disk in $disks; do
        [ -b $disk ] || return 1
    done
}
tries=0
until have_disks; do
    tries=$((tries + 1))
    if [ $tries -gt 200 ]; then
        echo "lab: the guest's disks did not appear" >/dev/kmsg
        poweroff -f
    fi
    usleep 50000
done

mount -t squashfs -o ro /dev/vda /lower
lower=/lower
if [ -f /lab/layer ]; then
    mkdir /layer
    mount -t squashfs -o ro /dev/vdc /layer
    lower=/layer:/lower
fi
mount -t tmpfs -o size=80% tmpfs /rw
mkdir /rw/upper /rw/work
mount -t overlay -o lowerdir=$lower,upperdir=/rw/upper,workdir=/rw/work overlay /new
mkdir -p /new/usr/lib/modules /new/lab /new/job /new/out /new/boot
mount -t squashfs -o ro /dev/vdb /new/usr/lib/modules
cp -a /lab/. /new/lab/
[ -d /files ] && cp -a /files/. /new/
[ -f /config ] && cp /config "/new/boot/config-$(uname -r)"

if [ -f /lab/systemd ]; then
    next=/lib/systemd/systemd
else
    next=/lab/pid1
    mkdir -p /dev/pts /dev/shm
    mount -t devpts -o mode=620,gid=5,ptmxmode=666 devpts /dev/pts
    mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs /dev/shm
    ln -s /proc/self/fd /dev/fd
    ln -s /proc/self/fd/0 /dev/stdin
    ln -s /proc/self/fd/1 /dev/stdout
    ln -s /proc/self/fd/2 /dev/stderr
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mount -t tracefs tracefs /sys/kernel/tracing
    mount -t debugfs debugfs /sys/kernel/debug
    mount -t bpf -o mode=700 bpf /sys/fs/bpf
    mount -t securityfs securityfs /sys/kernel/security
    mount -t tmpfs -o mode=755 tmpfs /new/run
    mount -t tmpfs -o mode=1777 tmpfs /new/tmp
    mkdir -p /new/run/lock/lvm /new/run/lvm
    . /lab/settings
    hostname "$LAB_NAME"
    echo 4b1d0000000000000000000000000001 >/new/etc/machine-id
    ip link set lo up
fi

mount --move /proc /new/proc
mount --move /sys /new/sys
mount --move /dev /new/dev
exec switch_root /new $next
