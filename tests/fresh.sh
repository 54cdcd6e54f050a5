#!/usr/bin/env bash
# The README's two commands on a machine that nobody has prepared. Everything that such a machine
# may lack is taken away in a copy of this one: a mount namespace whose root is an overlay, so that
# nothing here changes, whatever is removed or installed there.
#
#   tests/fresh.sh [--no-cache] [--run COMMAND] [OPTION OF cargo xtask test]...
#
#   --no-cache      also without cargo's registry and the toolchain's added components: all of it is
#                   fetched again
#   --run COMMAND   run this there (sh -c) in the cloned folder instead of the two commands
#
# Without options the tests run with --no-vm. Needs root, overlayfs, 15 GB in TMPDIR (/var/tmp).
# What is tested is HEAD. See docs/architecture.md, "A fresh machine".
set -euo pipefail

fail() {
    printf 'fresh: %s\n' "$1" >&2
    exit 1
}

say() {
    printf '== fresh: %s\n' "$1"
}

# Packages of Debian, and programs that came without one.
packages=(
    'golang*' 'gccgo*' gdb 'gdb-*' prometheus 'qemu-system*' qemu-utils 'qemu-user*' debootstrap
    mmdebstrap bpftool bpftrace strace 'clang*' 'llvm*' 'lld*' 'libllvm*' 'liblldb*' lvm2 dmsetup
    cryptsetup-bin kpartx binfmt-support busybox 'docker*' podman
)
programs=(
    go gofmt gdb promtool 'qemu-*' debootstrap mmdebstrap bpftool bpftrace strace 'clang*' 'llvm-*'
    llc opt 'lld*' ld.lld dmsetup lvm docker podman shellcheck
)
folders=(/usr/local/go /usr/lib/go-* /usr/lib/llvm-* /var/cache/dmtrace* /run /tmp)

no_cache=
run=
while [ $# -gt 0 ]; do
    case $1 in
    --no-cache) no_cache=1 ;;
    --run)
        run=${2:?--run: needs a command}
        shift
        ;;
    *) break ;;
    esac
    shift
