//! What is looked at before a copy begins, beside what the engine's plan finds out: whether the image has
//! room where it is to go.

use std::time::Duration;

use crate::{
    block::{BlockDevice, ByteRange, Capabilities, Context, Error, ErrorKind, HumanSize, Result},
    copy::{CopyOptions, Destination, Source},
    endpoint::{
        DestinationFile, DestinationFormat, Endpoint, EndpointKind, NewQcow2, Space, printable,
    },
    format::{qcow2::Preallocation, vmdk::Subformat},
};

use super::options::CopyJob;

/// How long the source may take to say where its data lies. Reading it would take longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Refuses a copy for which there is no room, and returns what may come to be wrong.
pub(crate) async fn check_room(
    job: &CopyJob,
    source: &Source,
    destination: &Destination,
    file: Option<&DestinationFile>,
) -> Result<Option<String>> {
    let (Source::Device(image), Destination::Device(device), Some(file)) =
        (source, destination, file)
    else {
        return Ok(None);
    };
    if !device.info().can(Capabilities::RESIZE) {
        return Ok(None);
    }
    let named = |error: Error| error.on(job.destination.name());
    let size = image.info().size;
    let limit = blockferry_sys::file_size_limit();
    let (most, limit) = match &job.format {
        // It is smaller than the image, and nobody knows how much.
        DestinationFormat::Packed(_) => return Ok(None),
        // Its data lies elsewhere.
        DestinationFormat::Qcow2(new) if new.data_file.is_some() => return Ok(None),
        DestinationFormat::Qcow2(new) => (size.saturating_add(tables(new, size)), limit),
        // Its file grows with the data, and has no holes as long as the disk.
        DestinationFormat::Vmdk(_) => (size, limit),
        _ => {
            check_limit(size, limit).map_err(named)?;
            (size, None)
        }
    };
    let free = file.space()?.filter(|space| space.available < most);
    if free.is_none() && limit.is_none_or(|limit| limit >= most) {
        return Ok(None);
    }
    let needed = Needed::by(job, image.as_ref(), free.as_ref()).await;
    if let Needed::Exactly(bytes) = needed {
        check_limit(bytes, limit).map_err(named)?;
    }
    let Some(space) = free else {
        return Ok(None);
    };
    let place = printable(space.place.as_os_str());
    let free = HumanSize(space.available);
    match needed {
        Needed::Exactly(bytes) if bytes > space.available => {
            let message = format!(
                "it needs {} of space, and {place} has {free} free",
                HumanSize(bytes)
            );
            Err(named(Error::with_message(ErrorKind::NoSpace, message)))
        }
        Needed::UpTo(bytes) if bytes > space.available => Ok(Some(format!(
            "{}: it may need up to {} of space, and {place} has {free} free",
            job.destination,
            HumanSize(bytes)
        ))),
        _ => Ok(None),
    }
}

fn check_limit(size: u64, limit: Option<u64>) -> Result<()> {
    match limit {
        Some(limit) if limit < size => {
            let message = format!(
                "it would have {}, and this process may write files of {} at most (see 'ulimit -f')",
                HumanSize(size),
                HumanSize(limit)
            );
            Err(Error::with_message(ErrorKind::InvalidInput, message))
        }
        _ => Ok(()),
    }
}

/// What the tables take of an image with so much data, in bytes, at the least.
fn tables(new: &NewQcow2, data: u64) -> u64 {
    let create = &new.create;
    let clusters = data / u64::from(create.cluster_size);
    let entry = if create.extended_l2 { 16 } else { 8 };
    clusters.saturating_mul(entry) + clusters.saturating_mul(create.refcount_bits.into()) / 8
}

/// The space that an image will take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needed {
    Exactly(u64),
    /// It may be less: zeroes that nobody knows of yet take none.
    UpTo(u64),
}

