//! Files that the kernel copies by itself, and what happens where it cannot.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use blockferry_block::{
    Access, BlockDevice, ByteRange, CopyFlags, ErrorKind, FileDevice, Operation,
    testing::{Fault, FaultyDevice, Rule},
};
use blockferry_copy::{CopyError, CopyOptions, Order, Report, Side};
use tempfile::TempDir;

use crate::{copy_device, pattern};

const MIB: u64 = 1 << 20;
/// Several of the pieces that the kernel is given, and a last one that is short.
const SIZE: u64 = 25 * MIB + 12_345;
/// In the image: a hole.
const HOLE: ByteRange = ByteRange::between(9 * MIB, 22 * MIB);
/// In the image: zeroes that lie in the file.
const ZEROES: ByteRange = ByteRange::between(3 * MIB + 4096, 4 * MIB);

/// A sparse file and the place where its copy goes.
struct Files {
    directory: TempDir,
}

impl Files {
    /// An image of `size` bytes with a hole, and zeroes that are data.
    fn new(size: u64) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let files = Self { directory };
        let file = File::create(files.source()).expect("a file");
        file.set_len(size).expect("its size");
        for range in [
            ByteRange::between(0, HOLE.start().min(size)),
            ByteRange::between(HOLE.end().min(size), size),
        ] {
            let mut bytes = pattern(range.len() as usize, range.start() + 1);
            if range.contains(ZEROES) {
                bytes[ZEROES.start() as usize..ZEROES.end() as usize].fill(0);
            }
            file.write_all_at(&bytes, range.start()).expect("written");
        }
        files
    }

    fn source(&self) -> PathBuf {
        self.directory.path().join("from")
    }

    fn target(&self) -> PathBuf {
        self.directory.path().join("to")
    }

    /// A new file behind `rules`.
    fn faulty(&self, rules: impl IntoIterator<Item = Rule>) -> Arc<FaultyDevice> {
        let device = FileDevice::create(&self.target()).expect("created");
        let device = FaultyDevice::new(Arc::new(device));
        Arc::new(rules.into_iter().fold(device, FaultyDevice::with))
    }

    async fn copy(
        &self,
        to: &Arc<FaultyDevice>,
        options: &CopyOptions,
    ) -> Result<Report, CopyError> {
        let from = FileDevice::open(&self.source(), Access::ReadOnly).expect("opened");
        copy_device(&Arc::new(from), to, options).await
    }

    fn check(&self, what: &str) {
        let (from, to) = (fs::read(self.source()), fs::read(self.target()));
        assert!(from.expect("read") == to.expect("read"), "{what}");
    }

    /// Whether the kernel copies from file to file here.
    async fn kernel_copies(&self, flags: CopyFlags) -> bool {
        let from = FileDevice::open(&self.source(), Access::ReadOnly).expect("opened");
        let page = from.mapping(ByteRange::between(0, 4096)).to_file();
        let page = page.expect("a descriptor").expect("a file");
        let to = FileDevice::create(&self.directory.path().join("probe")).expect("created");
        to.copy_from(0, page, flags).await.is_ok()
    }
}

fn occupied(path: &Path) -> u64 {
    fs::metadata(path).expect("facts").blocks() * 512
}

fn blindly() -> CopyOptions {
    let mut options = CopyOptions::default();
    options.sparse = None;
    options
}

fn failing(kind: ErrorKind) -> Rule {
    Rule::on(Operation::Copy).fault(Fault::Error(kind))
}

#[tokio::test]
async fn the_kernel_copies_files_of_all_sizes() {
    for size in [0, 1, 4095, 4097, 8 * MIB, 8 * MIB + 1, SIZE] {
        let files = Files::new(size);
        let to = files.faulty([]);
        let report = files.copy(&to, &blindly()).await.expect("copied");
        files.check(&format!("{size} bytes"));
        assert_eq!(report.data + report.zero, size);
        assert_eq!(to.calls(Operation::Copy) > 0, size > 0);
        if size > 0 && files.kernel_copies(CopyFlags::empty()).await {
            let written = to.calls(Operation::Write) + to.calls(Operation::Read);
            assert_eq!(written, 0, "{size} bytes");
        }
    }
}

#[tokio::test]
async fn holes_stay_holes_where_the_kernel_copies() {
    let files = Files::new(SIZE);
    let to = files.faulty([]);
    let report = files.copy(&to, &blindly()).await.expect("copied");
    files.check("a hole");
    let (before, after) = (occupied(&files.source()), occupied(&files.target()));
    assert!(
        after <= before + MIB,
        "{after} bytes, {before} in the source"
    );
    assert!(report.zero == 0 || report.zero == HOLE.len());
}

