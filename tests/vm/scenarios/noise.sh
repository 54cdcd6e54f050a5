# what: thousands of ordinary sets, and sets with a cookie's key that are no cookies; one real leak.
# expect: the one leak; the foreign sets are foreign
trace
cookie-actor foreign --nsems 3 --key 0x0d4d0003
cookie-actor foreign --mode 0666 --key 0x0d4d0666
setpriv --reuid=65534 --clear-groups cookie-actor foreign --key 0x0d4d0abc
cookie-actor churn --tag noise --procs 30 --sets 100 --keyed >/dev/null
killed semget 2 dmsetup create a --table '0 2048 zero'
cookie-actor churn --tag more --procs 20 --sets 100 >/dev/null
expect leaked culprit=$killed how=finished_after_death step=armed confidence=observed device=a \
    missing=wait evidence="killed by SIGKILL + completed by udev" \
    command="dmsetup create a --table 0 2048 zero"
expect row state=foreign count=3
expect cookies created=4 live=4
