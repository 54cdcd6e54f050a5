# what: the same as healthy-steps, with the tracepoint backend.
# expect: no finding; watch shows every step of every life, in its order
# kernels: 5.10 6.1 6.12
# because: syscall tracepoints are skipped now and then where the kernel preempts; dmtrace counts that
# probes: yes
BACKEND=tracepoint
. "$SUITE/scenarios/healthy-steps.sh"
