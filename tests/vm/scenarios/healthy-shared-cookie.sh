# what: one cookie is shared by four dmsetup processes, then released.
# expect: no finding
trace
cookie=$(dmsetup udevcreatecookie)
for n in 1 2 3 4; do
    dmsetup create "s$n" --udevcookie "$cookie" --table '0 2048 zero'
done
sleep 1.5
dmsetup udevreleasecookie "$cookie"
expect cookies created=1 destroyed=1 live=0
