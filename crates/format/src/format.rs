//! The formats there are, under one roof: told by name, opened, and what each says of itself.

use std::{error, fmt, str::FromStr, sync::Arc};

use blockferry_block::{BlockDevice, BoxFuture, ByteRange, Result};

use crate::{
    OpenOptions, Placed, Related, RelatedFile, placed::by_extents, qcow2, vdi, vhdx, vmdk, vpc,
};

/// A format that images have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// QEMU's qcow2, versions 2 and 3.
    Qcow2,
    /// VMware's.
    Vmdk,
    /// Virtual PC's, called VHD.
    Vpc,
    /// Hyper-V's.
    Vhdx,
    /// VirtualBox's.
    Vdi,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Qcow2, Self::Vmdk, Self::Vpc, Self::Vhdx, Self::Vdi];

    /// The name that qemu gives it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vpc => "vpc",
            Self::Vhdx => "vhdx",
            Self::Vdi => "vdi",
        }
    }

    /// Opens the image of this format in `below`. Other files that it names are opened by `related`.
    ///
    /// # Errors
    /// `Corrupt` for what breaks the format's rules; `Unsupported` for what is not read here, by name; `Incompatible`
    /// for features that are not known; `InvalidInput` for a virtual size above the bound; `ReadOnly` where it is to
    /// be written and cannot be; those of `related`; what reading failed with.
    pub async fn open(
        self,
        below: Arc<dyn BlockDevice>,
        related: &dyn Related,
        options: &OpenOptions,
    ) -> Result<Arc<dyn Image>> {
        Ok(match self {
            Self::Qcow2 => qcow2::open(below, related, options).await?,
            Self::Vmdk => vmdk::open(below, related, options).await?,
            Self::Vpc => vpc::open(below, related, options).await?,
            Self::Vhdx => vhdx::open(below, related, options).await?,
            Self::Vdi => vdi::open(below, options).await?,
        })
    }

    /// What the image of this format in `below` says of itself, without any other file that it may be made of.
    ///
    /// # Errors
    /// As those of opening it.
    pub async fn details(self, below: &Arc<dyn BlockDevice>) -> Result<Details> {
        Ok(match self {
            Self::Qcow2 => Details::Qcow2(Box::new(qcow2::Details::read(below).await?)),
            Self::Vmdk => Details::Vmdk(vmdk::Details::read(below).await?),
            Self::Vpc => Details::Vpc(vpc::Details::read(below).await?),
            Self::Vhdx => Details::Vhdx(vhdx::Details::read(below).await?),
            Self::Vdi => Details::Vdi(vdi::Details::read(below).await?),
        })
    }
}

/// A name that no format has which is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownFormat;

impl fmt::Display for UnknownFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Format::ALL.map(Format::name).join(", ");
        write!(f, "no image format has that name: {names} are known")
    }
}

impl error::Error for UnknownFormat {}

impl FromStr for Format {
    type Err = UnknownFormat;

    /// A format under the name that qemu gives it.
    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        let named = Self::ALL.into_iter().find(|format| format.name() == name);
        named.ok_or(UnknownFormat)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An image that is open: its disk.
pub trait Image: BlockDevice {
    /// What there is to be told of it.
    fn details(&self) -> Details;

    /// What the image itself has of the beginning of `range`, and where: an answer as
    /// [`extents`](BlockDevice::extents) gives it, which goes on from the start of `range` without a gap and may end
    /// before it. Unless a format has more to tell, it is what the extents say, without places: a format whose
    /// images can have something behind them, or lie anywhere as they are, has one of its own.
    ///
    /// # Errors
    /// `OutOfBounds`; `Corrupt` for a damaged table; what reading tables failed with.
    fn placed(&self, range: ByteRange) -> BoxFuture<'_, Result<Vec<Placed>>> {
        Box::pin(by_extents(self, range))
    }

    /// Puts everything that was written into its place, and ends the use of the image.
    ///
    /// # Errors
    /// What writing failed with: what was written since the last flush may be lost.
    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

impl fmt::Debug for dyn Image + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("info", self.info())
            .field("details", &self.details())
            .finish_non_exhaustive()
    }
}

/// An image that is being made: no valid one before it is [finished](Self::finish).
pub trait NewImage: BlockDevice {
    /// Completes the image: writes its tables, makes everything durable, and then its header, durably. What is below
    /// is as long as the image, if it can have another length, and holds a valid image only now. Nothing can be
    /// written afterwards, also when it fails.
    ///
    /// # Errors
    /// What writing failed with, also earlier: `Io` where a write failed or was given up and was not made again. There
    /// is no image then, and finishing again only gives the same answer.
    fn finish(&self) -> BoxFuture<'_, Result<()>>;

    /// Gives the image a persistent bitmap like that of `source` with this name, as it is when the image is
    /// [finished](Self::finish).
    ///
    /// # Errors
    /// `InvalidInput` where the image can have none (only those of qcow2 can), or where that name is taken already or
    /// too long, and for a bitmap that is not consistent (`in_use`).
    fn add_bitmap(&self, details: qcow2::BitmapDetails, source: Arc<dyn BlockDevice>)
    -> Result<()>;
}

impl fmt::Debug for dyn NewImage + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewImage")
            .field("info", self.info())
            .finish_non_exhaustive()
    }
}

/// What an image says of itself. Texts are the image's: escape them before printing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Details {
    /// Of a qcow2 image.
    Qcow2(Box<qcow2::Details>),
    /// Of a VMDK image.
    Vmdk(vmdk::Details),
    /// Of a VHD image.
    Vpc(vpc::Details),
    /// Of a VHDX image.
    Vhdx(vhdx::Details),
    /// Of a VDI image.
    Vdi(vdi::Details),
}

impl Details {
    /// The format.
    #[must_use]
    pub fn format(&self) -> Format {
        match self {
            Self::Qcow2(_) => Format::Qcow2,
            Self::Vmdk(_) => Format::Vmdk,
            Self::Vpc(_) => Format::Vpc,
            Self::Vhdx(_) => Format::Vhdx,
            Self::Vdi(_) => Format::Vdi,
        }
    }

    /// The size of the virtual disk in bytes.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        match self {
            Self::Qcow2(details) => details.virtual_size,
            Self::Vmdk(details) => details.virtual_size,
            Self::Vpc(details) => details.virtual_size,
            Self::Vhdx(details) => details.virtual_size,
            Self::Vdi(details) => details.virtual_size,
        }
    }

    /// In which pieces it is allocated, in bytes; `None` where it has none.
    #[must_use]
    pub fn cluster_size(&self) -> Option<u64> {
        match self {
            Self::Qcow2(details) => Some(details.cluster_size),
            Self::Vmdk(details) => details.cluster_size,
            Self::Vpc(details) => details.block_size,
            Self::Vhdx(details) => Some(details.block_size),
            Self::Vdi(details) => Some(details.block_size),
        }
    }

    /// What shows through where it has nothing of its own.
    #[must_use]
    pub fn backing(&self) -> Option<&RelatedFile> {
        match self {
            Self::Qcow2(details) => details.backing.as_ref(),
            Self::Vmdk(details) => details.parent.as_ref(),
            Self::Vpc(details) => details.parent.as_ref(),
            Self::Vhdx(details) => details.parent.as_ref(),
            Self::Vdi(_) => None,
        }
    }

    /// What only a qcow2 image has to tell.
    #[must_use]
    pub fn as_qcow2(&self) -> Option<&qcow2::Details> {
        match self {
            Self::Qcow2(details) => Some(details),
            _ => None,
        }
    }
}
