//! Internal snapshots made, gone back to and deleted, in place.
//!
//! All that changes is written where nothing of the image lies: tables whose marks change, L1 tables, the snapshot table,
//! refcounts and the table of them. Once that is durable one write to the header, within a sector, lets the image be the new
//! one. A crash or a failure at any point leaves the old image or the new one, and no space is lost.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use blockferry_block::{
    BlockDevice, Buffer, ByteRange, Capabilities, Error, ErrorKind, Operation, RangeSet, Result,
    WriteFlags, read_exact_at,
};

use super::{
    Snapshot, SnapshotTable, missing,
    recount::{Change, Recount, clusters_of},
    states::{States, read_l1},
    table::{encode, own_entries, unused_id},
};
use crate::{
    Stop,
    qcow2::{
        bitmaps::read_directory,
        check::mend_dirty,
        header::{Header, be64},
        host::HostFile,
        write::check_writable,
    },
};

/// Where the virtual size stands in the header, and what follows it up to the end of what version 2 has: the method of
/// encryption, the L1 table, the refcounts, the snapshots.
const SIZE_IN_HEADER: u64 = 24;
const V2_END: u64 = 72;
/// Where the autoclear features stand, and end.
const AUTOCLEAR: std::ops::Range<usize> = 88..96;

/// How snapshots are made, gone back to and deleted.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct SnapshotOptions {
    /// Asks for the end: the image is what it was then. Nothing unless set.
    pub stop: Stop,
}

/// Makes a snapshot of the disk of the image in `below`, as it is now. It gets the next ID, the name may be another's. Nobody
/// else uses the image meanwhile; `below` can grow ([`Capabilities::RESIZE`]) where the image needs room. Other files that it
/// names are not looked at. Bitmaps stay as they are.
///
/// A crash at any point leaves the image as it was, or with the snapshot.
///
/// # Errors
/// `InvalidInput` for a name of more than 65535 bytes; `Unsupported` for an image whose data lies in a file of its own, for
/// one whose refcounts cannot count one more snapshot, and for more snapshots than there can be; `ReadOnly` for one that is
/// damaged or cannot be written; `Corrupt`, `NoSpace`, what reading and writing failed with.
pub async fn create_snapshot(
    below: Arc<dyn BlockDevice>,
    name: &str,
    options: &SnapshotOptions,
) -> Result<Snapshot> {
    changed(below, Request::Create(name), options).await
}

/// Lets the disk of the image in `below` be what it was in a snapshot, its size, too: what it is now is lost. `wanted` is the
/// ID of the snapshot, or else its name; `snapshot.id=` or `snapshot.name=` in front says which of the two.
///
/// A crash at any point leaves the disk as it was, or as the snapshot has it.
///
/// # Errors
/// `NotFound` for a snapshot that is not there; `Unsupported` for an image with bitmaps, which would not say what changes;
/// as [`create_snapshot`].
pub async fn apply_snapshot(
    below: Arc<dyn BlockDevice>,
    wanted: &str,
    options: &SnapshotOptions,
) -> Result<Snapshot> {
    changed(below, Request::Apply(wanted), options).await
}

