//! VHD, the format of Virtual PC, Hyper-V, Azure and XenServer; qemu calls it `vpc`.
//!
//! The specification is Microsoft's "Virtual Hard Disk Image Format Specification"; comments name its sections.
//!
//! ```text
//!   footer    the footer, and its copy: found, parsed, checked, written
//!   geometry  cylinders, heads and sectors
//!   header    the header of images that are no fixed ones
//!   table     where each block lies
//!   fixed     the disk of an image that has no table
//!   parent    what shows through a differencing image
//!   new       an image that is made
//! ```

mod fixed;
mod footer;
mod geometry;
mod header;
mod new;
mod parent;
mod table;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use blockferry_block::{BlockDevice, Operation, Result};

pub use self::new::create;
use self::{
    footer::{Footer, Found},
    header::Header,
    table::BlockTable,
};
use crate::{
    OpenOptions, Related, RelatedFile,
    blocks::{BitOrder, BlocksDisk, Parts, Shape},
    corrupt::corrupt,
};

/// What an image says of itself. Texts are the image's: escape them before printing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Details {
    /// The size of the virtual disk in bytes.
    pub virtual_size: u64,
    /// The size of a block in bytes; `None` of a fixed image.
    pub block_size: Option<u64>,
    /// What kind of image it is.
    pub kind: Kind,
    /// The image's identity.
    pub uuid: [u8; 16],
    /// The program that made it, four characters.
    pub creator: String,
    /// What shows through where it has nothing of its own, by the first of its names.
    pub parent: Option<RelatedFile>,
    /// A machine was stopped in the middle: its memory is not in the image, and what it would have written is not
    /// either.
    pub has_saved_state: bool,
    /// What stands at the end is no footer: what is known is from the copy at the beginning. The file may have been
    /// cut short.
    pub is_footer_damaged: bool,
}

/// The kinds of images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// The disk, and a footer behind it.
    Fixed,
    /// Blocks that are allocated as they are written.
    #[default]
    Dynamic,
    /// The same, on top of a parent.
    Differencing,
}

impl Kind {
    /// The specification's word for it, in small letters.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::Dynamic => "dynamic",
            Self::Differencing => "differencing",
        }
    }
}

/// What a new image is like.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CreateOptions {
    /// The virtual size in bytes; `None`: [`resize`](BlockDevice::resize) tells.
    pub size: Option<u64>,
    /// [`Kind::Fixed`] or [`Kind::Dynamic`].
    pub kind: Kind,
    /// The disk has exactly the size that was asked for, not that of a geometry: as Azure and Hyper-V have it.
    pub force_size: bool,
    /// It is a fixed image that Azure takes: its disk has exactly the size that was asked for, rounded up to whole
    /// MiB. Whatever else is said of its kind and size does not count.
    pub azure: bool,
}

/// Opens the image in `below`. Its parent, and that one's, are opened by `related`.
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
    options.check_reading("a VHD image")?;
    let Parsed {
        found,
        size,
        header,
        names,
        details,
    } = Parsed::read(&*below).await?;
    options.check_size(size)?;
    let Some(header) = header else {
        return fixed::open(below, size, crate::Details::Vpc(details));
    };
    let shape = Shape {
        size,
        block: header.block,
        sector: footer::SECTOR,
        order: BitOrder::HighFirst,
    };
    let table = BlockTable::read(&*below, &found, &header, shape).await?;
    let parent = match found.footer.kind {
        Kind::Differencing => Some(parent::open(related, names, header.parent_uuid).await?),
        _ => None,
    };
    Ok(Arc::new(BlocksDisk::of(Parts {
        shape,
        table: Arc::new(table),
        file: below,
        parent,
        bitmap_memory: options.table_memory,
        is_sparse: false,
        details: crate::Details::Vpc(details),
    })))
}

/// What is known of an image without its table.
struct Parsed {
    found: Found,
    size: u64,
    /// `None` of a fixed image.
    header: Option<Header>,
    /// Those of the parent.
    names: Vec<Vec<u8>>,
    details: Details,
}

impl Parsed {
    async fn read(below: &dyn BlockDevice) -> Result<Self> {
        let found = Footer::find(below).await?;
        let footer = &found.footer;
        let size = footer.size()?;
        let (mut header, mut names) = (None, Vec::new());
        match footer.kind {
            Kind::Fixed if size > found.end => {
                return Err(corrupt(format!(
                    "the disk has {size} bytes, and the file only {} before its footer",
                    found.end
                )));
            }
            Kind::Fixed => {}
            Kind::Dynamic | Kind::Differencing => {
                let read = Header::read(below, footer, size).await?;
                if footer.kind == Kind::Differencing {
                    names = parent::names(below, &read).await?;
                }
                header = Some(read);
            }
        }
        let details = Details {
            virtual_size: size,
            block_size: header.as_ref().map(|header| header.block),
            kind: footer.kind,
            uuid: footer.uuid,
            creator: String::from_utf8_lossy(&footer.creator).into_owned(),
            parent: names.first().cloned().map(parent::file),
            has_saved_state: footer.has_saved_state,
            is_footer_damaged: found.is_copy,
        };
        Ok(Self {
            found,
            size,
            header,
            names,
            details,
        })
    }
}

impl Details {
    /// Reads them from the image in `below`, without any other file that it may be made of.
    ///
    /// # Errors
    /// As those of opening the image.
    pub async fn read(below: &Arc<dyn BlockDevice>) -> Result<Self> {
        let parsed = Parsed::read(&**below).await;
        let parsed = parsed.map_err(|error| error.during(Operation::Open))?;
        Ok(parsed.details)
    }
}
