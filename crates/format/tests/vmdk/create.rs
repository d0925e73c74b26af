//! New images, written in every way there is, and read by qemu-img.

use std::{fs, path::Path, sync::Arc};

use blockferry_block::{
    BoxFuture, Buffer, ByteRange, ByteSink, ErrorKind, FileDevice, MemoryDevice, Operation, Result,
    WriteFlags, ZeroFlags,
    testing::{Fault, FaultyDevice, Rule, check_device},
};
use blockferry_format::{
    Image, NewImage, NoRelatives, OpenOptions,
    vmdk::{self, CreateOptions, Subformat},
};
use tempfile::tempdir;

use crate::{
    qemu::{is_installed, qemu_img},
    support::{compare, contents, details, open, varied},
};

const SUBFORMATS: [Subformat; 2] = [Subformat::StreamOptimized, Subformat::MonolithicSparse];

fn options(subformat: Subformat, size: Option<u64>) -> CreateOptions {
    let mut options = CreateOptions::default();
    (options.subformat, options.size) = (subformat, size);
    options
}

/// Writes `bytes` in order, in pieces of a few grains.
async fn write_all(image: &dyn NewImage, bytes: &[u8]) {
    for piece in ByteRange::between(0, bytes.len() as u64).pieces(5 << 16) {
        let data = Buffer::from(&bytes[piece.start() as usize..piece.end() as usize]);
        let written = image.write(piece.start(), data, WriteFlags::empty()).await;
        written.expect("written");
    }
}

/// The file that holds an image of `bytes`.
async fn made(bytes: &[u8], options: CreateOptions) -> Vec<u8> {
    let below = Arc::new(MemoryDevice::new(0).growable());
    let image = vmdk::create(below.clone(), options).await;
    let image = image.expect("begun");
    write_all(&*image, bytes).await;
    assert_holds(&*image, bytes, "before the end").await;
    image.finish().await.expect("finished");
    assert_holds(&*image, bytes, "after the end").await;
    below.contents()
}

async fn assert_holds(image: &dyn NewImage, bytes: &[u8], when: &str) {
    for piece in ByteRange::between(0, bytes.len() as u64).pieces(300_000) {
        let read = image
            .read(piece.start(), Buffer::zeroed(piece.len() as usize))
            .await;
        let expected = &bytes[piece.start() as usize..piece.end() as usize];
        assert!(read.expect("readable")[..] == *expected, "{when}");
    }
}

async fn read_back(file: Vec<u8>) -> Arc<dyn Image> {
    let below = Arc::new(MemoryDevice::from_bytes(file));
    let opened = vmdk::open(below, &NoRelatives, &OpenOptions::default()).await;
    opened.expect("sound")
}

