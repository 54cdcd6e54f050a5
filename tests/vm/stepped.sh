# Programs that cookie-stepper stops at each system call, for the scenario stepped-holders and for
# `cargo xtask stepper`. Both say what `step` is.

# stepped_setup: what the programs need.
stepped_setup() {
    folder=/var/tmp/stepped
    mkdir -p $folder
    loop 64M
    disk=$loop
    head -c 64 /dev/urandom >/tmp/key
    loop 128M
    pvcreate -q "$loop"
    vgcreate -q -s 1M vg "$loop"
    cat >/tmp/transaction.sh <<'END'
c=$(dmsetup udevcreatecookie)
c=${c##*=}
dmsetup create stepped --table '0 2048 zero' --udevcookie $c
dmsetup udevreleasecookie $c
dmsetup remove stepped
END
    cat >/tmp/exported.sh <<'END'
c=$(dmsetup udevcreatecookie)
export DM_UDEV_COOKIE=${c##*=}
dmsetup create stepped --table '0 2048 zero'
dmsetup udevreleasecookie
unset DM_UDEV_COOKIE
dmsetup remove stepped
END
    cat >/tmp/transaction.py <<'END'
import subprocess
def run(*words):
    return subprocess.check_output(["dmsetup", *words])
cookie = int(run("udevcreatecookie").split(b"=")[-1], 16)
run("create", "stepped", "--table", "0 2048 zero", "--udevcookie", hex(cookie))
run("udevreleasecookie", hex(cookie))
run("remove", "stepped")
END
    cat >/tmp/transaction.pl <<'END'
$c = `dmsetup udevcreatecookie`;
chomp $c;
$c =~ s/.*=//;
system("dmsetup", "create", "stepped", "--table", "0 2048 zero", "--udevcookie", $c);
system("dmsetup", "udevreleasecookie", $c);
system("dmsetup", "remove", "stepped");
END
}

# stepped_devices: programs that make and change devices.
stepped_devices() {
    step dmsetup create stepped --table '0 2048 zero'
    step dmsetup rename stepped renamed
    step sh -c 'dmsetup suspend renamed; dmsetup resume renamed'
    step dmsetup remove renamed
    step cookie-actor device --name stepped
    step cookie-actor cycle --events 2
    step lvcreate -q -y -W n -Z n -L 1M -n a vg
    step lvchange -q -an vg/a
    step lvchange -q -ay vg/a
    step lvextend -q -L 2M vg/a
    step lvrename -q vg a b
    step lvremove -q -y vg/b
    step cryptsetup open --type plain --cipher aes-cbc-essiv:sha256 --key-size 256 \
        --key-file /tmp/key "$disk" stepped
    step cryptsetup close stepped
}

# stepped_scripts: a cookie for several programs, kept by a script.
stepped_scripts() {
    for shell in bash sh ksh93 'busybox sh'; do
        step $shell /tmp/transaction.sh
        step $shell /tmp/exported.sh
    done
    step python3 /tmp/transaction.py
    step perl /tmp/transaction.pl
    step unshare --ipc sh -c 'c=$(dmsetup udevcreatecookie); dmsetup udevreleasecookie ${c##*=}'
    step sh -c 'dmsetup udevcreatecookie | { read -r c; dmsetup udevreleasecookie ${c##*=}; }'
    step sh -c "dmsetup udevcreatecookie >$folder/kept; read -r c <$folder/kept; \
        dmsetup udevreleasecookie \${c##*=}; rm $folder/kept"
}
