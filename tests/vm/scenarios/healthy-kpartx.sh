# what: kpartx maps the two partitions of a disk and unmaps them.
# expect: no finding
loop 32M
# Two entries of an MBR: 8 MiB each, from sector 2048 and 18432.
{
    printf '\000\000\000\000\203\000\000\000\000\010\000\000\000\100\000\000'
    printf '\000\000\000\000\203\000\000\000\000\110\000\000\000\100\000\000'
} | dd of="$loop" bs=1 seek=446 conv=notrunc status=none
printf '\125\252' | dd of="$loop" bs=1 seek=510 conv=notrunc status=none
trace
kpartx -a -s "$loop"
name=${loop#/dev/}
[ -b "/dev/mapper/${name}p1" ]
[ -b "/dev/mapper/${name}p2" ]
kpartx -d -s "$loop"
expect cookies created=2+ live=0
