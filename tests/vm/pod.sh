#!/bin/sh
# The image and the rights of packaging/kubernetes.yaml, with Docker in place of a cluster: the same
# capabilities, Docker's own seccomp profile, a read-only root, no IPC namespace of the host. Leaks of
# the host and of another container are seen and named.
#
# cargo xtask vm --with docker --file target/x86_64-unknown-linux-musl/dist/dmtrace:/image/dmtrace \
#   --file packaging/Dockerfile:/image/Dockerfile --file packaging/kubernetes.yaml \
#   --file target/release/cookie-actor --file tests/vm/pod.sh -- pod.sh
set -u
failed=0
say() { echo "pod: $*"; }
bad() { echo "pod: FAILED: $*"; failed=1; }
until_true() { n=0; until "$@"; do n=$((n + 1)); [ $n -gt 150 ] && return 1; sleep 0.2; done; }

mkdir -p /run/pod /tmp/docker /run/dmtrace /var/lib/dmtrace
cat > /run/pod/docker.json <<'EOF'
{"hosts": ["unix:///run/pod/docker.sock"], "data-root": "/tmp/docker", "exec-root": "/run/pod/docker",
 "pidfile": "/run/pod/docker.pid", "bridge": "none", "iptables": false, "storage-driver": "vfs"}
EOF
export DOCKER_HOST=unix:///run/pod/docker.sock
dockerd --config-file /run/pod/docker.json > /run/pod/docker.log 2>&1 &
until_true grep -q 'API listen on' /run/pod/docker.log || { cat /run/pod/docker.log; exit 1; }
chmod +x /image/dmtrace
docker build -q -f /image/Dockerfile -t dmtrace:0.1.0 /image || bad "the image cannot be built"

# The rights as the manifest has them.
word() { sed -n "s/^ *$1: \[\(.*\)\]$/\1/p" /job/kubernetes.yaml | tr -d ' ' | tr ',' '\n'; }
rights=""
for cap in $(word drop); do rights="$rights --cap-drop $cap"; done
for cap in $(word add); do rights="$rights --cap-add $cap"; done
grep -q 'hostPID: true' /job/kubernetes.yaml && rights="$rights --pid host"
grep -q 'hostIPC: true' /job/kubernetes.yaml && rights="$rights --ipc host"
grep -q 'readOnlyRootFilesystem: true' /job/kubernetes.yaml && rights="$rights --read-only"
grep -q 'allowPrivilegeEscalation: false' /job/kubernetes.yaml && rights="$rights --security-opt no-new-privileges"
say "rights:$rights"
# shellcheck disable=SC2086
docker run -d --name dmt --network none --ipc private --security-opt apparmor=unconfined $rights \
    -v /sys/fs/bpf:/sys/fs/bpf -v /sys/kernel/tracing:/sys/kernel/tracing:ro \
    -v /run/dmtrace:/run/dmtrace -v /var/lib/dmtrace:/var/lib/dmtrace \
    dmtrace:0.1.0 serve --metrics 0.0.0.0:9942 --metrics-exposed >/dev/null || bad "it does not start"
told() { docker logs dmt 2>&1 | grep -q "$1"; }
until_true told "backend)" || { docker logs dmt; bad "it does not trace"; }
docker logs dmt
pid=$(docker inspect -f '{{.State.Pid}}' dmt)
grep -E '^(CapBnd|NoNewPrivs|Seccomp):' "/proc/$pid/status"
[ "$(readlink "/proc/$pid/ns/ipc")" != "$(readlink /proc/self/ns/ipc)" ] || bad "it is in the host's IPC namespace"

cookie-actor cycle --stop-at after-inc --how kill > /tmp/one 2>&1
until_true told "IPC namespace host: leaked: owner killed by SIGKILL" || bad "the leak of the host is not told"
mkdir -p /tmp/box/bin && cp /usr/bin/busybox /tmp/box/bin && tar -C /tmp/box -c . | docker import - box >/dev/null
docker run -d --name leaker --network none --security-opt apparmor=unconfined -v /usr:/usr:ro -v /lib:/lib:ro \
    -v /lib64:/lib64:ro -v /job:/job:ro box /bin/busybox sh -c \
    '/job/cookie-actor cycle --stop-at after-inc --how kill; exec /bin/busybox sleep 1000' >/dev/null
id=$(docker inspect -f '{{.Id}}' leaker | cut -c1-12)
until_true told "leaked: .*in docker $id" || bad "the leak of container $id is not told"
docker logs dmt 2>&1 | grep leaked: | cut -c1-330
printf 'GET /metrics HTTP/1.0\r\n\r\n' > /tmp/get
nsenter -t "$pid" -n python3 -c '
import socket
s = socket.create_connection(("127.0.0.1", 9942)); s.sendall(open("/tmp/get", "rb").read()); s.shutdown(1)
b = b""
while True:
    c = s.recv(65536)
    if not c: break
    b += c
print(b.decode().split("\r\n\r\n", 1)[1])' > /tmp/page || { ip link; bad "no metrics"; }
grep -E '^dmtrace_(cookies\{state="leaked"|cookies_leaked|ipc_namespaces_unreadable|tracer_info)|attached.* 0$' /tmp/page
grep -q 'leaked_total{origin="container"} 1' /tmp/page || bad "the container's leak is not counted as one"
grep -q 'ipc_namespaces_unreadable 0' /tmp/page || bad "a namespace is not readable"
grep -q 'probe_attached{.*} 0' /tmp/page && bad "a probe is not attached"
docker exec dmt /usr/sbin/dmtrace report | head -20
say "on the host:"
/image/dmtrace list
docker stop -t 10 dmt >/dev/null
say "exit $(docker inspect -f '{{.State.ExitCode}}' dmt)"
[ "$(docker inspect -f '{{.State.ExitCode}}' dmt)" = 0 ] || bad "it does not end well"
docker kill leaker >/dev/null
kill "$(cat /run/pod/docker.pid)"; wait
[ $failed = 0 ] && say "all well"
exit $failed
