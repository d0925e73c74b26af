//! Images of every kind, written through everything there is and compared with a row of bytes; afterwards they are
//! sound, and so say we and `qemu-img`.

mod crash;
mod failures;
mod qemu;
mod side_by_side;

use blockferry_block::{
    BlockDevice, BoxFuture, MemoryDevice, Operation,
    testing::{FaultyDevice, check_device},
};

use super::*;
use crate::{
    Image as _, NoRelatives, Related, RelatedFile, RelatedImage,
    qcow2::{
        Image, OpenOptions, check,
        testing::{Content, ImageBuilder, details},
    },
};

/// Opens other files as these devices.
#[derive(Clone, Default)]
pub(crate) struct Relatives {
    pub(crate) backing: Option<Arc<dyn BlockDevice>>,
    pub(crate) data: Option<Arc<dyn BlockDevice>>,
}

impl Related for Relatives {
    fn open<'a>(
        &'a self,
        file: &'a RelatedFile,
        writable: bool,
    ) -> BoxFuture<'a, Result<RelatedImage>> {
        let device = match file.role {
            crate::Role::Backing => &self.backing,
            _ => &self.data,
        };
        match device {
            Some(device) => Box::pin(async move { Ok(Arc::clone(device).into()) }),
            None => NoRelatives.open(file, writable),
        }
    }
}

fn writable() -> OpenOptions {
    OpenOptions {
        writable: true,
        ..OpenOptions::default()
    }
}

pub(crate) async fn open_with(below: Arc<dyn BlockDevice>, relatives: &Relatives) -> Image {
    let opened = Image::open(below, relatives, &writable()).await;
    opened.expect("it can be written")
}

async fn open(below: Arc<dyn BlockDevice>) -> Image {
    open_with(below, &Relatives::default()).await
}

/// A cluster that looks like text.
pub(crate) fn text(number: u64, size: u64) -> Vec<u8> {
    let words = (0..size / 8).flat_map(|at| (number * 1_000 + at % 100).to_le_bytes());
    words.collect()
}

/// One of everything, some of it in a row.
pub(crate) fn everything(cluster_bits: u32, clusters: u64) -> ImageBuilder {
    let size = 1 << cluster_bits;
    let mut image = ImageBuilder::new(cluster_bits, clusters * size - size / 2 + 13);
    for number in 0..clusters {
        image = match number % 10 {
            1 | 2 | 6 => image.with(number, Content::Data(text(number, size))),
            3 => image.with(number, Content::Zero),
            4 => image.with(number, Content::ZeroKept),
            7 | 8 => image.with(number, Content::Compressed(text(number, size))),
            _ => image,
        };
    }
    image
}

pub(crate) fn subclusters(clusters: u64) -> ImageBuilder {
    let mut image = everything(14, clusters);
    image.geometry.extended = true;
    let bytes = text(77, 1 << 14);
    image
        .with(0, Content::Mixed(0x00ff_0f01, 0xff00_0000, bytes.clone()))
        .with(5, Content::Mixed(0, 0x8000_0001, bytes.clone()))
        .with(9, Content::Mixed(0xffff_fffe, 0, bytes))
}

pub(crate) fn backed(mut image: ImageBuilder) -> ImageBuilder {
    image.backing = Some((b"base".to_vec(), "raw".to_owned()));
    image
}

pub(crate) fn with_order(mut image: ImageBuilder, order: u32) -> ImageBuilder {
    image.geometry.refcount_order = order;
    image
}

pub(crate) fn memory(image: &ImageBuilder) -> Arc<MemoryDevice> {
    Arc::new(MemoryDevice::from_bytes(image.build()).growable())
}

/// The image as it is now in the device.
pub(crate) fn copy(below: &MemoryDevice) -> Arc<MemoryDevice> {
    Arc::new(MemoryDevice::from_bytes(below.contents()).growable())
}

pub(crate) async fn contents(device: &dyn BlockDevice) -> Vec<u8> {
    let buffer = Buffer::zeroed(device.info().size as usize);
    device.read(0, buffer).await.expect("read").to_vec()
}

pub(crate) async fn check_clean(below: &MemoryDevice, what: &str) {
    let report = check(&*copy(below)).await.expect("checked");
    assert!(report.is_clean(), "{what}: {report:?}");
}

/// Images of all kinds, with what they need.
pub(crate) fn kinds() -> Vec<(String, ImageBuilder, Relatives)> {
    let behind = |size: usize| Relatives {
        backing: Some(Arc::new(MemoryDevice::from_bytes(text(5, size as u64)))),
        data: None,
    };
    let none = Relatives::default;
    let mut kinds = vec![
        ("512".to_owned(), everything(9, 200), none()),
        ("4k".to_owned(), everything(12, 40), none()),
        ("64k".to_owned(), everything(16, 12), none()),
        ("subclusters".to_owned(), subclusters(20), none()),
        ("empty".to_owned(), ImageBuilder::new(9, 150_003), none()),
        (
            "backed".to_owned(),
            backed(everything(12, 40)),
            behind(150_000),
        ),
        (
            "backed subclusters".to_owned(),
            backed(subclusters(20)),
            behind(200_000),
        ),
        (
            "backed, empty".to_owned(),
            backed(ImageBuilder::new(10, 140_000)),
            behind(500_000),
        ),
    ];
    for order in 0..=6 {
        let image = with_order(ImageBuilder::new(9, 120_000), order);
        kinds.push((format!("order {order}"), image, none()));
    }
    let mut old = backed(ImageBuilder::new(12, 150_000));
    old.geometry.version = 2;
    kinds.push(("version 2".to_owned(), old.clone(), behind(100_000)));
    old.backing = None;
    kinds.push(("version 2, alone".to_owned(), old, none()));
    for extended in [false, true] {
        let mut outside = ImageBuilder::new(14, 500_000);
        outside.geometry.data_file = true;
        outside.geometry.extended = extended;
        let data: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new(500_000).growable());
        let relatives = Relatives {
            data: Some(data),
            ..none()
        };
        kinds.push((format!("data file, {extended}"), outside, relatives));
    }
    kinds
}

