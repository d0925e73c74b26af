//! Images in a directory of their own, opened with all that they name, beside what qemu says of them.

use std::{fs, path::Path, sync::Arc};

use blockferry_block::{
    Access, BlockDevice, BoxFuture, ByteRange, Context, Error, ErrorKind, Extent, FileDevice,
    Mapping, Result, Status, push_merged, testing,
};
use blockferry_format::{
    Details, Image, OpenOptions, Related, RelatedFile, RelatedImage, Role, vmdk,
};

use crate::qemu::{qemu_img, qemu_io_on};

/// Runs `qemu-io` on the VMDK image `image` in `directory` with these commands.
pub(crate) fn qemu_io(directory: &Path, image: &str, commands: &[&str]) {
    let mut command = qemu_io_on("vmdk", image, commands);
    let output = command.current_dir(directory).output().expect("it runs");
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {failed}");
}

/// Opens whatever lies in one directory.
pub(crate) struct Directory<'a>(pub(crate) &'a Path);

impl Related for Directory<'_> {
    fn open<'a>(&'a self, file: &'a RelatedFile, _: bool) -> BoxFuture<'a, Result<RelatedImage>> {
        Box::pin(async move {
            let name = std::str::from_utf8(&file.name);
            let name = name.map_err(|_| Error::new(ErrorKind::NotFound))?;
            let device = FileDevice::open(&self.0.join(name), Access::ReadOnly)?;
            let below: Arc<dyn BlockDevice> = Arc::new(device);
            if file.role == Role::Extent {
                return Ok(below.into());
            }
            let device = vmdk::open(below, self, &OpenOptions::default()).await?;
            let details = Some(device.details());
            Ok(RelatedImage { device, details })
        })
    }
}

/// The image of that name in `directory`.
pub(crate) async fn try_open(directory: &Path, name: &str) -> Result<Arc<dyn Image>> {
    let below = FileDevice::open(&directory.join(name), Access::ReadOnly)?;
    vmdk::open(
        Arc::new(below),
        &Directory(directory),
        &OpenOptions::default(),
    )
    .await
}

/// The same, which is sound.
pub(crate) async fn open(directory: &Path, name: &str) -> Arc<dyn Image> {
    let opened = try_open(directory, name).await;
    opened.unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// What a VMDK image says of itself.
pub(crate) fn details(image: &dyn Image) -> vmdk::Details {
    match image.details() {
        Details::Vmdk(details) => details,
        other => panic!("not of a VMDK image: {other:?}"),
    }
}

/// All that `device` holds.
pub(crate) async fn contents(device: &dyn BlockDevice, step: u64) -> Vec<u8> {
    testing::contents(device, step).await.expect("readable")
}

/// What is known of all of `device`, asked for in steps of `step` bytes.
pub(crate) async fn status(device: &dyn BlockDevice, context: &Context, step: u64) -> Vec<Extent> {
    let extents = testing::extents(device, context, step).await;
    extents.expect("an answer")
}

/// Compares what is known of `image` with what `qemu-img map` says of the image of that name.
pub(crate) async fn compare_map(directory: &Path, name: &str, image: &dyn Image) {
    let map = qemu_img(directory, &format!("map -f vmdk --output=json {name}"));
    let map: serde_json::Value = serde_json::from_str(&map).expect("JSON");
    let (mut allocation, mut depths) = (Vec::new(), Vec::new());
    for line in map.as_array().expect("a list") {
        let number = |key: &str| line[key].as_u64();
        let is = |key: &str| line[key].as_bool() == Some(true);
        let start = number("start").expect("a number");
        let range = ByteRange::between(start, start + number("length").expect("a number"));
        let status = Status(u64::from(!is("data")) | u64::from(is("zero")) << 1);
        push_merged(&mut allocation, Extent { range, status });
        let status = Status(match is("present") {
            true => number("depth").expect("a number") + 1,
            false => 0,
        });
        push_merged(&mut depths, Extent { range, status });
        // Brings the tables into memory, of which it needs one.
        let first = image.first_extent(range, &Context::Allocation).await;
        assert_eq!(first.expect("an answer").len(), 1);
        match image.mapping(range) {
            // It has no word for a place that is in several files.
            Mapping::File { offset, .. } => {
                assert_eq!(number("offset").unwrap_or(offset), offset, "{name}");
            }
            Mapping::Zero { .. } => assert!(is("zero"), "{name}"),
            _ => assert_eq!(number("offset"), None, "{name}: {range}"),
        }
    }
    for step in [u64::MAX, 100_000_000] {
        let own = status(image, &Context::Allocation, step).await;
        assert_eq!(own, allocation, "{name}");
        let own = status(image, &Context::AllocationDepth, step).await;
        // What lies behind the end of a parent counts as that parent's, as qemu-nbd has it.
        let own = own.into_iter().map(|extent| match extent.status {
            Status(2..) if depth_at(&depths, extent.range) == Some(Status(0)) => Extent {
                status: Status(0),
                ..extent
            },
            _ => extent,
        });
        assert_eq!(merged(own), depths, "{name}");
    }
}

fn depth_at(depths: &[Extent], range: ByteRange) -> Option<Status> {
    let is_there = |extent: &&Extent| extent.range.contains(range);
    depths.iter().find(is_there).map(|extent| extent.status)
}

fn merged(extents: impl Iterator<Item = Extent>) -> Vec<Extent> {
    let mut list = Vec::new();
    extents.for_each(|extent| push_merged(&mut list, extent));
    list
}

/// Compares everything that can be asked of `image` with what qemu says of the image of that name.
pub(crate) async fn compare(directory: &Path, name: &str, image: &dyn Image) {
    qemu_img(
        directory,
        &format!("convert -f vmdk -O raw {name} {name}.raw"),
    );
    let expected = fs::read(directory.join(format!("{name}.raw"))).expect("converted");
    for step in [300_000, 7 << 20] {
        let read = contents(image, step).await;
        assert_eq!(read.len(), expected.len(), "{name}");
        let differs = read.iter().zip(&expected).position(|(own, its)| own != its);
        assert_eq!(differs, None, "{name} in steps of {step}");
    }
    compare_map(directory, name, image).await;
}

/// Bytes that look like those of files: some repeat, some do not, some are zero.
pub(crate) fn varied(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let count = (next() % 100_000) as usize;
        match next() % 4 {
            0 => bytes.resize(bytes.len() + count, 0),
            1 => bytes.extend((0..count).map(|_| next() as u8)),
            _ => {
                let word = next().to_le_bytes();
                bytes.extend((0..count).map(|at| word[at % 8] ^ (at >> 9) as u8));
            }
        }
    }
    bytes.truncate(length);
    bytes
}
