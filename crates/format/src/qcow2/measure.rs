//! How long the file of an image becomes, before it is made: what `qemu-img measure` says.

use blockferry_block::{ByteRange, Result};

use super::{
    CreateOptions, Details, Preallocation,
    new::{check_layout, refcount_sizes},
};

/// The length of an entry of the directory of bitmaps without its name, and what entries are rounded up to
/// (specification, "Bitmap directory").
const BITMAP_ENTRY: u64 = 24;
const BITMAP_ALIGNMENT: u64 = 8;

/// How long the file of a new image can become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Measured {
    /// With what is known of its contents, in bytes. It may become shorter where zeroes are found.
    pub required: u64,
    /// Once every cluster of its disk has been written, in bytes.
    pub fully_allocated: u64,
}

/// Counts the bytes of clusters that have data, which is told in the order of the disk.
#[derive(Clone, Copy, Debug)]
pub struct DataClusters {
    cluster: u64,
    /// Where the last cluster ends that was counted.
    end: u64,
    bytes: u64,
}

impl DataClusters {
    /// For clusters of `size` bytes, a power of two.
    #[must_use]
    pub fn of_size(size: u32) -> Self {
        Self {
            cluster: u64::from(size.max(1)),
            end: 0,
            bytes: 0,
        }
    }

    /// There is data in `range`, which begins where all that was told before has ended, or behind that.
    pub fn add(&mut self, range: ByteRange) {
        let start = (range.start() - range.start() % self.cluster).max(self.end);
        let end = range
            .end()
            .div_ceil(self.cluster)
            .saturating_mul(self.cluster);
        if !range.is_empty() && end > start {
            self.bytes = self.bytes.saturating_add(end - start);
            self.end = end;
        }
    }

    /// How many bytes the clusters have that were told of.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// How long the file of an image with `options` becomes whose disk has `size` bytes, and `data` bytes in clusters
/// with data. Where it has a backing file, any cluster may differ from that, so all of them count, unless nothing is
/// known of the contents: `None`.
///
/// # Errors
/// `InvalidInput` and `NoSpace` where no such image can be.
pub fn measure(options: &CreateOptions, size: u64, data: Option<u64>) -> Result<Measured> {
    options.check()?;
    let cluster = u64::from(options.cluster_size);
    check_layout(options, size)?;
    let disk = size.div_ceil(cluster).saturating_mul(cluster);
    let geometry = options.geometry(disk);
    let tables = geometry.l1_entries();
    let l1 = (tables * 8).div_ceil(cluster);
    let used = 1 + l1 + tables + geometry.clusters();
    let (blocks, table) = refcount_sizes(geometry, used)?;
    let fully_allocated = (used + blocks + table).saturating_mul(cluster);
    let allocated = match (options.preallocation, data) {
        (Preallocation::Falloc | Preallocation::Full, _) => disk,
        (_, Some(_)) if options.backing.is_some() => disk,
        (_, data) => data.unwrap_or(0).min(disk),
    };
    Ok(Measured {
        required: fully_allocated - disk + allocated,
        fully_allocated,
    })
}

/// How much longer the file of a new image with clusters of `cluster_size` bytes becomes where it takes over the
/// bitmaps of the image that `details` describe, in bytes: all but those that are not to be trusted.
#[must_use]
pub fn measure_bitmaps(details: &Details, cluster_size: u32) -> u64 {
    let cluster = u64::from(cluster_size);
    let up = |bytes: u64| bytes.div_ceil(cluster).saturating_mul(cluster);
    let mut directory = 0;
    let mut total = 0_u64;
    for bitmap in details.bitmaps.iter().filter(|bitmap| !bitmap.in_use) {
        let bits = details.virtual_size.div_ceil(bitmap.granularity.max(1));
        let clusters = bits.div_ceil(8).div_ceil(cluster);
        total = total.saturating_add(clusters.saturating_mul(cluster));
        total = total.saturating_add(up(clusters * 8));
        directory += (BITMAP_ENTRY + bitmap.name.len() as u64).next_multiple_of(BITMAP_ALIGNMENT);
    }
    total.saturating_add(up(directory))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::qemu::is_installed;

    fn theirs(size: u64, options: &str) -> Option<(u64, u64)> {
        let mut command = Command::new("qemu-img");
        command.args(["measure", "--output=json", "-O", "qcow2", "--size"]);
        let output = command.arg(size.to_string()).args(["-o", options]).output();
        let output = output.expect("it runs");
        let value: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        Some((
            value["required"].as_u64()?,
            value["fully-allocated"].as_u64()?,
        ))
    }

    #[test]
    fn sizes_are_those_that_qemu_measures() {
        if !is_installed() {
            return;
        }
        for size in [
            0,
            1,
            512,
            65_537,
            10 << 20,
            (1 << 30) - 7,
            1 << 40,
            63 << 40,
        ] {
            for cluster_size in [512, 4096, 65536, 2 << 20] {
                for (refcount_bits, extended_l2, preallocation) in [
                    (16, false, Preallocation::Off),
                    (1, false, Preallocation::Metadata),
                    (64, false, Preallocation::Falloc),
                    (8, true, Preallocation::Full),
                ] {
                    let extended_l2 = extended_l2 && cluster_size >= 16 << 10;
                    let options = CreateOptions {
                        cluster_size,
                        refcount_bits,
                        extended_l2,
                        preallocation,
                        ..CreateOptions::default()
                    };
                    let text = format!(
                        "cluster_size={cluster_size},refcount_bits={refcount_bits},extended_l2={extended_l2},\
                         preallocation={}",
                        format!("{preallocation:?}").to_lowercase()
                    );
                    let text = text.replace("=true", "=on").replace("=false", "=off");
                    let ours = measure(&options, size, None).ok();
                    let ours = ours.map(|it| (it.required, it.fully_allocated));
                    assert_eq!(ours, theirs(size, &text), "{size} {text}");
                }
            }
        }
    }

    #[test]
    fn a_cluster_with_data_counts_once_and_whole() {
        let mut data = DataClusters::of_size(4096);
        for (start, end) in [(0, 0), (10, 20), (30, 40), (4095, 4097), (8192, 20_481)] {
            data.add(ByteRange::between(start, end));
        }
        assert_eq!(data.bytes(), 6 * 4096);
    }

    #[test]
    fn all_may_differ_from_a_backing_file() {
        let options = CreateOptions {
            backing: Some(crate::qcow2::Backing {
                name: b"base".to_vec(),
                format: None,
                device: None,
            }),
            ..CreateOptions::default()
        };
        let empty = measure(&options, 1 << 30, None).expect("measured");
        assert!(empty.required < empty.fully_allocated);
        let written = measure(&options, 1 << 30, Some(0)).expect("measured");
        assert_eq!(written.required, written.fully_allocated);
    }
}
