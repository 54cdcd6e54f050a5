# what: nothing traces; each cookie's number is only where it is hard, slow or dangerous to look: beside and in mappings of a FUSE file that nobody delivers, behind a lock that is never released, in a userfaultfd's range, memfd_secret, 64 GiB of lazy memory, a page without rights, a process without its first thread, one of 1,000 processes. Its time is virtual.
# expect: every command ends in time; nothing that is held or may be is removed, and the holders are named, or what could not be searched; after their end all is removed
# kernels: 6.1 newest
# because: rests on programs, not on the kernel
# boot: virtual-clock
# limit: 400
modprobe fuse || echo 'no fuse'
holders=
hidden=0

# hide PLACE ARG...: a holder, where this kernel can do it.
hide() {
    cookie-actor hide --in "$@" >"/tmp/$1" 2>&1 &
    holder=$!
    until_ok 120 said_hidden "$1" || return 1
    if grep -q '"hidden"' "/tmp/$1"; then
        holders="$holders $holder"
        hidden=$((hidden + 1))
    else
        echo "not here: $(cat "/tmp/$1")"
    fi
}

said_hidden() {
    grep -q '"hidden"' "/tmp/$1" || ended $holder
}

# timed CODE COMMAND...: it ends within five minutes, with that exit code.
timed() {
    wanted=$1
    shift
    uptime
    began=$now
    code=0
    masked "$@" >/tmp/said || code=$?
    uptime
    echo "$((now - began)) s, exit code $code: $*"
    grep -v '^kept\|^would' /tmp/said | cut -c1-200 | head -n 30
    [ $((now - began)) -le 300 ]
    [ $code -eq $wanted ]
}

for place in beside-fuse fuse-page userfault secret lazy dead-leader no-access; do
    hide $place
done
hide crowd --procs 1000
# What can be searched is searched, and every holder is named.
sleep 700
have_cookies $hidden
timed 4 dmtrace report
timed 4 dmtrace clean --apply --yes
have_cookies $hidden
# What is said goes through pipes only: a file would have the numbers.
reasons() {
    dmtrace clean --search fast --json | grep -o "$1" | wc -l
}
! grep -q '"hidden"' /tmp/secret || [ "$(reasons 'it has memory that nobody else can read')" -ge 1 ]
! grep -q '"hidden"' /tmp/fuse-page || [ "$(reasons 'a file system that may not answer')" -ge 1 ]
found=$(reasons 'holds its number (memory, binary)')
echo "hidden: $hidden, found: $found"
[ "$found" -ge 4 ]
# From now on nobody can read anything of one process: `ps` would stand still.
hide behind-lock
timed 4 dmtrace report
timed 4 dmtrace list --search full
timed 4 dmtrace clean --apply --yes
have_cookies $hidden
for holder in $holders; do
    kill_it $holder
done
timed 0 dmtrace clean --apply --yes
have_cookies 0
trace
expect cookies created=0 live=0
