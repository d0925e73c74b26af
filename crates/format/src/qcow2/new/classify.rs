//! What becomes of each cluster that is written: data, zeroes, or nothing at all.

use blockferry_block::{Buffer, ByteRange, Result, is_zero};

use super::NewImage;
use crate::qcow2::geometry::SUBCLUSTERS;

/// What becomes of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nothing needs to be said of it: what is behind the image is right, or zeroes are.
    Nothing,
    /// It is zero where something shows through otherwise: those of its subclusters that the mask says.
    Zero(u32),
    /// It is stored, those of its subclusters that these masks say: which are allocated, which are zero.
    Data { allocated: u32, zero: u32 },
}

/// All of a cluster is stored.
pub(super) const ALL: Fate = Fate::Data {
    allocated: u32::MAX,
    zero: 0,
};

/// Consecutive clusters of one fate.
pub(super) struct Piece {
    pub(super) range: ByteRange,
    /// Of each cluster.
    pub(super) fates: Vec<Fate>,
}

impl Piece {
    /// Whether they are stored.
    pub(super) fn is_data(&self) -> bool {
        matches!(self.fates.first(), Some(Fate::Data { .. }))
    }
}

impl NewImage {
    /// Cuts `range`, which is to hold `data`, into clusters of one fate.
    pub(super) async fn classify(&self, range: ByteRange, data: &[u8]) -> Result<Vec<Piece>> {
        let behind = self.behind(range).await?;
        let cluster = self.cluster_size();
        let mut pieces: Vec<Piece> = Vec::new();
        for (index, bytes) in data.chunks(cluster as usize).enumerate() {
            let at = index * cluster as usize;
            let behind = behind.as_ref().map(|behind| &behind[at..at + bytes.len()]);
            let fate = self.fate(bytes, behind);
            let start = range.start() + at as u64;
            let here = ByteRange::between(start, start + bytes.len() as u64);
            match pieces.last_mut() {
                Some(last) if is_alike(last.fates[0], fate) => {
                    last.range = ByteRange::between(last.range.start(), here.end());
                    last.fates.push(fate);
                }
                _ => pieces.push(Piece {
                    range: here,
                    fates: vec![fate],
                }),
            }
        }
        Ok(pieces)
    }

    /// The bytes behind `range` in the backing file, where it is known what is in it.
    async fn behind(&self, range: ByteRange) -> Result<Option<Buffer>> {
        let backing = self.options.backing.as_ref();
        let Some(device) = backing.and_then(|backing| backing.device.as_ref()) else {
            return Ok(None);
        };
        read_padded(device.as_ref(), range).await.map(Some)
    }

    fn fate(&self, bytes: &[u8], behind: Option<&[u8]>) -> Fate {
        if !self.options.extended_l2 || self.options.compress {
            return match self.part(bytes, behind) {
                Part::Behind => Fate::Nothing,
                Part::Zero => self.zero_fate(),
                Part::Data => ALL,
            };
        }
        let length = (self.cluster_size() / SUBCLUSTERS) as usize;
        let (mut allocated, mut zero) = (0, 0);
        for (index, bytes) in bytes.chunks(length).enumerate() {
            let at = index * length;
            let behind = behind.map(|behind| &behind[at..at + bytes.len()]);
            match self.part(bytes, behind) {
                Part::Behind => {}
                Part::Zero => zero |= 1 << index,
                Part::Data => allocated |= 1 << index,
            }
        }
        match (allocated, zero) {
            (0, 0) => Fate::Nothing,
            (0, _) => Fate::Zero(zero),
            _ => Fate::Data { allocated, zero },
        }
    }

    fn part(&self, bytes: &[u8], behind: Option<&[u8]>) -> Part {
        let is_behind = match behind {
            Some(behind) => bytes == behind,
            None => self.options.backing.is_none() && is_zero(bytes),
        };
        match is_behind {
            true => Part::Behind,
            false if is_zero(bytes) => Part::Zero,
            false => Part::Data,
        }
    }

    /// What becomes of a cluster of zeroes before a backing file: version 2 has no clusters that are zero.
    pub(super) fn zero_fate(&self) -> Fate {
        match self.options.version {
            2 => ALL,
            _ => Fate::Zero(u32::MAX),
        }
    }
}

/// What a cluster or a subcluster is.
enum Part {
    /// What shows where nothing is.
    Behind,
    Zero,
    Data,
}

fn is_alike(one: Fate, other: Fate) -> bool {
    std::mem::discriminant(&one) == std::mem::discriminant(&other)
}

/// Reads `range` of `device`; what lies behind its end reads as zeroes.
pub(super) async fn read_padded(
    device: &dyn blockferry_block::BlockDevice,
    range: ByteRange,
) -> Result<Buffer> {
    let inside = range.intersection(ByteRange::between(0, device.info().size));
    if inside.len() == range.len() {
        return blockferry_block::read_exact_at(device, range).await;
    }
    let mut whole = Buffer::zeroed(range.len() as usize);
    if !inside.is_empty() {
        let read = blockferry_block::read_exact_at(device, inside).await?;
        whole[..read.len()].copy_from_slice(&read);
    }
    Ok(whole)
}
