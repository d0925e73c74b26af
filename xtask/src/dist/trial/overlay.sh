# Runs a script in an overlay over this system, which is gone with our mount namespace:
# overlay.sh SCRIPT PACKAGE ARGUMENTS...

script=$1 package=$2
shift 2

mount --make-rprivate /
# In memory: an overlay's own files must not lie below what it covers.
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
root=/mnt/root
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work "$root" || {
    echo 'no overlay can be mounted over /: the package would have to go into this system itself' >&2
    exit 1
}
for directory in /dev /sys; do
    mount --rbind "$directory" "$root$directory"
done
mount -t proc proc "$root/proc"
for directory in /tmp /run; do
    mount -t tmpfs tmpfs "$root$directory"
done
# Systems in containers leave documents out of what they install; here they are to be read.
rm -f "$root"/etc/dpkg/dpkg.cfg.d/*
cp "$package" "$root/tmp/new.deb"

env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
    chroot "$root" sh -euc "$script" deb.sh /tmp/new.deb "$@"
