#!/bin/busybox sh
# First program of the guest: finds the root image, lays a writable layer over it, goes there.
/bin/busybox mkdir -p /proc /sys /dev /lower /mods /rw /new
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev

for module in /early/*.ko; do
    insmod "$module" || echo "lab: insmod $module failed" >/dev/kmsg
done

tries=0
until [ -b /dev/vda ] && [ -b /dev/vdb ]; do
    tries=$((tries + 1))
    if [ $tries -gt 200 ]; then
        echo "lab: the guest's disks did not appear" >/dev/kmsg
        poweroff -f
    fi
    usleep 50000
done

mount -t squashfs -o ro /dev/vda /lower
mount -t tmpfs -o size=80% tmpfs /rw
mkdir /rw/upper /rw/work
mount -t overlay -o lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work overlay /new
mkdir -p /new/usr/lib/modules
mount -t squashfs -o ro /dev/vdb /new/usr/lib/modules
mkdir -p /new/lab /new/work /new/out /new/boot
cp -a /lab/. /new/lab/
[ -d /files ] && cp -a /files/. /new/
[ -f /config ] && cp /config "/new/boot/config-$(uname -r)"

mount --move /proc /new/proc
mount --move /sys /new/sys
mount --move /dev /new/dev
if [ -f /lab/systemd ]; then
    exec switch_root /new /lib/systemd/systemd
fi
exec switch_root /new /lab/pid1
