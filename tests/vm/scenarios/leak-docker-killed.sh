# what: Docker 20.10 is killed in docker start while it waits for udev; clean; a new daemon starts and is killed in docker rm.
# expect: leaked by each dockerd, with the container's device and the whole chain of calls through C and Go; clean removes that cookie; the next daemon works
# with: docker
# limit: 300
. "$SUITE/docker.sh"
# What runs on the stack of the thread, and what on that of the goroutine that called it.
docker=github.com/docker/docker
in_c='semget,dm_task_set_cookie,_cgo_*_Cfunc_dm_task_set_cookie,runtime.asmcgocall'
in_go="runtime.cgocall,$docker/pkg/devicemapper._Cfunc_dm_task_set_cookie,\
$docker/pkg/devicemapper.(*Task).setCookie,$docker/pkg/devicemapper.activateDevice"
from_http='net/http.(*conn).serve,runtime.goexit'
trace
docker_start
docker_image
docker_create --name one box sh -c 'echo in'
device=$(docker_device one)
have_cookies 0
udevd_hold
docker start --attach one &
command=$!
until_ok 30 docker_waits
kill_it "$dockerd"
wait "$command" || true
udevd_go
expect was state=leaked culprit="$dockerd" how="finished_after_death|owner_killed" step=waiting \
    device="$device" command="$docker_command" confidence=observed site=complete \
    through="$in_c,$in_go,$docker/daemon.(*Daemon).ContainerStart,$from_http"
until_ok 20 grep -q '"type":"finding"' "$OUT/watch.json"
udevadm settle --timeout=20
have_cookies 1
# What udev touched a moment ago is left alone.
cleaned() {
    dmtrace clean --apply --yes --older-than 0s
    have_cookies 0
}
until_ok 20 cleaned
expect change change=destroyed ending=by_other

docker_start
[ "$(docker start --attach one)" = in ]
have_cookies 0
udevd_hold
docker rm one &
command=$!
until_ok 30 docker_waits
kill_it "$dockerd"
wait "$command" || true
unsettled=yes
expect leaked culprit="$dockerd" command="$docker_command" how=owner_killed signal=9 step=waiting \
    device="$device" confidence=observed missing=completion lost=1 site=complete \
    evidence="killed by SIGKILL + 1 uevent sent, 0 completed by udev" \
    through="$in_c,$in_go,$docker/daemon.(*Daemon).ContainerRm,$from_http"
expect cookies created=10+ live=1
