# A real Docker with the storage driver devicemapper on loop files, for the scenarios that are run
# `with: docker`.
for module in dm_thin_pool ext4 overlay; do
    modprobe $module || skip "this kernel has no $module"
done
export DOCKER_HOST=unix:///run/suite/docker.sock

# docker_start: a daemon that answers; its process is $dockerd. Storage options count when the
# pool is made.
docker_start() {
    dockerd --host "$DOCKER_HOST" --data-root /tmp/docker --exec-root /run/suite/docker \
        --pidfile /run/suite/docker.pid --bridge=none --iptables=false \
        --storage-driver devicemapper --storage-opt dm.fs=ext4 --storage-opt dm.basesize=64M \
        --storage-opt dm.loopdatasize=512M --storage-opt dm.loopmetadatasize=16M \
        >>"$OUT/dockerd.log" 2>&1 &
    dockerd=$!
    docker_command="dockerd --host $DOCKER_HOST"
    until_ok 60 grep -q 'API listen on' "$OUT/dockerd.log"
}

# docker_image: the image `box`, with a shell.
docker_image() {
    mkdir -p /tmp/box/bin
    cp /usr/bin/busybox /tmp/box/bin
    ln -s busybox /tmp/box/bin/sh
    tar -C /tmp/box -c . | docker import - box >/dev/null
}

# docker_run OPTION... box COMMAND...
docker_run() {
    docker run --network=none --security-opt apparmor=unconfined "$@"
}
