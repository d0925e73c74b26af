# Starts the program of an image without an engine: image.sh ROOT USER DIRECTORY NAME=VALUE... -- ENTRYPOINT...
# The mount namespace is ours alone.

root=$1 user=$2 directory=$3
shift 3
variables=
while [ "$1" != -- ]; do
    variables="$variables $1"
    shift
done
shift

mount --make-rprivate /
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"

# As an engine does it: that user, that environment and nothing else of ours, that directory.
start() {
    env -i $variables chroot --userspec="$user" "$root" /bin/sh -euc 'cd "$1"; shift; exec "$@"' start "$directory" "$@"
}
passed() {
    printf 'ok: %s\n' "$1" >&2
}

start "$@" --version | grep -q '^blockferry [0-9]'
passed 'it starts'

start "$@" copy --quiet sample:64M disk.raw
[ "$(stat -c %s "$root$directory/disk.raw")" = 67108864 ]
[ "$(stat -c %u:%g "$root$directory/disk.raw")" = "$user" ]
passed 'a copy, as its own user'

start "$@" copy --quiet --verify disk.raw disk.qcow2
start "$@" compare disk.raw disk.qcow2 >/dev/null
passed 'another format, verified'

# The names are found in the PATH that it sets, and the shell runs the command.
size=$(start "$@" serve --unix - --run 'nbdinfo --size "$uri"' disk.raw)
[ "$size" = 67108864 ]
passed 'a server, a shell and the name of another tool'

if start "$@" copy --quiet sample:1M /usr/disk.raw 2>/dev/null; then
    echo 'it may write to its own program' >&2
    exit 1
fi
passed 'its own files are not its to write'