#[tokio::test]
async fn what_is_to_be_allocated_gets_space_of_its_own() {
    let files = Files::new(SIZE);
    let to = files.faulty([]);
    let mut options = CopyOptions::default();
    options.allocated = true;
    files.copy(&to, &options).await.expect("copied");
    files.check("allocated");
    let space = occupied(&files.target());
    assert!(space >= SIZE, "{space} bytes of {SIZE}");
    if files.kernel_copies(CopyFlags::ALLOCATE).await {
        assert_eq!(to.calls(Operation::Write), 0);
    }
}

#[tokio::test]
async fn where_blocks_cannot_be_shared_zeroes_are_looked_for_instead() {
    let files = Files::new(SIZE);
    let refuses = failing(ErrorKind::Unsupported);
    let to = files.faulty([refuses]);
    let report = files.copy(&to, &CopyOptions::default()).await;
    let report = report.expect("copied");
    files.check("not shared");
    // The zeroes in the data were found.
    assert_eq!(report.zero, HOLE.len() + ZEROES.len());
    assert!(to.calls(Operation::Write) > 0);
    // Nobody is asked again and again.
    assert!(to.calls(Operation::Copy) <= 4);
    assert!(occupied(&files.target()) < occupied(&files.source()));
}

#[tokio::test]
async fn what_the_file_system_here_makes_of_the_defaults_is_the_image() {
    for size in [12_345, SIZE] {
        let files = Files::new(size);
        let to = files.faulty([]);
        let copied = files.copy(&to, &CopyOptions::default()).await;
        copied.expect("copied");
        files.check("by default");
        assert!(to.calls(Operation::Copy) > 0);
    }
}

#[tokio::test]
async fn every_byte_is_right_when_the_kernel_gives_up_in_the_middle() {
    let mut allocated = CopyOptions::default();
    allocated.allocated = true;
    let mut unasked = blindly();
    unasked.extents = false;
    for options in [blindly(), allocated, unasked] {
        for (after, times) in [(1, 1), (2, u64::MAX)] {
            let files = Files::new(SIZE);
            let gives_up = failing(ErrorKind::Unsupported).after(after).times(times);
            let to = files.faulty([gives_up]);
            let report = files.copy(&to, &options).await.expect("copied");
            files.check(&format!("after {after}, {options:?}"));
            assert_eq!(report.data + report.zero, SIZE);
            assert!(to.calls(Operation::Write) > 0);
        }
    }
}

#[tokio::test]
async fn a_full_disk_is_the_destinations_fault() {
    let files = Files::new(SIZE);
    let to = files.faulty([failing(ErrorKind::NoSpace).after(1)]);
    let copied = files.copy(&to, &blindly()).await;
    let error = copied.expect_err("no space");
    assert_eq!(error.side, Side::Destination);
    assert_eq!(error.error.kind(), ErrorKind::NoSpace);
    assert_eq!(error.error.operation(), Some(Operation::Copy));
    assert!(error.error.offset().is_some() && error.error.length().is_some());
    assert_eq!(to.calls(Operation::Flush), 0);
}

#[tokio::test]
async fn a_source_that_ends_too_early_is_the_sources_fault() {
    let files = Files::new(SIZE);
    let to = files.faulty([failing(ErrorKind::UnexpectedEnd).after(1)]);
    let copied = files.copy(&to, &blindly()).await;
    let error = copied.expect_err("too short");
    assert_eq!(error.side, Side::Source);
    assert_eq!(error.error.kind(), ErrorKind::UnexpectedEnd);
}

#[tokio::test]
async fn a_file_that_was_cut_off_is_never_copied_as_a_whole() {
    for extents in [true, false] {
        for options in [blindly(), CopyOptions::default()] {
            let mut options = options;
            options.extents = extents;
            let files = Files::new(SIZE);
            let from = FileDevice::open(&files.source(), Access::ReadOnly).expect("opened");
            let to = files.faulty([]);
            let cut = File::options().write(true).open(files.source());
            cut.expect("opened").set_len(2 * MIB + 99).expect("cut");
            let copied = copy_device(&Arc::new(from), &to, &options).await;
            let error = copied.expect_err("too short");
            assert_eq!(error.side, Side::Source, "{error}");
            assert_eq!(error.error.kind(), ErrorKind::UnexpectedEnd, "{error}");
        }
    }
}

#[tokio::test]
async fn from_front_to_back_means_reading_and_writing() {
    let files = Files::new(10 * MIB + 1);
    let to = files.faulty([]);
    let mut options = blindly();
    options.order = Order::Ascending;
    files.copy(&to, &options).await.expect("copied");
    files.check("in order");
    assert_eq!(to.calls(Operation::Copy), 0);
    assert!(to.calls(Operation::Write) > 0);
}