done
[ $# -gt 0 ] || set -- --no-vm
repo=$(cd "$(dirname "$0")/.." && pwd)

# The copy: below $1, with all real file systems of this machine, and kernel file systems as after
# boot without systemd's mounts.
copy() {
    local root=$1/root number=0 at
    # Without the table of the caller's mounts nothing is shared with it.
    while read -r at; do
        [ "$at" = / ] || [ -d "$root$at" ] || continue
        case $at/ in "$1"/*) continue ;; esac
        number=$((number + 1))
        mkdir -p "$1/$number/upper" "$1/$number/work" "$root"
        mount -t overlay overlay "$root${at%/}" \
            -o "lowerdir=$at,upperdir=$1/$number/upper,workdir=$1/$number/work" ||
            fail "$at: no overlay on it; choose another file system: TMPDIR=DIR $0"
    done < <(printf '/\n'; findmnt -rno TARGET --real | grep -vx / | while read -r at; do
        [ ! -d "$at" ] || printf '%s\n' "$at"
    done | sort -u)
    mkdir -p "$root/proc" "$root/sys" "$root/dev" "$root/run" "$root/tmp"
    # What a program finds there belongs to this machine.
    mount -t proc proc "$root/proc"
    mount -t sysfs sysfs "$root/sys"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs -o mode=755 run "$root/run"
    mount -t tmpfs -o mode=1777 tmp "$root/tmp"
    if mountpoint -q /sys/fs/cgroup; then
        mount --rbind /sys/fs/cgroup "$root/sys/fs/cgroup"
    fi
    # It may be a link into /run.
    cat /etc/resolv.conf >"$1/resolv.conf" 2>/dev/null || :
    rm -f "$root/etc/resolv.conf"
    cp "$1/resolv.conf" "$root/etc/resolv.conf"
}

# In the copy: removes what a fresh machine may lack.
strip() {
    local pattern found=() dir channel toolchain kept
    if command -v dpkg-query >/dev/null; then
        for pattern in "${packages[@]}"; do
            mapfile -t -O ${#found[@]} found < <(dpkg-query -Wf '${db:Status-Abbrev}${Package}\n' \
                "$pattern" 2>/dev/null | sed -n 's/^.i *//p')
        done
        if [ ${#found[@]} -gt 0 ]; then
            printf '%s\n' "${found[@]}" | sort -u |
                DEBIAN_FRONTEND=noninteractive xargs dpkg --force-all --purge >/run/purge.log 2>&1 ||
                say "dpkg left something; see what follows"
        fi
    fi
    local IFS=:
    for dir in $PATH; do
        for pattern in "${programs[@]}"; do
            # shellcheck disable=SC2086 # the pattern is to be expanded
            rm -rf "${dir:?}/"$pattern
        done
    done
    unset IFS
    for dir in "${folders[@]}"; do
        mountpoint -q "$dir" || rm -rf "$dir"
    done
    rm -rf "${HOME:?}/.cache" "$HOME/go"
    rm -f "$cargo/bin/bpf-linker"
    channel=$(sed -n 's/^channel *= *"\(.*\)"/\1/p' "$repo/rust-toolchain.toml")
    # Other toolchains have another LLVM. The pinned one may be a link to one of them.
    dir=${RUSTUP_HOME:-$HOME/.rustup}/toolchains
    kept=$(realpath "$dir/$channel"-*)
    for toolchain in "$dir"/*; do
        case $(realpath "$toolchain") in "$kept") ;; *) rm -rf "$toolchain" ;; esac
    done
    [ -n "$no_cache" ] || return 0
    rm -rf "$cargo/registry"
    for pattern in rust-src rustfmt clippy; do
        rustup component remove --toolchain "$channel" "$pattern" >/dev/null 2>&1 || :
    done
}

# In the copy: nothing of it is left.
stripped() {
    local program left=()
    for program in go gdb promtool qemu-system-x86_64 mmdebstrap debootstrap bpftool bpftrace strace \
        clang llc bpf-linker; do
        ! command -v "$program" >/dev/null || left+=("$program")
    done
    [ ${#left[@]} = 0 ] || fail "not taken away: ${left[*]}"
    local kernel
    kernel=$(awk '$3 ~ /^(tracefs|debugfs|securityfs|bpf)$/ { print $2 }' /proc/self/mounts)
    [ -z "$kernel" ] || fail "mounted: $kernel"
}

# The README's first command, and what it promises.
demo() {
    local output=/run/demo.out status=0 sets mounts verb
    sets=$(cat /proc/sysvipc/sem)
    mounts=$(cat /proc/self/mounts)
    say "cargo xtask demo"
    cargo xtask demo 2>&1 | tee "$output" || status=$?
    [ "$status" = 0 ] || fail "cargo xtask demo: exit code $status"
    for verb in watch list report explain clean; do
        grep -q "^\$ dmtrace $verb" "$output" || fail "cargo xtask demo: does not show $verb"
    done
    tail -n 2 "$output" | grep -q 'cargo xtask run -- watch' ||
        fail "cargo xtask demo: does not say what comes next"
    local wide
    wide=$(sed -n '/^\$ dmtrace watch/,$p' "$output" | awk 'length > 80' | head -n 1)
    [ -z "$wide" ] || fail "cargo xtask demo: more than 80 columns: $wide"
    [ "$sets" = "$(cat /proc/sysvipc/sem)" ] || fail "cargo xtask demo: left semaphores"
    [ "$mounts" = "$(cat /proc/self/mounts)" ] || fail "cargo xtask demo: mounted something"
    git diff --quiet || fail "cargo xtask demo: changed files of the repository"
    local since=$SECONDS
    cargo xtask demo >/dev/null 2>&1 || fail "cargo xtask demo: fails when it is repeated"
    say "a second demo, without a build: $((SECONDS - since)) s"
}

# The README's second command: its last line is the sum.
tests() {
    local output=/run/test.out status=0
    say "cargo xtask test $*"
    cargo xtask test "$@" 2>&1 | tee "$output" || status=$?
    tail -n 1 "$output" | grep -Eq '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' ||
        fail "cargo xtask test: its last line is no sum"
    [ "$status" = 0 ] || fail "cargo xtask test: exit code $status"
}

cargo=${CARGO_HOME:-$HOME/.cargo}
case ${FRESH_STAGE:-} in
'')
    [ "$(id -u)" = 0 ] || fail "needs root"
    for program in git findmnt unshare chroot; do
        command -v "$program" >/dev/null || fail "$program: not in PATH; install it"
    done
    work=$(mktemp -d "${TMPDIR:-/var/tmp}/dmtrace-fresh.XXXXXX")
    # Its mounts have ended with their namespace.
    trap 'rm -rf "$work"' EXIT
    options=()
    [ -z "$no_cache" ] || options+=(--no-cache)
    [ -z "$run" ] || options+=(--run "$run")
    FRESH_STAGE=copy FRESH_WORK=$work unshare --mount --propagation private \
        bash "$0" "${options[@]}" "$@" || exit $?
    ;;
copy)
    copy "$FRESH_WORK"
    options=()
    [ -z "$no_cache" ] || options+=(--no-cache)
    [ -z "$run" ] || options+=(--run "$run")
    export FRESH_STAGE=inside
    exec chroot "$FRESH_WORK/root" bash "$repo/tests/fresh.sh" "${options[@]}" "$@"
    ;;
inside)
    unset FRESH_STAGE FRESH_WORK CARGO_TARGET_DIR TMPDIR DMTRACE_BPF_OBJECT DMTRACE_TESTS_REQUIRE
    cd /
    say "taking away what a fresh machine may lack"
    strip
    stripped
    say "cloning $(git -C "$repo" rev-parse --short HEAD) into an empty folder"
    mkdir /fresh
    git clone -q --no-hardlinks --no-checkout "$repo" /fresh/dmtrace
    cd /fresh/dmtrace
    git checkout -q "$(git -C "$repo" rev-parse HEAD)"
    if [ -n "$run" ]; then
        exec sh -c "$run"
    fi
    demo
    tests "$@"
    say "both commands do what the README says"
    ;;
esac