#[tokio::test]
async fn any_image_takes_any_request_and_is_clean_when_it_is_closed() {
    for (turn, (what, image, relatives)) in kinds().into_iter().enumerate() {
        let mut below = memory(&image);
        for round in 0..3 {
            below = copy(&below);
            let image = open_with(below_again(&below, round), &relatives).await;
            check_device(&image, (turn * 10 + round) as u64, 100).await;
            image.close().await.expect("closed");
            let expected = contents(&image).await;
            drop(image);
            check_clean(&below, &what).await;
            let again = Image::open(copy(&below), &relatives, &OpenOptions::default()).await;
            let again = again.expect("it opens again");
            assert!(
                contents(&again).await == expected,
                "{what}: it reads as it was"
            );
        }
    }
}

/// The same device, which takes only what keeps to blocks of a size of its own.
fn below_again(below: &Arc<MemoryDevice>, round: usize) -> Arc<dyn BlockDevice> {
    let below = FaultyDevice::new(below.clone());
    Arc::new(below.with_info(|info| match round {
        0 => {}
        1 => info.limits.maximum = 64 << 10,
        _ => info.limits.maximum = 7 << 10,
    }))
}

/// A device that takes whole blocks alone.
pub(crate) struct OnBlocks {
    below: Arc<MemoryDevice>,
    info: DeviceInfo,
}

impl OnBlocks {
    pub(crate) fn new(below: &Arc<MemoryDevice>, block: u32) -> Self {
        let mut info = below.info().clone();
        info.limits.minimum = block;
        let below = Arc::clone(below);
        Self { below, info }
    }

    fn check(&self, offset: u64, length: u64) {
        let block = u64::from(self.info.limits.minimum);
        let is_whole = |at: u64| at.is_multiple_of(block) || at == self.info.size;
        assert!(
            is_whole(offset) && is_whole(offset + length),
            "{offset}+{length}"
        );
    }
}

impl BlockDevice for OnBlocks {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        self.check(offset, buffer.len() as u64);
        self.below.read(offset, buffer)
    }

    fn write(&self, offset: u64, data: Buffer, flags: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        self.check(offset, data.len() as u64);
        self.below.write(offset, data, flags)
    }

    fn trim(&self, range: ByteRange, flags: WriteFlags) -> BoxFuture<'_, Result<()>> {
        self.check(range.start(), range.len());
        self.below.trim(range, flags)
    }
}

#[tokio::test]
async fn a_device_of_blocks_gets_whole_blocks() {
    for (seed, block) in [(1, 512), (2, 4096)] {
        for image in [
            everything(12, 40),
            everything(16, 12),
            ImageBuilder::new(16, 1_000_003),
        ] {
            let below = memory(&image);
            let image = open(Arc::new(OnBlocks::new(&below, block))).await;
            assert_eq!(image.info().limits.minimum, block);
            check_device(&image, seed, 100).await;
            image.close().await.expect("closed");
            check_clean(&below, "on blocks").await;
        }
        let below = memory(&subclusters(4));
        let blocks = Arc::new(OnBlocks::new(&below, 2 * block));
        let opened = Image::open(blocks, &NoRelatives, &writable()).await;
        let refused = opened.expect_err("parts of clusters are smaller");
        assert_eq!(refused.kind(), ErrorKind::Unsupported);
    }
}

#[tokio::test]
async fn writes_to_clusters_of_its_own_need_nothing_else() {
    let below = memory(&everything(16, 12));
    let below = Arc::new(FaultyDevice::new(below));
    let image = open(below.clone()).await;
    let calls = |operation| below.calls(operation);
    image.read(65536, Buffer::zeroed(1)).await.expect("read");
    let before = (
        calls(Operation::Read),
        calls(Operation::Write),
        calls(Operation::Flush),
    );
    for at in 0..32 {
        let data = Buffer::from(&[at as u8; 4096][..]);
        let place = 65536 + at * 4096;
        image
            .write(place, data, WriteFlags::empty())
            .await
            .expect("written");
    }
    image.flush().await.expect("flushed");
    let after = (
        calls(Operation::Read),
        calls(Operation::Write),
        calls(Operation::Flush),
    );
    assert_eq!(after, (before.0, before.1 + 32, before.2 + 1));
}

#[tokio::test]
async fn tables_are_not_written_before_a_flush() {
    let below = memory(&ImageBuilder::new(16, 1 << 30));
    let below = Arc::new(FaultyDevice::new(below));
    let image = open(below.clone()).await;
    for at in 0..64 {
        let data = Buffer::from(&[7; 1 << 20][..]);
        image
            .write(at << 20, data, WriteFlags::empty())
            .await
            .expect("written");
    }
    assert_eq!(below.calls(Operation::Write), 64, "data alone");
    image.flush().await.expect("flushed");
    let written = below.calls(Operation::Write);
    assert!(written < 64 + 40, "{written}");
    assert!(below.calls(Operation::Flush) <= 3);
    image.flush().await.expect("flushed");
    assert_eq!(below.calls(Operation::Write), written);
}
