//! What was written is read again.

use blockferry_block::{
    BlockDevice, Buffer, ByteRange, Context, Error, ErrorKind, Extent, Mapping, Result, Status,
    push_merged,
};

use super::{
    NewImage,
    classify::read_padded,
    map::{decode, spans},
    packer::ClusterPacker,
};
use crate::{
    pipeline::Pipeline,
    pool::unpack,
    qcow2::{
        entry::{Cluster, Compressed},
        geometry::SUBCLUSTERS,
    },
};

/// How many parts of different kinds are told at a time.
const MOST_PARTS: usize = 4096;
/// How many clusters are looked at for one answer.
const MOST_CLUSTERS: u64 = 1 << 20;

/// Where the bytes of a range come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// Nothing is said of them.
    Nothing,
    /// They are zeroes.
    Zero,
    /// They are zeroes that have their place.
    AllocatedZero,
    /// They lie in the file as they are, from there on.
    Data(u64),
    /// They are in a compressed cluster, from this byte of it on.
    Compressed(Compressed, usize),
}

#[derive(Clone, Copy, Debug)]
struct Part {
    range: ByteRange,
    origin: Origin,
}

impl NewImage {
    pub(super) async fn read_parts(&self, range: ByteRange, buffer: Buffer) -> Result<Buffer> {
        if range.end() > self.size() {
            return Err(Error::new(ErrorKind::OutOfBounds));
        }
        self.drain().await?;
        let mut buffer = buffer;
        let mut rest = range;
        while !rest.is_empty() {
            let parts = self.parts(rest).await?;
            let Some(last) = parts.last() else { break };
            let end = last.range.end();
            for part in parts {
                if part.range == range {
                    return self.read_part(part, buffer).await;
                }
                let at = (part.range.start() - range.start()) as usize;
                let length = part.range.len() as usize;
                let read = self.read_part(part, Buffer::zeroed(length)).await?;
                buffer[at..at + length].copy_from_slice(&read);
            }
            rest = ByteRange::between(end, rest.end());
        }
        Ok(buffer)
    }

    async fn read_part(&self, part: Part, buffer: Buffer) -> Result<Buffer> {
        let mut buffer = buffer;
        match (part.origin, &self.options.backing) {
            (Origin::Data(host), _) => return self.data().read(host, buffer).await,
            (Origin::Nothing, Some(backing)) => {
                let Some(device) = &backing.device else {
                    let message = "it is not known what is in the backing file";
                    return Err(Error::with_message(ErrorKind::Unsupported, message));
                };
                return read_padded(device.as_ref(), part.range).await;
            }
            (Origin::Nothing | Origin::Zero | Origin::AllocatedZero, _) => buffer.fill(0),
            (Origin::Compressed(place, from), _) => {
                let cluster = self.read_compressed(place).await?;
                buffer.copy_from_slice(&cluster[from..from + part.range.len() as usize]);
            }
        }
        Ok(buffer)
    }

    /// Where the bytes of `range` come from, in order; possibly not up to its end.
    async fn parts(&self, range: ByteRange) -> Result<Vec<Part>> {
        if let Some(first) = self.fixed_place() {
            return Ok(self.fixed_parts(range, first));
        }
        let geometry = self.geometry();
        let cluster = geometry.cluster_size();
        let mut parts = Vec::new();
        let mut looked_at = 0;
        let mut at = range.start();
        while at < range.end() && parts.len() < MOST_PARTS && looked_at < MOST_CLUSTERS {
            let (index, _) = geometry.indices(at);
            let Some(table) = self.map.existing(index).await? else {
                let next = self.map.next_used(index).unwrap_or(u64::MAX);
                let end = next.saturating_mul(geometry.table_span());
                let end = end.clamp(at + 1, range.end());
                push(&mut parts, ByteRange::between(at, end), Origin::Nothing);
                at = end;
                continue;
            };
            let span = geometry.span_of(index);
            let here = ByteRange::between(at, span.end().max(at + 1).min(range.end()));
            let (_, first, count) = spans(geometry, here).next().unwrap_or((0, 0, 0));
            let guests = here.pieces(cluster);
            for (entry, guest) in (first..first + count).zip(guests) {
                let what = decode(table.entry(entry), geometry)?;
                push_cluster(&mut parts, guest, cluster, what);
            }
            looked_at += count as u64;
            at = here.end();
        }
        Ok(parts)
    }

    fn fixed_parts(&self, range: ByteRange, first: u64) -> Vec<Part> {
        let written = self.with_fixed(|written| written.present_in(range));
        let mut parts = Vec::new();
        let mut at = range.start();
        for part in written.unwrap_or_default() {
            let before = ByteRange::between(at, part.start());
            push(&mut parts, before, Origin::AllocatedZero);
            push(&mut parts, part, Origin::Data(first + part.start()));
            at = part.end();
        }
        let rest = ByteRange::between(at, range.end());
        push(&mut parts, rest, Origin::AllocatedZero);
        parts
    }

    /// The cluster that is compressed there.
    async fn read_compressed(&self, place: Compressed) -> Result<Buffer> {
        let stream = Buffer::zeroed(place.length as usize);
        let stream = self.file.read(place.offset, stream).await?;
        let mut cluster = Buffer::zeroed(self.cluster_size() as usize);
        let kind = self.options.compression;
        let unpacked = unpack(move |decompressor| {
            decompressor.decompress(kind, &stream, &mut cluster)?;
            Ok(cluster)
        });
        unpacked.await?
    }

