# what: 40 processes that live for a millisecond leave a cookie each.
# expect: 40 leaks, each with the command line of its process
# variants: kprobe tracepoint
# probes: yes
trace
cookie-actor churn --tag blink --procs 40 --sets 0 --leave >/tmp/actor
sed -n 's/.*"step":"churned","pid":\([0-9]*\),.*/\1/p' /tmp/actor | while read -r pid; do
    expect leaked culprit=$pid how=owner_exited status=0 step=armed confidence=observed device=- \
        missing=wait evidence="exited with status 0"
done
expect cookies created=40 live=40
