//! A qcow2 image that is nothing but tables: many extents in a file that is sparse where their data would be.

use std::{
    fs::File,
    io::{BufWriter, Seek, SeekFrom, Write},
    path::Path,
};

use anyhow::{Context, Result, ensure};

const CLUSTER: u64 = 64 << 10;
/// How many entries a table of one cluster has, and how much of the disk it maps.
const ENTRIES: u64 = CLUSTER / 8;
const SPAN: u64 = ENTRIES * CLUSTER;
/// The refcount of what an entry points at is one.
const COPIED: u64 = 1 << 63;

/// Writes an image of `size` bytes in which single clusters, `extents` / 2 of them, lie in the file at equal distances,
/// with nothing between them. The refcounts are those of an image whose clusters are all in use.
pub(super) fn write(path: &Path, size: u64, extents: u64) -> Result<()> {
    let data = extents.div_ceil(2);
    let stride = (size / CLUSTER) / data;
    ensure!(
        stride >= 2 && size.is_multiple_of(SPAN),
        "{size} bytes have no room for {extents} extents, or are no multiple of {SPAN}"
    );
    let tables = size / SPAN;
    let l1_clusters = (tables * 8).div_ceil(CLUSTER);
    // The header, L1, L2, data; then a block of refcounts for each 2 GiB of that, and their table.
    let first_table = 1 + l1_clusters;
    let first_data = first_table + tables;
    let used = first_data + data;
    // Refcounts of 16 bits: a block counts for four times as many clusters as it has words of 8 bytes. A few more blocks
    // than needed count for the blocks themselves.
    let per_block = CLUSTER / 2;
    let blocks = used.div_ceil(per_block) + 2;
    let table_clusters = (blocks * 8).div_ceil(CLUSTER);
    let end = used + blocks + table_clusters;

    let file = File::create(path).with_context(|| path.display().to_string())?;
    file.set_len(end * CLUSTER)?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let header: [(u32, u64); 13] = [
        (4, 0x5146_49fb),
        (4, 3),
        (8, 0),
        (4, 0),
        (4, 16),
        (8, size),
        (4, 0),
        (4, tables),
        (8, CLUSTER),
        (8, (used + blocks) * CLUSTER),
        (4, table_clusters),
        (4, 0),
        (8, 0),
    ];
    let features: [(u32, u64); 5] = [(8, 0), (8, 0), (8, 0), (4, 4), (4, 104)];
    for (width, value) in header.into_iter().chain(features) {
        let bytes = value.to_be_bytes();
        out.write_all(&bytes[8 - width as usize..])?;
    }
    out.seek(SeekFrom::Start(CLUSTER))?;
    for table in 0..tables {
        put(&mut out, ((first_table + table) * CLUSTER) | COPIED)?;
    }
    out.seek(SeekFrom::Start(first_table * CLUSTER))?;
    for cluster in 0..size / CLUSTER {
        let (at, index) = (cluster % stride, cluster / stride);
        let is_data = at == 0 && index < data;
        let entry = if is_data {
            ((first_data + index) * CLUSTER) | COPIED
        } else {
            0
        };
        put(&mut out, entry)?;
    }
    out.seek(SeekFrom::Start(used * CLUSTER))?;
    for cluster in 0..blocks * per_block {
        out.write_all(&u16::from(cluster < end).to_be_bytes())?;
    }
    for block in 0..blocks {
        put(&mut out, (used + block) * CLUSTER)?;
    }
    out.flush()?;
    Ok(())
}

fn put(out: &mut impl Write, word: u64) -> std::io::Result<()> {
    out.write_all(&word.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use super::*;

    #[test]
    fn the_image_has_its_extents_and_no_damage() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        write(&path, 1 << 30, 1000).unwrap();
        assert_eq!(fs::read(&path).unwrap()[..4], *b"QFI\xfb");
        let Ok(check) = Command::new("qemu-img")
            .args(["check", "-q"])
            .arg(&path)
            .output()
        else {
            eprintln!("skipped: there is no qemu-img");
            return;
        };
        assert!(check.status.success(), "{check:?}");
        let map = Command::new("qemu-img")
            .args(["map", "--output=json"])
            .arg(&path)
            .output()
            .unwrap();
        let lines = String::from_utf8(map.stdout).unwrap().lines().count();
        assert_eq!(lines, 1000);
    }

    #[test]
    fn more_extents_than_clusters_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        assert!(write(&directory.path().join("image"), SPAN, ENTRIES * 2).is_err());
    }
}
