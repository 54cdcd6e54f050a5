# what: nothing traces; the cookies of a real dockerd (20.10, devicemapper) stay, one for each container that it tries to start, until the limit is reached and docker start fails. Two others use cookies meanwhile, and a set is no cookie. Then dmtrace comes. Its time is virtual.
# expect: report names dockerd for all of its cookies; nothing is removed while it lives; when it was stopped clean removes them all and nothing else, and docker start works again
# kernels: 6.1 6.12
# because: rests on programs, not on the kernel
# with: docker
# boot: virtual-clock
# limit: 900
. "$SUITE/docker.sh"
docker_start
docker_image
docker_create --name one box sh -c true
docker start --attach one
have_cookies 0
sysctl -q kernel.sem='32000 1024000000 500 128'

# In use: a process waits in the middle, a script has the number. And a set of somebody else.
cookie-actor cycle --stop-at after-inc --how hold >/dev/null &
held=$!
bash -c 'c=$(dmsetup udevcreatecookie); c=${c##*=}; sleep 3000; dmsetup udevreleasecookie $c' &
user=$!
ipcmk --semaphore 3 >/dev/null
until_ok 60 have_cookies 2

# No semop succeeds from here on (the third number is how many a call may have). So each cookie that
# dockerd makes stays: what it has begun it does not end, as in 2017, when the wait was left out.
echo '32000 1024000000 0 128' >/proc/sys/kernel/sem
leak() {
    ! docker start --attach one 2>/dev/null
    [ "$(cookies)" -eq 127 ]
}
tries=0
until leak; do
    tries=$((tries + 1))
    [ $tries -lt 300 ]
done
sysctl -q kernel.sem='32000 1024000000 500 128'
# 127 and the other set: the table is full, and nobody has cookies any more.
fails docker start --attach one 2>/tmp/said
cat /tmp/said
fails dmsetup udevcreatecookie

sleep 700
# What is it, and who was it?
code=0
masked dmtrace report >/tmp/report || code=$?
echo "exit code $code"
[ $code -eq 1 ] || [ $code -eq 4 ]
cat /tmp/report
grep -q "^ *125  dockerd\[$dockerd\]" /tmp/report
# It lives: nothing of it is removed.
masked dmtrace clean --apply --yes || [ $? -le 4 ]
have_cookies 127
kill "$dockerd"
wait "$dockerd" || true
masked dmtrace report >/tmp/report || [ $? -eq 1 ]
cat /tmp/report
grep -q '^125 cookies are orphaned' /tmp/report
# Remove what nobody can need.
masked dmtrace clean --apply --yes || [ $? -le 4 ]
have_cookies 2
[ "$(wc -l </proc/sysvipc/sem)" -eq 4 ]

docker_start
docker start --attach one
docker_run box sh -c true
kill "$dockerd"
wait "$dockerd" || true
have_cookies 2
sleep 2400
wait $user
kill_it $held
have_cookies 1
dmsetup udevcomplete_all -y
ipcrm --all=sem
trace
expect cookies created=0 live=0
