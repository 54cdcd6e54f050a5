# what: dmsetup in a container of Docker 20.10 with semaphores of its own, which is the default; udev is the host's.
# expect: stuck: namespace split, in that container; when it is removed the cookie goes with its namespace
# with: docker
# limit: 300
. "$SUITE/docker.sh"
docker_start
docker_image
trace
docker_run --detach --name one --privileged --volume /:/host box \
    busybox chroot /host dmsetup create a --table '0 2048 zero'
id=$(docker inspect --format '{{.Id}}' one)
pid=$(docker inspect --format '{{.State.Pid}}' one)
until_ok 10 in_semop "$pid"
until_ok 20 grep -q '"type":"finding"' "$OUT/watch.json"
expect stuck creator=$pid cause=namespace_split confidence=observed device=a container=$id \
    missing=completion lost=1 evidence="in vain in IPC namespace" \
    command="dmsetup create a --table 0 2048 zero"
expect change change=lookup_failed
expect cookies live=1
