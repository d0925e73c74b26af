//! Images to copy, and what is checked of their copies.

use std::{
    fs::File,
    io::Read,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

/// Bytes that look random and are the same for the same `seed`.
pub(crate) fn random_bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A file of `length` random bytes.
pub(crate) fn random_image(path: &Path, length: usize) {
    std::fs::write(path, random_bytes(length, 1)).expect("a writable directory");
}

/// A sparse file of `size` bytes with data of 100,000 bytes at each multiple of 3 MiB, and in its last
/// 4 KiB.
pub(crate) fn sparse_image(path: &Path, size: u64) {
    let file = File::create(path).expect("a writable directory");
    file.set_len(size).expect("room for holes");
    let mut offset = 0;
    while offset + 200_000 < size {
        file.write_all_at(&random_bytes(100_000, offset + 1), offset)
            .expect("room");
        offset += 3 << 20;
    }
    file.write_all_at(&random_bytes(4096, 7), size - 4096)
        .expect("room");
}

/// How many bytes `path` occupies on disk, once it is there: before, a file system may not have counted
/// what it will need to find them.
pub(crate) fn allocated(path: &Path) -> u64 {
    open(path).sync_all().expect("a file");
    path.metadata().expect("a file").blocks() * 512
}

/// Fails unless both files have the same bytes.
#[track_caller]
pub(crate) fn assert_same(one: &Path, other: &Path) {
    let length = |path: &Path| path.metadata().expect("a file").len();
    assert_eq!(
        length(one),
        length(other),
        "sizes of {} and {}",
        one.display(),
        other.display()
    );
    let (mut first, mut second) = (open(one), open(other));
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut offset = 0;
    loop {
        let count = first.read(&mut a).expect("readable");
        if count == 0 {
            return;
        }
        second
            .read_exact(&mut b[..count])
            .expect("as long as the other");
        if a[..count] != b[..count] {
            let position = (0..count).find(|&index| a[index] != b[index]);
            panic!(
                "the files differ at offset {}",
                offset + position.unwrap_or(0)
            );
        }
        offset += count;
    }
}

fn open(path: &Path) -> File {
    File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
