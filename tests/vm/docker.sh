# A real Docker with the storage driver devicemapper on loop files, for the scenarios that are run
# `with: docker`.
modprobe -a dm_thin_pool ext4 || skip "this kernel has no dm_thin_pool or no ext4"
export DOCKER_HOST=unix:///run/suite/docker.sock
docker_command="dockerd --config-file /run/suite/docker.json"
cat >/run/suite/docker.json <<-'END'
	{
	    "hosts": ["unix:///run/suite/docker.sock"],
	    "data-root": "/tmp/docker",
	    "exec-root": "/run/suite/docker",
	    "pidfile": "/run/suite/docker.pid",
	    "bridge": "none",
	    "iptables": false,
	    "storage-driver": "devicemapper",
	    "storage-opts": [
	        "dm.fs=ext4",
	        "dm.basesize=64M",
	        "dm.loopdatasize=512M",
	        "dm.loopmetadatasize=16M"
	    ]
	}
END

# docker_start: a daemon that answers; its process is $dockerd.
docker_start() {
    $docker_command >/run/suite/docker.log 2>&1 &
    dockerd=$!
    until_ok 90 grep -q 'API listen on' /run/suite/docker.log || {
        cat /run/suite/docker.log
        exit 1
    }
}

# docker_image: the image `box`, with a shell.
docker_image() {
    mkdir -p /tmp/box/bin
    cp /usr/bin/busybox /tmp/box/bin
    ln -s busybox /tmp/box/bin/sh
    tar -C /tmp/box -c . | docker import - box
}

# docker_create OPTION... IMAGE COMMAND..., docker_run OPTION... IMAGE COMMAND...
docker_create() {
    docker create --network=none --security-opt apparmor=unconfined "$@"
}
docker_run() {
    docker run --network=none --security-opt apparmor=unconfined "$@"
}

# docker_device CONTAINER: the name of its device.
docker_device() {
    docker inspect --format '{{.GraphDriver.Data.DeviceName}}' "$1"
}

# docker_waits: the daemon waits for udev; it has many threads.
docker_waits() {
    for thread in /proc/$dockerd/task/*; do
        sleeps_in_semop "$thread" && return
    done 2>/dev/null
    return 1
}
