# what: a process dies with a cookie before the tracer starts; another dmsetup lives meanwhile.
# expect: not decided: nobody is named
killed semget 2 dmsetup create a --table '0 2048 zero'
udevadm settle --timeout=60
sleep 1.2
trace
dmsetup create b --table '0 2048 zero'
expect undecided count=1
expect row state=unknown creator=- culprit=-
expect cookies created=1 destroyed=1 found=1
