# Installs, uses, upgrades, removes and purges the package: deb.sh PACKAGE VERSION "NAMES"

deb=$1 version=$2 names=$3
directory=/usr/lib/blockferry

passed() {
    printf 'ok: %s\n' "$1" >&2
}
failed() {
    printf 'failed: %s\n' "$1" >&2
    exit 1
}
# What there is, and where links lead; without what dpkg and others note for themselves.
inventory() {
    find /etc /opt /srv /usr /var /var/lib/dpkg/alternatives \
        \( -path /var/cache -o -path /var/log -o -path /var/lib/apt -o -path /var/lib/dpkg \) -prune -o \
        \( -type l -printf '%p -> %l\n' \) -o -printf '%p\n' | sort
}
# The tools of others, byte for byte.
originals() {
    for name in $names; do
        if [ -e "/usr/bin/$name" ]; then
            sha256sum "/usr/bin/$name"
        fi
    done
}

if dpkg --status blockferry >/dev/null 2>&1; then
    dpkg --purge blockferry
fi
cd /tmp
inventory >before
originals >originals

# An earlier version: the same, but for its number.
dpkg-deb --raw-extract "$deb" old
sed -i 's/^Version: .*/Version: 0.0.1-1/' old/DEBIAN/control
dpkg-deb --build --root-owner-group -Znone old old.deb >/dev/null

dpkg --install old.deb
passed 'it installs, with what this system has'

blockferry --version | grep -qx "blockferry $version" || failed 'the program tells another version'
blockferry copy --quiet --verify sample:64M disk.raw
blockferry copy --quiet disk.raw disk.qcow2
blockferry compare disk.raw disk.qcow2 >/dev/null
passed 'a copy of a sample, into a format, and back'

MANPAGER=cat man blockferry | grep -q 'blockferry-copy(1)' || failed 'the manual'
for page in blockferry-copy blockferry-serve blockferry-drop-in; do
    MANPAGER=cat man "$page" | grep -q 'DESCRIPTION' || failed "the manual of $page"
done
warnings=$(find /usr/share/man -name 'blockferry*' -exec man --warnings --encoding=UTF-8 --local-file {} \; 2>&1 >/dev/null)
[ -z "$warnings" ] || failed "the manual: $warnings"
passed 'the manual, through man'

# As readline asks: the command, its word, the one before.
completed=$(bash -euc '
    . /usr/share/bash-completion/completions/blockferry
    COMP_WORDS=(blockferry chec) COMP_CWORD=1
    _blockferry blockferry chec blockferry
    echo "${COMPREPLY[*]}"')
[ "$completed" = 'check checksum' ] || failed "bash completes 'chec' to '$completed'"
passed 'completion, through bash'

originals | cmp -s - originals || failed 'the tools of others have changed'
for name in $names; do
    "$directory/bin/$name" --version | head -n 1 | grep -q "$name" || failed "$name does not answer to its name"
    ! "/usr/bin/blockferry" --version | grep -q "$name" || failed "blockferry answers to $name"
done
PATH=$directory/bin:$PATH
size=$(nbdkit --exit-with-parent -U - memory 1M --run 'nbdinfo --size "$uri"')
[ "$size" = 1048576 ] || failed "nbdkit and nbdinfo say $size"
nbdcopy -- [ qemu-nbd -r -f raw disk.raw ] copied.raw
qemu-img compare -f raw -F raw disk.raw copied.raw >/dev/null
for name in $names; do
    MANPAGER=cat man "$name" | grep -q 'under the names' || failed "the manual of $name is $(man --where "$name")"
done
passed "the names $names, and their manual"

# An administrator's choice.
link=$directory/bin/nbdcopy
update-alternatives --quiet --install "$link" blockferry-nbdcopy /usr/bin/true 10
[ "$(readlink -f "$link")" = /usr/bin/blockferry ] || failed 'the other one wins without being chosen'
update-alternatives --quiet --set blockferry-nbdcopy /usr/bin/true

dpkg --install "$deb"
[ "$(dpkg-query --show --showformat '${Version}' blockferry)" = "$version-1" ] || failed 'the version after the upgrade'
[ "$(readlink -f "$link")" = /usr/bin/true ] || failed 'the upgrade has undone what was chosen'
update-alternatives --quiet --auto blockferry-nbdcopy
[ "$(readlink -f "$link")" = /usr/bin/blockferry ] || failed 'the choice cannot be taken back'
update-alternatives --quiet --remove blockferry-nbdcopy /usr/bin/true
passed 'an upgrade, which keeps what was chosen'

inventory >installed
/var/lib/dpkg/info/blockferry.postinst configure "$version-1"
inventory | cmp -s - installed || failed 'configuring it twice is not the same as once'
passed 'its scripts may run again'

units=/usr/share/doc/blockferry/examples
mkdir -p /etc/blockferry
cp "$units"/* /etc/systemd/system/
printf 'SOURCE=/tmp/disk.raw\nOPTIONS=--read-only\n' >/etc/blockferry/trial.conf
systemd-analyze verify /etc/systemd/system/blockferry-serve@trial.socket /etc/systemd/system/blockferry-serve@trial.service
rm -r /etc/blockferry /etc/systemd/system/blockferry-serve@*
# What the service runs, started as systemd would: by the first client.
systemd-socket-activate --listen=/tmp/trial.sock blockferry serve --once --read-only disk.raw 2>activated &
for attempt in $(seq 100); do
    [ ! -S trial.sock ] || break
    sleep 0.1
done
blockferry compare 'nbd+unix:///?socket=/tmp/trial.sock' disk.raw >/dev/null || failed "by its socket: $(cat activated)"
wait
passed 'the units, and a server that its socket starts'

dpkg --remove blockferry
[ ! -e "$directory" ] || failed "something stays after the removal: $(find $directory)"
inventory | cmp -s - before || failed "something stays after the removal: $(inventory | diff before -)"
passed 'nothing stays when it is removed'

dpkg --install "$deb"
update-alternatives --quiet --install "$link" blockferry-nbdcopy /usr/bin/true 10
dpkg --purge blockferry
inventory | cmp -s - before || failed "something stays after the purge: $(inventory | diff before -)"
originals | cmp -s - originals || failed 'the tools of others have changed'
passed 'nothing stays when it is purged, whatever was chosen'
