# what: `cargo xtask demo --broken` in a guest: 128 of 128 sets used, 126 of them leaked, two live users; then the three commands of the README. Its time is virtual.
# expect: all leaks are removed, the users finish, and the README prints what the demo prints
# kernels: 6.12
# because: the README's sample is from there
# boot: virtual-clock
# programs: xtask

# The samples of the README are what it prints; what it would print instead is kept.
demo() {
    xtask demo --broken --program "$(command -v dmtrace)" --actor "$(command -v cookie-actor)" "$@"
}
if ! demo --check-docs --readme "$SUITE/README.md" >/tmp/shown 2>&1; then
    cat /tmp/shown
    cp "$SUITE/README.md" "$OUT/README.md"
    demo --write-docs --readme "$OUT/README.md" >/dev/null || true
    exit 1
fi
tail -n 5 /tmp/shown
have_cookies 0
trace
expect cookies created=0 live=0
