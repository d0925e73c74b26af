//! What the tests of VHDX have in common.

use std::sync::{Arc, Mutex};

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, Context, Error, ErrorKind, Extent, MemoryDevice, Result,
    testing,
};
use blockferry_format::{
    Details, Format, Image, NoRelatives, OpenOptions, Related, RelatedFile, RelatedImage, vhdx,
};

use crate::images::ImageBuilder;

pub(crate) const MIB: u64 = 1 << 20;

/// Bytes that differ from block to block and from sector to sector, none of them zero.
pub(crate) fn text(block: u64, length: u64) -> Vec<u8> {
    let byte = |at: u64| ((block * 31 + at / 512 * 7 + at % 5) % 255) as u8 + 1;
    (0..length).map(byte).collect()
}

pub(crate) fn memory(bytes: Vec<u8>) -> Arc<dyn BlockDevice> {
    Arc::new(MemoryDevice::from_bytes(bytes))
}

pub(crate) async fn try_open(
    below: Arc<dyn BlockDevice>,
    related: &dyn Related,
) -> Result<Arc<dyn Image>> {
    Format::Vhdx
        .open(below, related, &OpenOptions::default())
        .await
}

/// Opens an image that is sound and stands alone.
pub(crate) async fn open(below: Arc<dyn BlockDevice>) -> Arc<dyn Image> {
    let opened = try_open(below, &NoRelatives).await;
    opened.expect("a sound image")
}

pub(crate) async fn build(image: &ImageBuilder) -> Arc<dyn Image> {
    open(memory(image.build())).await
}

pub(crate) fn vhdx(details: Details) -> vhdx::Details {
    match details {
        Details::Vhdx(details) => details,
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn read(device: &dyn BlockDevice, start: u64, length: u64) -> Result<Vec<u8>> {
    let buffer = Buffer::from(&vec![0x77; length as usize][..]);
    Ok(device.read(start, buffer).await?.to_vec())
}

/// All of a disk.
pub(crate) async fn whole(device: &dyn BlockDevice) -> Vec<u8> {
    testing::contents(device, 16 * MIB).await.expect("readable")
}

/// All extents of a disk, joined: starts, ends, statuses.
pub(crate) async fn extents(device: &dyn BlockDevice, context: &Context) -> Vec<(u64, u64, u64)> {
    let list = testing::extents(device, context, u64::MAX).await;
    let tuple = |extent: Extent| (extent.range.start(), extent.range.end(), extent.status.0);
    list.expect("an answer").into_iter().map(tuple).collect()
}

/// Files by their names, all that there are. Notes what it is asked for.
#[derive(Default)]
pub(crate) struct Files {
    images: Vec<(&'static str, Arc<dyn Image>)>,
    pub(crate) asked: Mutex<Vec<String>>,
}

impl Files {
    pub(crate) fn with(mut self, name: &'static str, image: Arc<dyn Image>) -> Self {
        self.images.push((name, image));
        self
    }
}

impl Related for Files {
    fn open<'a>(
        &'a self,
        file: &'a RelatedFile,
        writable: bool,
    ) -> BoxFuture<'a, Result<RelatedImage>> {
        assert!(!writable, "parents are only read");
        assert_eq!(file.format.as_deref(), Some("vhdx"));
        let name = String::from_utf8_lossy(&file.name).into_owned();
        self.asked.lock().expect("no panic").push(name.clone());
        let image = self.images.iter().find(|(known, _)| *known == name);
        let opened = image.map(|(_, image)| RelatedImage {
            device: Arc::clone(image) as _,
            details: Some(image.details()),
        });
        Box::pin(async move { opened.ok_or_else(|| Error::new(ErrorKind::NotFound)) })
    }
}
