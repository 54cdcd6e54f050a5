# what: Docker 20.10 with the storage driver devicemapper makes an image, runs, removes; then it is stopped.
# expect: no finding; dockerd's cookies with its devices
# with: docker
# limit: 180
. "$SUITE/docker.sh"
trace
docker_start
docker_image
[ "$(docker_run --rm box echo in)" = in ]
docker_run --detach --name one box sleep 1000
docker exec one true
docker rm --force one
docker rmi box
kill "$dockerd"
wait "$dockerd"
expect cookies created=10+ live=0
cp "$OUT/trace.dmt" "$OUT/copy"