impl Needed {
    /// As the format of the destination has it: in a new image there are tables as well, and less of the data where
    /// it is compressed, or where the backing file has it.
    async fn by(job: &CopyJob, image: &dyn BlockDevice, space: Option<&Space>) -> Self {
        let size = image.info().size;
        let new = match &job.format {
            DestinationFormat::Qcow2(new) => new,
            DestinationFormat::Vmdk(create) if create.subformat == Subformat::StreamOptimized => {
                let (Self::Exactly(data) | Self::UpTo(data)) =
                    Self::of_bytes(job, image, space).await;
                return Self::UpTo(data);
            }
            _ => return Self::of_bytes(job, image, space).await,
        };
        let is_allocated = matches!(
            new.create.preallocation,
            Preallocation::Falloc | Preallocation::Full
        );
        match Self::of_bytes(job, image, space).await {
            _ if is_allocated => Self::Exactly(size.saturating_add(tables(new, size))),
            Self::Exactly(data) if new.create.compress || new.backing.is_some() => {
                Self::UpTo(data.saturating_add(tables(new, data)))
            }
            Self::Exactly(data) => Self::Exactly(data.saturating_add(tables(new, data))),
            Self::UpTo(data) => Self::UpTo(data.saturating_add(tables(new, data))),
        }
    }

    async fn of_bytes(job: &CopyJob, image: &dyn BlockDevice, space: Option<&Space>) -> Self {
        let size = image.info().size;
        let CopyOptions {
            allocated,
            extents,
            sparse,
            ..
        } = job.engine;
        if allocated {
            return Self::Exactly(size);
        }
        if let EndpointKind::File(path) = job.source.kind()
            && space.is_some_and(|space| space.may_share_with(path))
        {
            return Self::UpTo(0);
        }
        let asking = tokio::time::timeout(PATIENCE, data(image));
        let data = match extents && image.info().knows_allocation() {
            true => asking.await.ok().flatten(),
            false => None,
        };
        match data {
            Some(data) if space.is_some_and(|space| space.may_compress) => Self::UpTo(data),
            Some(data) if sparse.is_none() || data < size => Self::Exactly(data),
            // Without a single hole: it may be that nobody knows where they are.
            Some(_) if knows_its_holes(&job.source) => Self::Exactly(size),
            _ => Self::UpTo(size),
        }
    }
}

/// Whether an image without holes surely has none. A block device has none, whatever it holds, and neither has what a
/// filter unpacks.
fn knows_its_holes(source: &Endpoint) -> bool {
    match source.kind() {
        _ if !source.filters().is_empty() => false,
        EndpointKind::Sample(_) | EndpointKind::Pattern { .. } | EndpointKind::Data(_) => true,
        EndpointKind::File(path) => path.is_file(),
        EndpointKind::Split(paths) => paths.iter().all(|path| path.is_file()),
        _ => false,
    }
}

/// How many bytes of `image` are not known to be zero; `None` when it does not say.
async fn data(image: &dyn BlockDevice) -> Option<u64> {
    let size = image.info().size;
    let (mut offset, mut data) = (0, 0_u64);
    while offset < size {
        let rest = ByteRange::between(offset, size);
        let extents = image.extents(rest, &Context::Allocation).await.ok()?;
        let end = extents.last()?.range.end().min(size);
        for extent in extents.iter().filter(|extent| !extent.status.is_zero()) {
            data = data.saturating_add(extent.range.intersection(rest).len());
        }
        if end <= offset {
            return None;
        }
        offset = end;
    }
    Some(data.min(size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        block::SampleDevice,
        filter::{NamedFilter, Unpack},
        format::packed::Packing,
    };

    #[tokio::test]
    async fn only_what_is_not_zero_is_data() {
        let sample = "64M,data=25".parse().expect("options");
        let sample = SampleDevice::new(sample);
        let bytes = data(&sample).await.expect("it knows");
        assert!(bytes > 0 && bytes < 64 << 20, "{bytes}");
        let whole = SampleDevice::new("1M,data=100".parse().expect("options"));
        assert_eq!(data(&whole).await, Some(1 << 20));
    }

    #[test]
    fn what_filters_show_of_an_image_may_be_zeroes_that_nobody_knows_of() {
        let sample: Endpoint = "sample:1M".parse().expect("an endpoint");
        assert!(knows_its_holes(&sample));
        let unpacked = NamedFilter::new(Unpack::new(Packing::Xz));
        assert!(!knows_its_holes(&sample.behind(vec![unpacked])));
    }

    #[test]
    fn the_limit_of_the_process_is_named() {
        assert!(check_limit(1 << 20, None).is_ok());
        assert!(check_limit(1 << 20, Some(1 << 20)).is_ok());
        let error = check_limit(1 << 30, Some(1 << 20)).expect_err("too much");
        let text = error.to_string();
        assert!(
            text.contains("1.0 GiB") && text.contains("ulimit"),
            "{text}"
        );
    }
}
