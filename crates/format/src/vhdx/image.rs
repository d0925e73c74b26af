//! An image, open.

use std::sync::Arc;

use blockferry_block::{BlockDevice, ByteRange, Context, Operation, Result};

use super::{
    Details,
    bat::Bat,
    guid::Guid,
    header::{Header, Regions},
    locator::Parent,
    log::replay,
    metadata::Metadata,
    replay::Replayed,
};
use crate::{
    OpenOptions, Related, RelatedFile,
    blocks::{BitOrder, BlocksDisk, Parts, Shape},
    corrupt::corrupt,
    host::HostFile,
    parent::open_first,
};

/// What is known of an image without its parent.
pub(super) struct Opened {
    header: Header,
    regions: Regions,
    metadata: Metadata,
    /// The file, with what its log has over it.
    file: HostFile,
}

impl Opened {
    /// Reads it all from the image in `below`.
    ///
    /// # Errors
    /// `Corrupt`, `Incompatible`, what reading failed with.
    pub(super) async fn read(below: Arc<dyn BlockDevice>) -> Result<Self> {
        let mut file = HostFile::new(below);
        let header = Header::read(&file).await?;
        if let Some(log) = header.log {
            let replay = replay(&file, log).await?;
            file = HostFile::new(Arc::new(Replayed::new(file, Arc::new(replay))));
        }
        let regions = Regions::read(&file, header.log).await?;
        let metadata = Metadata::read(&file, regions).await?;
        Ok(Self {
            header,
            regions,
            metadata,
            file,
        })
    }

    pub(super) fn details(&self) -> Details {
        let geometry = self.metadata.geometry;
        Details {
            virtual_size: geometry.size,
            block_size: geometry.block_size(),
            logical_sector_size: 1 << geometry.sector_bits,
            physical_sector_size: self.metadata.physical_sector_size,
            is_fixed: self.metadata.is_fixed,
            is_dirty: self.header.log.is_some(),
            disk_uuid: self.metadata.disk.0,
            data_uuid: self.header.data_write.0,
            parent: self
                .metadata
                .parent
                .as_ref()
                .and_then(|parent| parent.files().next()),
        }
    }
}

/// Opens the image in `below`: its disk. Other files that it names are opened by `related`. Nothing is ever written: the
/// log of an image that was not closed is replayed in memory.
///
/// # Errors
/// As [`Format::open`](crate::Format::open).
pub async fn open(
    below: Arc<dyn BlockDevice>,
    related: &dyn Related,
    options: &OpenOptions,
) -> Result<Arc<dyn crate::Image>> {
    let opened = open_inside(below, related, options).await;
    opened.map_err(|error| error.during(Operation::Open))
}

async fn open_inside(
    below: Arc<dyn BlockDevice>,
    related: &dyn Related,
    options: &OpenOptions,
) -> Result<Arc<dyn crate::Image>> {
    options.check_reading("a VHDX image")?;
    let opened = Opened::read(below).await?;
    let details = opened.details();
    let geometry = opened.metadata.geometry;
    options.check_size(geometry.size)?;
    let parent = match &opened.metadata.parent {
        Some(parent) => {
            let check = |file: &RelatedFile, opened: Option<&crate::Details>| {
                check_parent(parent, &details, file, opened)
            };
            Some(open_first(related, parent.files(), check).await?)
        }
        None => None,
    };
    let regions = opened.regions;
    let log = opened.header.log.map(|log| log.place);
    let taken = [regions.bat, regions.metadata].into_iter().chain(log);
    let bat = Bat::new(
        geometry,
        &opened.file,
        taken.collect(),
        options.table_memory,
    );
    let disk = BlocksDisk::of(Parts {
        shape: Shape {
            size: geometry.size,
            block: geometry.block_size(),
            sector: details.logical_sector_size.into(),
            order: BitOrder::LowFirst,
        },
        table: Arc::new(bat),
        file: Arc::clone(opened.file.device()),
        parent,
        bitmap_memory: options.table_memory,
        is_sparse: false,
        details: crate::Details::Vhdx(details),
    });
    // Whoever asks first whether anything can be mapped asks about the beginning. An error there is for whoever reads
    // there.
    let start = ByteRange::between(0, geometry.size.min(1));
    let _ = disk.first_extent(start, &Context::AllocationDepth).await;
    Ok(Arc::new(disk))
}

/// Checks that what was opened is what the child was made of. Anything else would give a disk that never was.
fn check_parent(
    parent: &Parent,
    child: &Details,
    file: &RelatedFile,
    opened: Option<&crate::Details>,
) -> Result<()> {
    let Some(crate::Details::Vhdx(details)) = opened else {
        return Err(corrupt(format!("{file} is not a VHDX image")));
    };
    let found = Guid(details.data_uuid);
    if !parent.linkages.contains(&found) {
        let known = parent.linkages.iter().map(Guid::to_string);
        let known = known.collect::<Vec<_>>().join(" or ");
        return Err(corrupt(format!(
            "{file} was changed since, or is another one: its contents are {found}, not {known}"
        )));
    }
    if details.logical_sector_size != child.logical_sector_size {
        return Err(corrupt(format!(
            "{file} has sectors of {} bytes, and those here have {}",
            details.logical_sector_size, child.logical_sector_size
        )));
    }
    Ok(())
}
