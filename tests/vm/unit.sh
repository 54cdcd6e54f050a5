#!/bin/sh
# The unit in a guest with a full systemd: starts with the rights that it has and no more, sees
# leaks in other IPC namespaces, gets its watchdog's attention, comes back after kill -9.
#
# cargo xtask vm --systemd --file target/release/dmtrace:/usr/sbin/dmtrace \
#   --file target/release/cookie-actor --file tests/vm/unit.sh \
#   --file packaging/dmtrace.service:/etc/systemd/system/dmtrace.service \
#   --file packaging/dmtrace.tmpfiles.conf:/usr/lib/tmpfiles.d/dmtrace.conf -- unit.sh
set -u
failed=0
say() { echo "unit: $*"; }
bad() { echo "unit: FAILED: $*"; failed=1; }
show() { systemctl show -P "$1" dmtrace.service; }
# Waits for a command to succeed, 30 seconds at most.
until_true() { n=0; until "$@"; do n=$((n + 1)); [ $n -gt 150 ] && return 1; sleep 0.2; done; }
told() { journalctl -u dmtrace.service -o cat --no-pager | grep -q "$1"; }

chmod +x /usr/sbin/dmtrace /job/* 2>/dev/null
mkdir -p /run/systemd/system/dmtrace.service.d
cat > /run/systemd/system/dmtrace.service.d/test.conf <<'EOF'
[Service]
ExecStart=
ExecStart=/usr/sbin/dmtrace serve --metrics 127.0.0.1:9942
WatchdogSec=6s
TimeoutStartSec=120s
EOF
systemd-tmpfiles --create dmtrace.conf || bad "tmpfiles"
systemctl daemon-reload
systemctl start dmtrace.service || bad "start: $(journalctl -u dmtrace -o cat --no-pager)"
say "state $(show ActiveState)/$(show SubState), type $(show Type), $(show StatusText)"
[ "$(show SubState)" = running ] || bad "not running"
pid=$(show MainPID)
grep -E '^(CapBnd|CapEff|NoNewPrivs|Seccomp):' "/proc/$pid/status"
told "backend)" && journalctl -u dmtrace -o cat --no-pager | head -8

# A leak here, and one in another IPC namespace.
cookie-actor cycle --stop-at after-inc --how kill > /tmp/one 2>&1
until_true told "IPC namespace host: leaked: owner killed by SIGKILL" || bad "the leak of the host is not told"
unshare -i sh -c 'cookie-actor cycle --stop-at after-inc --how kill > /tmp/two 2>&1; sleep 120' &
holder=$!
other() { journalctl -u dmtrace -o cat --no-pager | grep "leaked: owner killed" | grep -vq "namespace host"; }
until_true other || bad "the leak of the other namespace is not told"
journalctl -u dmtrace -o cat --no-pager | grep "leaked: owner" | cut -c1-400

get() { printf 'GET /metrics HTTP/1.0\r\n\r\n' | python3 -c '
import socket, sys
s = socket.create_connection(("127.0.0.1", 9942)); s.sendall(sys.stdin.buffer.read()); s.shutdown(1)
b = b""
while True:
    c = s.recv(65536)
    if not c: break
    b += c
sys.stdout.write(b.decode().split("\r\n\r\n", 1)[1])'; }
get > /tmp/page || bad "no metrics"
grep -E '^dmtrace_(cookies\{state="leaked"|cookies_leaked|probe_attached|semaphore_sets|tracer_info|ipc_namespaces_unreadable|program_missed.*lost)' /tmp/page
grep -q 'cookies{state="leaked"} 2' /tmp/page || bad "not two leaked"
grep -q 'ipc_namespaces_unreadable 0' /tmp/page || bad "a namespace is not readable"
grep -q 'probe_attached{.*} 0' /tmp/page && bad "a probe is not attached"
say "memory $(show MemoryCurrent) bytes, RSS $(awk '/VmRSS/ {print $2}' "/proc/$pid/status") kB, tasks $(show TasksCurrent)"

# The watchdog: a stopped service is killed and started again.
kill -STOP "$pid"
again() { new=$(show MainPID); [ "$new" != 0 ] && [ "$new" != "$pid" ] && [ "$(show SubState)" = running ]; }
until_true again || bad "the watchdog does not restart it"
say "watchdog: restarts $(show NRestarts), $(journalctl -u dmtrace -o cat --no-pager | grep -i watchdog | head -1)"
pid=$(show MainPID)
kill -KILL "$pid"
until_true again || bad "not back after kill -9"
say "kill -9: restarts $(show NRestarts), pid $pid -> $(show MainPID), $(show SubState)"
until_true sh -c 'dmtrace serve --status | grep -q "2 active findings"' || bad "the findings are forgotten"
dmtrace serve --status | cut -c1-200

systemctl stop dmtrace.service || bad "stop"
say "stopped: $(show Result), exit $(show ExecMainStatus)"
[ "$(show Result)" = success ] || bad "result $(show Result)"
journalctl -u dmtrace -o cat --no-pager | tail -12 | cut -c1-300
journalctl -b -o cat --no-pager | grep -iE 'denied|seccomp|type=1326' | head -5
kill $holder 2>/dev/null
[ $failed = 0 ] && say "all well"
exit $failed