/// Fails unless qemu-img finds the image in order, and the same bytes in it.
async fn check(directory: &Path, name: &str, bytes: &[u8]) {
    let image = open(directory, name).await;
    let mut expected = bytes.to_vec();
    expected.resize(bytes.len().next_multiple_of(512), 0);
    assert!(contents(&*image, 1 << 20).await == expected, "{name}");
    if is_installed() {
        let checked = qemu_img(directory, &format!("check -f vmdk {name}"));
        assert!(checked.contains("No errors were found"), "{checked}");
        fs::write(directory.join("expected"), &expected).expect("written");
        qemu_img(
            directory,
            &format!("compare -f vmdk -F raw {name} expected"),
        );
        compare(directory, name, &*image).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_reads_what_is_made_here() {
    let directory = tempdir().expect("a directory");
    let directory = directory.path();
    for subformat in SUBFORMATS {
        for (number, size) in [0, 1, 512, 65536, (1 << 20) + 777, 34 << 20]
            .into_iter()
            .enumerate()
        {
            for is_sized in [true, false] {
                let bytes = varied(size, 7 + size as u64);
                let options = options(subformat, is_sized.then_some(size as u64));
                let file = made(&bytes, options).await;
                let name = format!("{subformat:?}-{number}-{is_sized}.vmdk");
                fs::write(directory.join(&name), file).expect("written");
                // qemu opens no disks of nothing.
                match size {
                    0 => assert_eq!(open(directory, &name).await.info().size, 0),
                    _ => check(directory, &name, &bytes).await,
                }
            }
        }
    }
}

#[tokio::test]
async fn the_same_contents_in_order_make_the_same_file_whatever_threads_there_are() {
    let bytes = varied(3 << 20, 5);
    let mut files = Vec::new();
    for threads in [1, 2, 7] {
        let mut options = options(Subformat::StreamOptimized, Some(bytes.len() as u64));
        options.threads = threads;
        files.push(made(&bytes, options).await);
    }
    assert!(files[0] == files[1] && files[1] == files[2]);
    let other = varied(3 << 20, 6);
    let other = made(&other, options(Subformat::StreamOptimized, None)).await;
    let cid = async |file: &[u8]| details(&*read_back(file.to_vec()).await).cid;
    assert_ne!(cid(&files[0]).await, cid(&other).await);
}

/// What a reader meets that goes from front to back: grains by their places, and markers by their kinds.
fn walk(file: &[u8]) -> Vec<(&'static str, u64)> {
    let number = |at: usize, length: usize| {
        let bytes = file[at..at + length].iter().rev();
        bytes.fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let mut list = Vec::new();
    let mut at = 128 * 512;
    while at < file.len() {
        let (value, size) = (number(at, 8), number(at + 8, 4) as usize);
        if size > 0 {
            list.push(("grain", value));
            at = (at + 12 + size).next_multiple_of(512);
            continue;
        }
        let kind = ["end", "table", "directory", "footer"][number(at + 12, 4) as usize];
        list.push((kind, value));
        at += 512 + value as usize * 512;
    }
    assert_eq!(at, file.len());
    list
}

#[tokio::test]
async fn a_stream_is_read_from_front_to_back() {
    let mut bytes = vec![0; 70 << 20];
    for at in [0, 3 << 16, 31 << 20, 33 << 20, (70 << 20) - 65536] {
        bytes[at..at + 65536].copy_from_slice(
            &varied(65536, 3)
                .iter()
                .map(|byte| byte | 1)
                .collect::<Vec<_>>(),
        );
    }
    let file = made(
        &bytes,
        options(Subformat::StreamOptimized, Some(bytes.len() as u64)),
    )
    .await;
    let expected = [
        ("grain", 0),
        ("grain", 384),
        ("grain", 31 << 11),
        ("table", 4),
        ("grain", 33 << 11),
        ("table", 4),
        ("grain", (70 << 11) - 128),
        ("table", 4),
        ("directory", 1),
        ("footer", 1),
        ("end", 0),
    ];
    assert_eq!(walk(&file), expected);
}

#[tokio::test]
async fn tables_come_once_more_at_most_where_grains_come_in_another_order() {
    let below = Arc::new(MemoryDevice::new(0).growable());
    let options = options(Subformat::StreamOptimized, Some(64 << 20));
    let image = vmdk::create(below.clone(), options).await;
    let image = image.expect("begun");
    for grain in 0..40_u64 {
        // From both ends of two tables in turn.
        let start = grain % 2 * (32 << 20) + grain / 2 * 65536;
        let data = Buffer::from(&[1 + grain as u8; 65536][..]);
        let written = image.write(start, data, WriteFlags::empty()).await;
        written.expect("written");
        image.flush().await.expect("flushed");
    }
    image.finish().await.expect("finished");
    let file = below.contents();
    let tables = walk(&file).into_iter().filter(|(kind, _)| *kind == "table");
    assert_eq!(tables.count(), 3, "one of them was early");
    let image = read_back(file).await;
    let read = image.read(19 << 16, Buffer::zeroed(1)).await.expect("read");
    assert_eq!(read[0], 39);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn grains_may_come_out_of_order_from_many_tasks() {
    let directory = tempdir().expect("a directory");
    let directory = directory.path();
    let bytes = varied(36 << 20, 11);
    for subformat in SUBFORMATS {
        let name = format!("{subformat:?}.vmdk");
        let below = FileDevice::create(&directory.join(&name)).expect("a new file");
        let size = Some(bytes.len() as u64);
        let image = vmdk::create(Arc::new(below), options(subformat, size)).await;
        let image = image.expect("begun");
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..144_u64 {
            // Some of it twice, from other places first.
            let start = number * 101 % 144 * 4 * 65536;
            let image = Arc::clone(&image);
            let data = Buffer::from(&bytes[start as usize..][..4 * 65536]);
            tasks.spawn(async move {
                if number % 5 == 0 {
                    let other = Buffer::from(&[9; 2 * 65536][..]);
                    image
                        .write(start, other, WriteFlags::empty())
                        .await
                        .expect("written");
                    let range = ByteRange::between(start, start + 65536);
                    image.zero(range, ZeroFlags::empty()).await.expect("zeroed");
                }
                image
                    .write(start, data, WriteFlags::empty())
                    .await
                    .expect("written");
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.expect("no panic");
        }
        image.finish().await.expect("finished");
        check(directory, &name, &bytes).await;
    }
}

#[tokio::test]
async fn a_new_image_is_like_a_row_of_bytes() {
    for (seed, subformat) in (0..6).zip(SUBFORMATS.into_iter().cycle()) {
        let below = Arc::new(MemoryDevice::new(0).growable());
        let size = (1 << 20) + 512 * (seed % 3);
        let image = vmdk::create(below.clone(), options(subformat, Some(size))).await;
        let image = image.expect("begun");
        check_device(&*image, seed, 60).await;
        let expected = contents(&*image, 1 << 20).await;
        image.finish().await.expect("finished");
        let image = read_back(below.contents()).await;
        assert!(contents(&*image, 300_000).await == expected);
        check_device(&*image, seed, 60).await;
    }
}

#[tokio::test]
async fn what_fails_below_is_told_and_leaves_no_image() {
    for subformat in SUBFORMATS {
        let bytes = varied(2 << 20, 21);
        for skip in 0..6 {
            let memory = Arc::new(MemoryDevice::new(0).growable());
            let rule = Rule::on(Operation::Write).after(skip).times(1);
            let below = FaultyDevice::new(memory.clone())
                .with(rule.fault(Fault::Error(ErrorKind::NoSpace)));
            let image = vmdk::create(Arc::new(below), options(subformat, Some(2 << 20))).await;
            let image = image.expect("begun");
            let mut failed = false;
            for piece in ByteRange::between(0, 2 << 20).pieces(4 << 16) {
                let data = Buffer::from(&bytes[piece.start() as usize..piece.end() as usize]);
                match image.write(piece.start(), data, WriteFlags::empty()).await {
                    Ok(_) => {}
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::NoSpace);
                        assert_eq!(
                            (error.offset(), error.length()),
                            (Some(piece.start()), Some(piece.len()))
                        );
                        failed = true;
                    }
                }
            }
            match image.finish().await {
                Ok(()) => assert!(!failed, "{subformat:?} {skip}"),
                Err(_) => {
                    let below = Arc::new(MemoryDevice::from_bytes(memory.contents()));
                    let opened = vmdk::open(below, &NoRelatives, &OpenOptions::default()).await;
                    opened.expect_err("no image");
                }
            }
            image
                .write(0, Buffer::zeroed(65536), WriteFlags::empty())
                .await
                .expect_err("finished");
        }
    }
}

#[tokio::test]
async fn a_device_of_large_blocks_and_a_fixed_size_holds_an_image() {
    for subformat in SUBFORMATS {
        let bytes = varied(3 << 20, 31);
        let memory = Arc::new(MemoryDevice::from_bytes(vec![0x55; 6 << 20]));
        let below = FaultyDevice::new(memory.clone()).with_info(|info| {
            info.limits.minimum = 4096;
            info.limits.maximum = 128 << 10;
        });
        let image = vmdk::create(Arc::new(below), options(subformat, Some(3 << 20))).await;
        let image = image.expect("begun");
        write_all(&*image, &bytes).await;
        image.finish().await.expect("finished");
        let file = memory.contents();
        let directory = tempdir().expect("a directory");
        fs::write(directory.path().join("disk.vmdk"), &file).expect("written");
        check(directory.path(), "disk.vmdk", &bytes).await;
        let small = Arc::new(MemoryDevice::from_bytes(vec![0; 128 << 10]));
        let image = vmdk::create(small, options(subformat, Some(3 << 20))).await;
        let image = image.expect("begun");
        let noise = Buffer::from(&varied(1 << 20, 77)[..]);
        let _ = image.write(0, noise, WriteFlags::empty()).await;
        let error = image.finish().await.expect_err("no room");
        assert!(
            matches!(error.kind(), ErrorKind::NoSpace | ErrorKind::Io),
            "{error}"
        );
    }
}

/// Keeps what it gets.
struct Kept(Arc<str>, Arc<std::sync::Mutex<Vec<u8>>>);

impl ByteSink for Kept {
    fn name(&self) -> &Arc<str> {
        &self.0
    }

    fn write(&mut self, data: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        self.1.lock().expect("no panic").extend_from_slice(&data);
        Box::pin(async { Ok(data) })
    }

    fn flush(&mut self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

#[tokio::test]
async fn an_image_goes_to_a_stream() {
    let directory = tempdir().expect("a directory");
    let directory = directory.path();
    let bytes = varied(35 << 20, 41);
    let kept: Arc<std::sync::Mutex<Vec<u8>>> = Arc::default();
    let sink = Box::new(Kept(Arc::from("-"), Arc::clone(&kept)));
    let stream = options(Subformat::StreamOptimized, Some(bytes.len() as u64));
    let image = vmdk::create_streamed(sink, stream).await.expect("begun");
    write_all(&*image, &bytes).await;
    let error = image
        .read(0, Buffer::zeroed(512))
        .await
        .expect_err("a stream");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    image.finish().await.expect("finished");
    let file = kept.lock().expect("no panic").clone();
    fs::write(directory.join("disk.vmdk"), file).expect("written");
    check(directory, "disk.vmdk", &bytes).await;
    for wrong in [
        options(Subformat::MonolithicSparse, Some(1)),
        options(Subformat::StreamOptimized, None),
    ] {
        let sink = Box::new(Kept(Arc::from("-"), Arc::default()));
        let refused = vmdk::create_streamed(sink, wrong).await;
        assert_eq!(
            refused.expect_err("refused").kind(),
            ErrorKind::InvalidInput
        );
    }
}
