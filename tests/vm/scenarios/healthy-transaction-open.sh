# what: a sleeping script holds a cookie that nobody uses yet.
# expect: open, not leaked
trace
cookie=$(dmsetup udevcreatecookie)
sleep 3
expect row state=open value=1
expect cookies created=1 live=1
