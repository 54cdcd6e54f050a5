# what: real programs and scripts are stopped at system calls while a cookie of theirs is there, and dmtrace's search looks each time for whoever has its number.
# expect: nobody who needs a cookie is missed: the number is found in memory, a pipe or a file, or another rule keeps the cookie; cargo xtask stepper looks at 20,000 moments
# kernels: 6.1
# programs: cookie-stepper
# because: rests on programs and on the search, not on the kernel; cargo xtask stepper --kernel runs it on any
# limit: 400
. "$SUITE/stepped.sh"

# step PROGRAM...: some moments of it. The program's own output must not keep a number.
step() {
    cookie-stepper --every 40 --files "$folder" -- "$@" >/tmp/step </dev/null
    tail -n 1 /tmp/step >>"$OUT/steps"
    rm /tmp/step
}

: >"$OUT/steps"
stepped_setup
stepped_devices
stepped_scripts
cat "$OUT/steps"
[ "$(grep -vc '"missed":0,' "$OUT/steps")" -eq 0 ]
[ "$(grep -vc '"code":0,' "$OUT/steps")" -eq 0 ]
moments=$(sed -n 's/.*"moments":\([0-9]*\).*/\1/p' "$OUT/steps" | awk '{ n += $1 } END { print n + 0 }')
echo "$moments moments"
[ "$moments" -ge 100 ]
trace
expect cookies created=0 live=0
