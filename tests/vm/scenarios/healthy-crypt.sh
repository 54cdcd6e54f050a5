# what: cryptsetup formats, opens and closes a volume.
# expect: no finding
loop 32M
printf secret >/tmp/key
trace
cryptsetup luksFormat -q --type luks1 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 "$loop" /tmp/key
cryptsetup open --key-file /tmp/key "$loop" c
cryptsetup close c
expect cookies created=2+ live=0
