# what: dmsetup creates, renames, suspends, resumes and removes a device.
# expect: no finding
# probes: yes
trace
dmsetup create a --table '0 2048 zero'
dmsetup rename a b
dmsetup suspend b
dmsetup resume b
dmsetup reload b --table '0 4096 zero'
dmsetup resume b
dmsetup remove b
expect cookies created=5 destroyed=5 live=0
