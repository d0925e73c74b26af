//! Images in a directory of their own, opened with all that they name, beside what qemu says of them.

use std::{fs, path::Path, sync::Arc};

use blockferry_block::{
    Access, BlockDevice, BoxFuture, ByteRange, Context, Error, ErrorKind, Extent, FileDevice,
    Mapping, Result, Status, push_merged, testing,
};
use blockferry_format::{Image, OpenOptions, Related, RelatedFile, RelatedImage, qcow2};

use crate::qemu::{number, qemu_check, qemu_img};

/// Opens whatever lies in one directory.
pub(crate) struct Directory<'a>(pub(crate) &'a Path);

impl Related for Directory<'_> {
    fn open<'a>(&'a self, file: &'a RelatedFile, _: bool) -> BoxFuture<'a, Result<RelatedImage>> {
        Box::pin(async move {
            let name = std::str::from_utf8(&file.name);
            let name = name.map_err(|_| Error::new(ErrorKind::NotFound))?;
            let below = open_file(&self.0.join(name));
            match file.format.as_deref() {
                Some("qcow2") => {
                    let image = qcow2::open(below, self, &OpenOptions::default()).await?;
                    Ok((image as Arc<dyn BlockDevice>).into())
                }
                _ => Ok(below.into()),
            }
        })
    }
}

pub(crate) fn open_file(path: &Path) -> Arc<dyn BlockDevice> {
    Arc::new(FileDevice::open(path, Access::ReadOnly).expect("it is there"))
}

/// The image of that name in `directory`.
pub(crate) async fn open(directory: &Path, name: &str) -> Arc<dyn Image> {
    open_with(directory, name, &OpenOptions::default()).await
}

pub(crate) async fn open_with(
    directory: &Path,
    name: &str,
    options: &OpenOptions,
) -> Arc<dyn Image> {
    let below = open_file(&directory.join(name));
    let opened = qcow2::open(below, &Directory(directory), options).await;
    opened.expect("qemu made it")
}

/// What a qcow2 image says of itself.
pub(crate) fn details(image: &dyn Image) -> qcow2::Details {
    let details = image.details();
    details.as_qcow2().expect("a qcow2 image").clone()
}

/// All that `device` holds.
pub(crate) async fn contents(device: &dyn BlockDevice) -> Vec<u8> {
    testing::contents(device, 300_000).await.expect("readable")
}

/// What qemu reads in the image of that name.
pub(crate) fn contents_for_qemu(directory: &Path, name: &str, options: &str) -> Vec<u8> {
    let convert = format!("convert -f qcow2 {options}-O raw {name} {name}.raw");
    qemu_img(directory, &convert);
    fs::read(directory.join(format!("{name}.raw"))).expect("converted")
}

/// What is known of all of `device`, asked for in steps of `step` bytes.
pub(crate) async fn status(device: &dyn BlockDevice, context: &Context, step: u64) -> Vec<Extent> {
    let extents = testing::extents(device, context, step).await;
    extents.expect("an answer")
}

/// One line of `qemu-img map`.
pub(crate) struct Line {
    pub(crate) range: ByteRange,
    /// As `base:allocation` says it.
    pub(crate) allocation: Status,
    /// As `qemu:allocation-depth` says it.
    pub(crate) depth: Status,
    /// Where it lies in the file of its image.
    pub(crate) host: Option<u64>,
}

pub(crate) fn map_for_qemu(directory: &Path, name: &str) -> Vec<Line> {
    let map = qemu_img(directory, &format!("map -f qcow2 --output=json {name}"));
    let map: serde_json::Value = serde_json::from_str(&map).expect("JSON");
    let lines = map.as_array().expect("a list").iter().map(|line| {
        let number = |key: &str| line[key].as_u64();
        let is = |key: &str| line[key].as_bool() == Some(true);
        let start = number("start").expect("a number");
        Line {
            range: ByteRange::between(start, start + number("length").expect("a number")),
            allocation: Status(u64::from(!is("data")) | u64::from(is("zero")) << 1),
            depth: Status(match is("present") {
                true => number("depth").expect("a number") + 1,
                false => 0,
            }),
            host: number("offset"),
        }
    });
    lines.collect()
}

/// The lines as extents.
pub(crate) fn extents_of(lines: &[Line], status: impl Fn(&Line) -> Status) -> Vec<Extent> {
    let mut list = Vec::new();
    for line in lines {
        let (range, status) = (line.range, status(line));
        push_merged(&mut list, Extent { range, status });
    }
    list
}

/// The depths as qemu-nbd tells them: what lies behind the end of a backing file counts as that file's, where
/// `qemu-img map` says that it is in none. Where it says so, `own` is believed.
fn depths(lines: &[Line], own: &[Extent]) -> Vec<Extent> {
    let mut list = Vec::new();
    for line in lines {
        let is_own = |extent: &&Extent| !extent.range.intersection(line.range).is_empty();
        for extent in own.iter().filter(is_own) {
            let range = extent.range.intersection(line.range);
            let is_behind = line.depth == Status(0) && extent.status.0 > 1;
            let status = if is_behind { extent.status } else { line.depth };
            push_merged(&mut list, Extent { range, status });
        }
    }
    list
}

/// Compares everything that can be asked of `image` with what qemu says of the image of that name.
pub(crate) async fn compare(directory: &Path, name: &str, image: &dyn Image) {
    let report = qemu_check(directory, name);
    assert_eq!(
        number(&report, "corruptions"),
        0,
        "{name}: a sound image to begin with"
    );
    let expected = contents_for_qemu(directory, name, "");
    let read = contents(image).await;
    assert_eq!(read.len(), expected.len(), "{name}");
    let differs = read.iter().zip(&expected).position(|(own, its)| own != its);
    assert_eq!(differs, None, "{name}");
    let lines = map_for_qemu(directory, name);
    for step in [u64::MAX, 100_000] {
        let own = status(image, &Context::Allocation, step).await;
        assert_eq!(own, extents_of(&lines, |line| line.allocation), "{name}");
        let own = status(image, &Context::AllocationDepth, step).await;
        assert_eq!(own, depths(&lines, &own), "{name}");
    }
    for line in lines {
        for context in [Context::Allocation, Context::AllocationDepth] {
            let first = image.first_extent(line.range, &context).await;
            let first = first.expect("an answer");
            assert_eq!(first.len(), 1, "{name}");
            assert_eq!(first[0].range.start(), line.range.start(), "{name}");
        }
        match image.mapping(line.range) {
            Mapping::File { offset, .. } => assert_eq!(Some(offset), line.host, "{name}"),
            Mapping::Zero { .. } => assert!(line.allocation.is_zero(), "{name}"),
            _ if line.depth == Status(1) && line.allocation == Status::DATA => {
                assert_eq!(
                    line.host, None,
                    "{name}: only compressed clusters are opaque"
                );
            }
            _ => {}
        }
    }
}
