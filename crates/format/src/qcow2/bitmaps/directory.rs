//! The directory of bitmaps as it is changed, and what is refused before that.

use blockferry_block::{Buffer, ByteRange, Error, ErrorKind, Result, printable};

use super::{
    Bitmap, BitmapChange, BitmapDetails, GRANULARITY_BITS, LARGEST_BITS, LONGEST_DIRECTORY,
    MOST_BITMAPS, MOST_ENTRIES, encode_directory, read_directory,
};
use crate::qcow2::{
    geometry::Geometry,
    header::{Header, LONGEST_NAME, be64},
    host::HostFile,
};

/// What one bit stands for unless something else is said: a cluster, within these.
const USUAL_GRANULARITY: std::ops::RangeInclusive<u64> = 4096..=65536;

/// An error of that kind.
pub(super) fn refuse<T>(kind: ErrorKind, message: impl Into<String>) -> Result<T> {
    Err(Error::with_message(kind, message.into()))
}

/// The directory of an image, as it stands in the file: what is not understood of it stays.
pub(super) struct Directory {
    pub(super) bitmaps: Vec<Bitmap>,
    pub(super) bytes: Vec<u8>,
    pub(super) place: ByteRange,
}

impl Directory {
    pub(super) async fn read(file: &HostFile, header: &Header) -> Result<Self> {
        let bitmaps = read_directory(&**file.device(), header).await?;
        let place = match (&bitmaps[..], header.bitmaps) {
            ([_, ..], Some(extension)) => extension.directory,
            _ => ByteRange::default(),
        };
        let mut bytes = Vec::new();
        if !place.is_empty() {
            let buffer = Buffer::zeroed(place.len() as usize);
            bytes = file.read(place.start(), buffer).await?.to_vec();
        }
        Ok(Self {
            bitmaps,
            bytes,
            place,
        })
    }

    pub(super) fn find(&self, name: &str) -> Result<(usize, &Bitmap)> {
        let mut bitmaps = self.bitmaps.iter().enumerate();
        match bitmaps.find(|(_, bitmap)| bitmap.details.name == name) {
            Some(found) => Ok(found),
            None => {
                let name = printable(name.as_ref());
                refuse(
                    ErrorKind::NotFound,
                    format!("the image has no bitmap \"{name}\""),
                )
            }
        }
    }

    /// Where the entry of a bitmap lies in the directory.
    pub(super) fn entry(&self, index: usize) -> std::ops::Range<usize> {
        let start = |index: usize| match self.bitmaps.get(index) {
            Some(bitmap) => (bitmap.entry - self.place.start()) as usize,
            None => self.bytes.len(),
        };
        start(index)..start(index + 1)
    }

    /// The bytes in which the entry of a bitmap says that its table is at `table`.
    pub(super) fn with_table(&self, index: usize, table: ByteRange) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        let at = self.entry(index).start;
        bytes[at..at + 8].copy_from_slice(&table.start().to_be_bytes());
        bytes[at + 8..at + 12].copy_from_slice(&((table.len() / 8) as u32).to_be_bytes());
        bytes
    }

    /// Refuses what cannot be done, before anything is changed.
    pub(super) fn check(&self, name: &str, change: &BitmapChange, header: &Header) -> Result<()> {
        if let BitmapChange::Add { granularity } = change {
            let granularity = granularity_for(*granularity, header.geometry);
            return self.check_new(name, granularity, header.geometry);
        }
        let (_, bitmap) = self.find(name)?;
        match change {
            BitmapChange::Remove if bitmap.is_known => Ok(()),
            _ => bitmap.check_usable(header.geometry),
        }
    }

    pub(super) fn check_new(&self, name: &str, granularity: u64, geometry: Geometry) -> Result<()> {
        let invalid = |message: &str| refuse(ErrorKind::InvalidInput, message);
        let shown = printable(name.as_ref());
        if geometry.version < 3 {
            let message = "version 2 (compat=0.10) knows no bitmaps";
            return refuse(ErrorKind::Unsupported, message);
        }
        if !(1..=LONGEST_NAME as usize).contains(&name.len()) {
            return invalid("the name of a bitmap has 1 to 1023 bytes");
        }
        if self.find(name).is_ok() {
            return invalid(&format!("the image has a bitmap \"{shown}\" already"));
        }
        if !granularity.is_power_of_two()
            || !GRANULARITY_BITS.contains(&(granularity.ilog2() as u8))
        {
            return invalid(
                "one bit of a bitmap stands for a power of two from 512 bytes to 2 GiB",
            );
        }
        let bitmap = Bitmap::new(name, granularity);
        bitmap.check_size(geometry)?;
        let length = self.bytes.len() + encode_directory(&[bitmap]).len();
        if self.bitmaps.len() >= MOST_BITMAPS as usize || length as u64 > LONGEST_DIRECTORY {
            return invalid("the image has as many bitmaps as there can be");
        }
        Ok(())
    }
}

impl Bitmap {
    /// A new one, enabled, that has no table yet.
    pub(super) fn new(name: &str, granularity: u64) -> Self {
        Self {
            details: BitmapDetails {
                name: name.to_owned(),
                granularity,
                in_use: false,
                auto: true,
            },
            is_known: true,
            table: ByteRange::default(),
            flags: None,
            entry: 0,
        }
    }

    /// Refuses one that does not say all that was written, or that no image can have.
    pub(super) fn check_usable(&self, geometry: Geometry) -> Result<()> {
        let name = self.printable_name();
        if !self.is_known {
            let message = format!("the bitmap \"{name}\" is of a kind that is not known here");
            return refuse(ErrorKind::Unsupported, message);
        }
        if self.details.in_use {
            let message = format!(
                "the bitmap \"{name}\" is inconsistent and cannot be used: it can only be removed"
            );
            return refuse(ErrorKind::Unsupported, message);
        }
        self.check_size(geometry)
    }

    fn check_size(&self, geometry: Geometry) -> Result<()> {
        let entries = self.entries_for(geometry);
        let name = self.printable_name();
        if entries == 0 {
            let message = format!("a disk without a byte cannot have the bitmap \"{name}\"");
            return refuse(ErrorKind::InvalidInput, message);
        }
        let bytes = entries.saturating_mul(geometry.cluster_size());
        if entries > MOST_ENTRIES || bytes > LARGEST_BITS {
            let message = format!(
                "the bitmap \"{name}\" would be too large: a bit of it stands for {} bytes",
                self.details.granularity
            );
            return refuse(ErrorKind::InvalidInput, message);
        }
        Ok(())
    }

    /// The words of its table, as many as the disk needs.
    pub(super) async fn words(&self, file: &HostFile, geometry: Geometry) -> Result<Vec<u64>> {
        let table = self.checked_table(self.entries_for(geometry), &**file.device())?;
        let bytes = file
            .read(table.start(), Buffer::zeroed(table.len() as usize))
            .await?;
        Ok(bytes.chunks_exact(8).map(|word| be64(word, 0)).collect())
    }
}

/// What one bit stands for.
pub(super) fn granularity_for(wanted: Option<u64>, geometry: Geometry) -> u64 {
    let (least, most) = (*USUAL_GRANULARITY.start(), *USUAL_GRANULARITY.end());
    wanted.unwrap_or_else(|| geometry.cluster_size().clamp(least, most))
}
