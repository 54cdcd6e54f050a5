# what: Docker 20.10, storage driver devicemapper: makes an image, runs and removes containers, is stopped.
# expect: no finding; cookies by dockerd only, with its devices
# with: docker
# limit: 300
. "$SUITE/docker.sh"
trace
docker_start
docker_image
[ "$(docker_run --rm box sh -c 'echo in')" = in ]
docker_run --detach --name one box busybox sleep 1000
docker exec one busybox true
device=$(docker_device one)
pool=$(dmsetup ls --target thin-pool | cut -f1)
[ "$(dmsetup ls --target thin | cut -f1)" = "$device" ]
docker rm --force one
docker rmi box
kill "$dockerd"
wait "$dockerd"
expect cookies created=10+ live=0
expect change change=created by="$dockerd" command="$docker_command"
expect change change=created by="$dockerd" count=10+
expect change change=ioctl name="$pool" count=1+
expect change change=ioctl name="$device" count=2+
