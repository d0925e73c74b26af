//! Contents, writers, and qemu-img, which says whether an image is one.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
};

use blockferry_block::{
    BlockDevice, Buffer, ByteRange, Capabilities, FileDevice, MemoryDevice, WriteFlags, ZeroFlags,
};
use blockferry_format::{
    NewImage,
    qcow2::{self, CreateOptions},
};

/// Whether there is a qemu-img to ask. Says so where there is none.
pub(crate) fn has_qemu_img() -> bool {
    let found = Command::new("qemu-img").arg("--version").output().is_ok();
    if !found {
        println!("not tested: there is no qemu-img");
    }
    found
}

/// What qemu-img says, which succeeds.
#[track_caller]
pub(crate) fn qemu_img(arguments: &[&str]) -> String {
    let output = run_qemu_img(arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {text}{error}");
    text
}

pub(crate) fn run_qemu_img(arguments: &[&str]) -> Output {
    let mut command = Command::new("qemu-img");
    command.args(arguments).output().expect("qemu-img runs")
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("a plain name")
}

/// Numbers that look random and are the same for the same seed (SplitMix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let state = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^ (state >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
}

/// Contents of `size` bytes in blocks of `block`: zeroes, text that compresses, noise that does not.
pub(crate) fn contents(size: usize, block: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut bytes = vec![0; size];
    for block in bytes.chunks_mut(block) {
        match random.below(5) {
            0 | 1 => {}
            2 => block
                .iter_mut()
                .for_each(|byte| *byte = random.next() as u8),
            3 => {
                let word = random.next().to_le_bytes();
                for (index, byte) in block.iter_mut().enumerate() {
                    *byte = word[index % 8] | (index as u8 & 0x11);
                }
            }
            _ => {
                let at = random.below(block.len() as u64) as usize;
                block[at] = 1 + random.below(255) as u8;
            }
        }
    }
    bytes
}

/// The usual options but for what `change` changes.
pub(crate) fn options(change: impl FnOnce(&mut CreateOptions)) -> CreateOptions {
    let mut options = CreateOptions::default();
    change(&mut options);
    options
}

/// A directory and the files in it.
pub(crate) struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        Self { directory }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn file(&self, name: &str) -> Arc<dyn BlockDevice> {
        Arc::new(FileDevice::create(&self.path(name)).expect("a new file"))
    }
}

pub(crate) fn memory() -> Arc<dyn BlockDevice> {
    Arc::new(MemoryDevice::new(0).growable())
}

/// All bytes of an image, read through requests of any length.
pub(crate) async fn read_all(device: &dyn BlockDevice, size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size);
    let longest = u64::from(device.info().limits.maximum).min(1 << 20);
    for piece in ByteRange::between(0, size as u64).pieces(longest) {
        let read = device.read(piece.start(), Buffer::zeroed(piece.len() as usize));
        bytes.extend_from_slice(&read.await.expect("readable"));
    }
    bytes
}

/// Writes `bytes` in pieces of random lengths, out of order, by many tasks; zeroes by requests, by writing them,
/// or, where that is right, not at all.
pub(crate) async fn write_all(image: &Arc<dyn NewImage>, bytes: &[u8], seed: u64) {
    let cluster = u64::from(image.info().limits.minimum);
    let mut random = Random(seed ^ 0x5555);
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < bytes.len() as u64 {
        let end = at + (1 + random.below(9)) * cluster;
        let end = end.min(bytes.len() as u64);
        pieces.push(ByteRange::between(at, end));
        at = end;
    }
    for index in (1..pieces.len()).rev() {
        pieces.swap(index, random.below(index as u64 + 1) as usize);
    }
    let born_zero = image.info().can(Capabilities::BORN_ZERO);
    let mut tasks = tokio::task::JoinSet::new();
    for (index, piece) in pieces.into_iter().enumerate() {
        let data = &bytes[piece.start() as usize..piece.end() as usize];
        let is_zero = blockferry_block::is_zero(data);
        let data = Buffer::from(data);
        let image = Arc::clone(image);
        tasks.spawn(async move {
            match index % 3 {
                0 if is_zero && born_zero => {}
                1 if is_zero => {
                    let zero = image.zero(piece, ZeroFlags::empty());
                    zero.await.expect("zeroed");
                }
                _ => {
                    let write = image.write(piece.start(), data, WriteFlags::empty());
                    write.await.expect("written");
                }
            }
        });
        if tasks.len() > 8 {
            tasks.join_next().await.expect("a task").expect("no panic");
        }
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no panic");
    }
}

/// Makes an image of `bytes` in `below`.
pub(crate) async fn make(
    below: &Arc<dyn BlockDevice>,
    options: CreateOptions,
    bytes: &[u8],
    seed: u64,
) -> Arc<dyn NewImage> {
    let is_sized = options.size.is_some();
    let image = qcow2::create(Arc::clone(below), options).await;
    let image = image.expect("begun");
    if !is_sized && seed.is_multiple_of(2) {
        image.resize(bytes.len() as u64).await.expect("resized");
    }
    write_all(&image, bytes, seed).await;
    if !is_sized {
        image.resize(bytes.len() as u64).await.expect("resized");
    }
    image
}

/// Fails unless qemu-img finds the image in order, and the same bytes in it.
#[track_caller]
pub(crate) fn assert_image(place: &Place, name: &str, bytes: &[u8], what: &str) {
    if !has_qemu_img() {
        return;
    }
    let path = place.path(name);
    let check = run_qemu_img(&["check", "-f", "qcow2", text(&path)]);
    let told = String::from_utf8_lossy(&check.stdout).into_owned()
        + &String::from_utf8_lossy(&check.stderr);
    assert!(check.status.success(), "{what}: {told}");
    assert!(told.contains("No errors were found"), "{what}: {told}");
    let raw = place.path("converted.raw");
    let convert = [
        "convert",
        "-f",
        "qcow2",
        "-O",
        "raw",
        text(&path),
        text(&raw),
    ];
    qemu_img(&convert);
    let converted = std::fs::read(&raw).expect("a file");
    let mut bytes = bytes.to_vec();
    // qemu knows only whole sectors.
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    assert_eq!(converted.len(), bytes.len(), "{what}: the size");
    let difference = converted
        .iter()
        .zip(&bytes)
        .position(|(one, other)| one != other);
    assert_eq!(difference, None, "{what}: the first byte that differs");
}