/// Deletes a snapshot of the image in `below`, the one that is `wanted` as [`apply_snapshot`] has it. What only it has is free
/// then.
///
/// A crash at any point leaves the image with the snapshot, or without.
///
/// # Errors
/// `NotFound` for a snapshot that is not there; as [`create_snapshot`].
pub async fn delete_snapshot(
    below: Arc<dyn BlockDevice>,
    wanted: &str,
    options: &SnapshotOptions,
) -> Result<Snapshot> {
    changed(below, Request::Delete(wanted), options).await
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
enum Request<'a> {
    Create(&'a str),
    Apply(&'a str),
    Delete(&'a str),
}

/// What the header is to say.
struct NewState {
    size: u64,
    l1: ByteRange,
    refcounts: ByteRange,
    snapshots: u32,
    snapshots_offset: u64,
}

async fn changed(
    below: Arc<dyn BlockDevice>,
    request: Request<'_>,
    options: &SnapshotOptions,
) -> Result<Snapshot> {
    let changed = change(below, request, options).await;
    changed.map_err(|error| error.during(Operation::Write))
}

async fn change(
    below: Arc<dyn BlockDevice>,
    request: Request<'_>,
    options: &SnapshotOptions,
) -> Result<Snapshot> {
    let header = Header::read(&*below).await?;
    let file = HostFile::new(below);
    refuse(&file, &header, request).await?;
    let header = mend_dirty(&file, header).await?;
    let writable = check_writable(&header, [&file, &file]);
    writable.map_err(|error| error.during(Operation::Open))?;
    let table = SnapshotTable::read(&**file.device(), &header).await?;
    let end = file.end();
    let mut image = Changing {
        recount: Recount::open(&file, &header).await?,
        file: &file,
        header: &header,
        table: &table,
        stop: &options.stop,
    };
    let prepared = image.prepare(request).await;
    image.carry_out(end, prepared).await
}

/// Lets each entry of the table of an image that may be written say the size of the disk: version 3 wants it, and early
/// images of version 2 do not have it. `true` where that was to be done: the header is another one then.
pub(crate) async fn complete_table(file: &HostFile, header: &Header) -> Result<bool> {
    let table = SnapshotTable::read(&**file.device(), header).await?;
    if table.snapshots.iter().all(|snapshot| snapshot.says_size) {
        return Ok(false);
    }
    let end = file.end();
    let mut image = Changing {
        recount: Recount::open(file, header).await?,
        file,
        header,
        table: &table,
        stop: &Stop::default(),
    };
    let prepared = image.prepare_table().await;
    image.carry_out(end, prepared).await?;
    Ok(true)
}

/// Refuses what cannot be done, before anything is changed.
async fn refuse(file: &HostFile, header: &Header, request: Request<'_>) -> Result<()> {
    let refuse = |kind, message: &str| Err(Error::with_message(kind, message));
    if header.geometry.data_file {
        let message = "an image whose data lies in a file of its own has no snapshots";
        return refuse(ErrorKind::Unsupported, message);
    }
    match request {
        Request::Create(name) if name.len() > usize::from(u16::MAX) => {
            let message = "the name of a snapshot has 65535 bytes at most";
            refuse(ErrorKind::InvalidInput, message)
        }
        Request::Apply(_) if !read_directory(&**file.device(), header).await?.is_empty() => {
            let message = "the image has bitmaps, which would not say what changes with a snapshot";
            refuse(ErrorKind::Unsupported, message)
        }
        _ => Ok(()),
    }
}

/// Cuts off what was written behind the end of a file that is to stay as it was. Where that fails it is longer, and that
/// is all.
async fn cut(file: &HostFile, end: u64) {
    if file.end() > end && file.device().info().can(Capabilities::RESIZE) {
        let _ = file.device().resize(end).await;
    }
}

/// An image whose states change.
struct Changing<'a> {
    file: &'a HostFile,
    header: &'a Header,
    table: &'a SnapshotTable,
    recount: Recount,
    stop: &'a Stop,
}

impl<'a> Changing<'a> {
    /// Refuses an image in which something could be overwritten because it is called free.
    async fn check_places(&mut self) -> Result<()> {
        let cluster = self.header.geometry.cluster_size();
        let mut places = RangeSet::new();
        places.insert(ByteRange::between(0, cluster));
        places.insert(self.header.geometry.around(self.header.l1));
        places.insert(self.header.geometry.around(self.table.range));
        for snapshot in &self.table.snapshots {
            places.insert(self.header.geometry.around(snapshot.l1));
        }
        if let Some(bitmaps) = self.header.bitmaps {
            places.insert(self.header.geometry.around(bitmaps.directory));
        }
        for range in places.iter() {
            self.recount.require(range).await?;
        }
        Ok(())
    }

    /// Lets the header say what was prepared. Where that failed, the image in a file that ended at `end` stays as it was.
    async fn carry_out<T>(&mut self, end: u64, prepared: Result<(NewState, T)>) -> Result<T> {
        let said = async {
            let (state, value) = prepared?;
            let said = self.header_saying(&state).await?;
            self.file.device().flush().await?;
            self.stop.check()?;
            Ok((said, value))
        };
        let (said, value) = match said.await {
            Ok(said) => said,
            Err(error) => {
                cut(self.file, end).await;
                return Err(error);
            }
        };
        // From here on nobody knows which of the two images it is, until that is durable.
        self.file.patch(SIZE_IN_HEADER, &said).await?;
        self.file.device().flush().await?;
        self.trim_freed().await;
        Ok(value)
    }

    /// Writes the same table, with complete entries.
    async fn prepare_table(&mut self) -> Result<(NewState, ())> {
        self.check_places().await?;
        let (snapshots, snapshots_offset) = self.write_table(None, None).await?;
        let state = NewState {
            size: self.header.geometry.size,
            l1: self.header.l1,
            refcounts: self.recount.finish().await?,
            snapshots,
            snapshots_offset,
        };
        Ok((state, ()))
    }

    /// Writes all but what the header is to say, which is returned.
    async fn prepare(&mut self, request: Request<'_>) -> Result<(NewState, Snapshot)> {
        self.check_places().await?;
        let geometry = self.header.geometry;
        let mut size = geometry.size;
        let mut table = (self.header.snapshots, self.header.snapshots_offset);
        let active = read_l1(self.file, geometry, self.header.l1).await?;
        let (words, snapshot) = match request {
            Request::Create(name) => {
                self.states().count(&active, Change::OnceMore).await?;
                let mut own = active.clone();
                let words = self.states().mark(&active, Some(&mut own)).await?;
                let snapshot = Snapshot {
                    l1: self.write_l1(&own).await?,
                    ..self.new_snapshot(name)
                };
                table = self.write_table(None, Some(&snapshot)).await?;
                (words, snapshot)
            }
            Request::Apply(wanted) => {
                let snapshot = self.wanted(wanted)?;
                let disk = snapshot.geometry(geometry)?;
                let own = read_l1(self.file, geometry, snapshot.l1).await?;
                self.states().count(&own, Change::OnceMore).await?;
                self.states().count(&active, Change::OnceLess).await?;
                size = disk.size;
                (self.states().mark(&own, None).await?, snapshot.clone())
            }
            Request::Delete(wanted) => {
                let snapshot = self.wanted(wanted)?;
                let own = read_l1(self.file, geometry, snapshot.l1).await?;
                self.states().count(&own, Change::OnceLess).await?;
                let place = clusters_of(snapshot.l1, geometry);
                self.recount.change(place, Change::OnceLess).await?;
                let words = self.states().mark(&active, None).await?;
                table = self.write_table(Some(snapshot), None).await?;
                (words, snapshot.clone())
            }
        };
        let l1 = self.write_l1(&words).await?;
        let old = clusters_of(self.header.l1, geometry);
        self.recount.change(old, Change::OnceLess).await?;
        let state = NewState {
            size,
            l1,
            refcounts: self.recount.finish().await?,
            snapshots: table.0,
            snapshots_offset: table.1,
        };
        Ok((state, snapshot))
    }

    fn wanted(&self, wanted: &str) -> Result<&'a Snapshot> {
        self.table.named(wanted).ok_or_else(|| missing(wanted))
    }

    fn states(&mut self) -> States<'_> {
        States {
            file: self.file,
            geometry: self.header.geometry,
            recount: &mut self.recount,
            stop: self.stop,
        }
    }

    fn new_snapshot(&self, name: &str) -> Snapshot {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Snapshot {
            id: unused_id(&self.table.snapshots),
            name: name.to_owned(),
            size: self.header.geometry.size,
            date: now.unwrap_or_default(),
            guest_clock: Duration::ZERO,
            state_size: 0,
            // As qemu-img has it.
            instructions: Some(0),
            says_size: true,
            l1: ByteRange::between(0, 0),
        }
    }

    /// Writes an L1 table to a new place.
    async fn write_l1(&mut self, words: &[u64]) -> Result<ByteRange> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        self.write_new(bytes).await
    }

    /// Writes the snapshot table to a new place, without one and with another: how many there are then, and where.
    async fn write_table(
        &mut self,
        without: Option<&Snapshot>,
        with: Option<&Snapshot>,
    ) -> Result<(u32, u64)> {
        let mut entries = own_entries(&**self.file.device(), self.table).await?;
        if let Some(gone) = without {
            let is_gone = |it: &Snapshot| std::ptr::eq(it, gone);
            let at = self.table.snapshots.iter().position(is_gone);
            at.map(|at| entries.remove(at));
        }
        entries.extend(with.map(Snapshot::encode));
        let old = clusters_of(self.table.range, self.header.geometry);
        self.recount.change(old, Change::OnceLess).await?;
        let bytes = encode(&entries)?;
        let place = self.write_new(bytes).await?;
        Ok((entries.len() as u32, place.start()))
    }

    /// Writes a table to a new place, in whole clusters; one without a byte is nowhere.
    async fn write_new(&mut self, mut bytes: Vec<u8>) -> Result<ByteRange> {
        let cluster = self.header.geometry.cluster_size();
        let length = bytes.len() as u64;
        if length == 0 {
            return Ok(ByteRange::between(0, 0));
        }
        let place = self.recount.allocate(length.div_ceil(cluster)).await?;
        bytes.resize((place.count * cluster) as usize, 0);
        let start = place.first * cluster;
        self.file.write(start, Buffer::from(&bytes[..])).await?;
        Ok(ByteRange::between(start, start + length))
    }

    /// What the header is to have from the size on, to say what was prepared.
    async fn header_saying(&self, state: &NewState) -> Result<Vec<u8>> {
        let end = match self.header.geometry.version {
            2 => V2_END,
            _ => AUTOCLEAR.end as u64,
        };
        let range = ByteRange::between(0, end);
        let mut bytes = read_exact_at(&**self.file.device(), range).await?;
        let cluster_bits = self.header.geometry.cluster_bits;
        bytes[24..32].copy_from_slice(&state.size.to_be_bytes());
        bytes[36..40].copy_from_slice(&((state.l1.len() / 8) as u32).to_be_bytes());
        bytes[40..48].copy_from_slice(&state.l1.start().to_be_bytes());
        bytes[48..56].copy_from_slice(&state.refcounts.start().to_be_bytes());
        let refcounts = (state.refcounts.len() >> cluster_bits) as u32;
        bytes[56..60].copy_from_slice(&refcounts.to_be_bytes());
        bytes[60..64].copy_from_slice(&state.snapshots.to_be_bytes());
        bytes[64..72].copy_from_slice(&state.snapshots_offset.to_be_bytes());
        if let Some(features) = bytes.get(AUTOCLEAR) {
            // Who does not know a feature clears its bit (specification, "Header").
            let known = be64(features, 0) & self.header.autoclear.bits();
            bytes[AUTOCLEAR].copy_from_slice(&known.to_be_bytes());
        }
        Ok(bytes[SIZE_IN_HEADER as usize..].to_vec())
    }

    /// Gives space that is free now back to the file system. A hint.
    async fn trim_freed(&mut self) {
        let device = self.file.device();
        if !device.info().can(Capabilities::TRIM) {
            return;
        }
        let freed = self.recount.freed().await.unwrap_or_default();
        for range in freed {
            let is_there = range.end() <= self.file.end();
            if is_there && self.stop.check().is_ok() {
                let _ = device.trim(range, WriteFlags::empty()).await;
                tokio::task::yield_now().await;
            }
        }
    }
}
