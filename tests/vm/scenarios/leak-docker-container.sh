# what: dmsetup in a container of Docker 20.10 that has the host's semaphores; docker kill while it waits for udev.
# expect: leaked by dmsetup, in that container
# with: docker
# limit: 300
. "$SUITE/docker.sh"
docker_start
docker_image
trace
# Docker itself needs udev for the container, so udev is held after its start.
docker_run --detach --name one --privileged --ipc host --volume /:/host box busybox chroot /host \
    sh -c 'until [ -e /tmp/held ]; do sleep 0.1; done; exec dmsetup create a --table "0 2048 zero"'
id=$(docker inspect --format '{{.Id}}' one)
pid=$(docker inspect --format '{{.State.Pid}}' one)
udevadm settle --timeout=20
udevd_hold
touch /tmp/held
until_ok 20 in_semop "$pid"
# dockerd takes the container's device away then, and waits for udev as well. That may take it
# longer than the ten seconds after which docker kill complains.
docker kill one &
command=$!
until_ok 20 ended "$pid"
udevd_go
wait "$command" || true
udevadm settle --timeout=20
expect leaked culprit="$pid" command="dmsetup create a --table 0 2048 zero" container="$id" device=a \
    how=finished_after_death step=waiting confidence=observed missing=removal \
    evidence="killed by SIGKILL + completed by udev"
expect cookies live=1