    pub(super) async fn list_extents(&self, range: ByteRange) -> Result<Vec<Extent>> {
        if range.end() > self.size() {
            return Err(Error::new(ErrorKind::OutOfBounds));
        }
        self.settle(range).await?;
        let mut extents = Vec::new();
        for part in self.parts(range).await? {
            let status = match (part.origin, &self.options.backing) {
                (Origin::Data(_) | Origin::Compressed(..), _) => Status::DATA,
                (Origin::AllocatedZero, _) => Status::ZERO,
                (Origin::Zero, _) | (Origin::Nothing, None) => Status::HOLE_ZERO,
                (Origin::Nothing, Some(backing)) => match &backing.device {
                    None => Status::HOLE,
                    Some(device) => {
                        let all = behind(device.as_ref(), part.range, &mut extents).await?;
                        match all {
                            true => continue,
                            false => break,
                        }
                    }
                },
            };
            let range = part.range;
            push_merged(&mut extents, Extent { range, status });
        }
        Ok(extents)
    }

    pub(super) fn find_place(&self, range: ByteRange) -> Mapping<'_> {
        let range = range.intersection(ByteRange::between(0, self.size()));
        let is_under_way = |pipeline: &Pipeline<ClusterPacker>| !pipeline.is_idle();
        if range.is_empty() || self.pipeline.as_ref().is_some_and(is_under_way) {
            return Mapping::Opaque;
        }
        if let Some(first) = self.fixed_place() {
            let part = self.fixed_parts(range, first).first().copied();
            return match part {
                Some(part) => self.map_part(part),
                None => Mapping::Opaque,
            };
        }
        let geometry = self.geometry();
        let cluster = geometry.cluster_size();
        let (index, _) = geometry.indices(range.start());
        let here = range.intersection(geometry.span_of(index));
        let Some(table) = self.map.cached(index) else {
            return Mapping::Opaque;
        };
        let mut parts = Vec::new();
        let (_, first, count) = spans(geometry, here).next().unwrap_or((0, 0, 0));
        for (entry, guest) in (first..first + count).zip(here.pieces(cluster)) {
            let Ok(what) = decode(table.entry(entry), geometry) else {
                break;
            };
            push_cluster(&mut parts, guest, cluster, what);
            if parts.len() > 1 {
                break;
            }
        }
        match parts.first() {
            Some(part) => self.map_part(*part),
            None => Mapping::Opaque,
        }
    }

    fn map_part(&self, part: Part) -> Mapping<'_> {
        let length = part.range.len();
        match part.origin {
            Origin::Data(host) => {
                let place = ByteRange::between(host, host + length);
                self.data().device().mapping(place)
            }
            Origin::Zero | Origin::AllocatedZero => Mapping::Zero { length },
            Origin::Nothing if self.options.backing.is_none() => Mapping::Zero { length },
            Origin::Nothing | Origin::Compressed(..) => Mapping::Opaque,
        }
    }
}

/// Adds what `device` says of `range`, and whether that was all.
async fn behind(
    device: &dyn BlockDevice,
    range: ByteRange,
    extents: &mut Vec<Extent>,
) -> Result<bool> {
    let size = device.info().size;
    let inside = range.intersection(ByteRange::between(0, size));
    let mut end = range.start();
    if !inside.is_empty() {
        let told = device.extents(inside, &Context::Allocation).await?;
        for extent in told {
            let range = extent.range.intersection(inside);
            if range.start() != end || range.is_empty() {
                break;
            }
            end = range.end();
            let status = extent.status;
            push_merged(extents, Extent { range, status });
        }
        if end < inside.end() {
            return Ok(false);
        }
    }
    let range = ByteRange::between(end, range.end());
    let status = Status::HOLE_ZERO;
    push_merged(extents, Extent { range, status });
    Ok(true)
}

/// Adds what is known of `guest`, which lies within one cluster of `size` bytes.
fn push_cluster(parts: &mut Vec<Part>, guest: ByteRange, size: u64, cluster: Cluster) {
    let inside = guest.start() % size;
    match cluster {
        Cluster::Unallocated => push(parts, guest, Origin::Nothing),
        Cluster::Zero { .. } => push(parts, guest, Origin::Zero),
        Cluster::Data { host } => push(parts, guest, Origin::Data(host + inside)),
        Cluster::Compressed(place) => {
            push(parts, guest, Origin::Compressed(place, inside as usize));
        }
        Cluster::Mixed {
            host,
            allocated,
            zero,
        } => {
            for piece in guest.pieces(size / SUBCLUSTERS) {
                let inside = piece.start() % size;
                let bit = 1_u32 << (inside / (size / SUBCLUSTERS));
                let origin = match host {
                    Some(host) if allocated & bit != 0 => Origin::Data(host + inside),
                    _ if zero & bit != 0 => Origin::Zero,
                    _ => Origin::Nothing,
                };
                push(parts, piece, origin);
            }
        }
    }
}

fn push(parts: &mut Vec<Part>, range: ByteRange, origin: Origin) {
    if range.is_empty() {
        return;
    }
    if let Some(last) = parts.last_mut() {
        let goes_on = match (last.origin, origin) {
            (Origin::Data(host), Origin::Data(next)) => host + last.range.len() == next,
            (Origin::Compressed(..), _) => false,
            (one, other) => one == other,
        };
        if goes_on {
            last.range = ByteRange::between(last.range.start(), range.end());
            return;
        }
    }
    parts.push(Part { range, origin });
}
