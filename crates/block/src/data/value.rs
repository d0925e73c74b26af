//! Bytes that share and repeat parts of each other, so that what is small in the end may be large on the way.

use std::{collections::BTreeMap, sync::Arc};

use super::DataError;
use crate::{ByteRange, MemoryDevice, is_zero};

/// The largest offset that a disk can have.
const MOST_SIZE: u64 = i64::MAX as u64;

/// How deep values may consist of each other.
const DEEPEST: u32 = 128;

/// What repeats is written out up to so many bytes, so that it is laid out in larger pieces.
const CHUNK: u64 = 64 << 10;

/// Some bytes, each of them known: what is in no part is zero.
#[derive(Clone, Debug)]
pub(super) struct Value {
    size: u64,
    /// How many bytes may be other than zero: at most so many.
    data: u64,
    depth: u32,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Zero,
    Fill(u8),
    Bytes(Arc<[u8]>),
    /// As often as it fits into the size.
    Repeat(Arc<Value>),
    /// By the offset where each part begins; they do not overlap.
    Parts(Arc<BTreeMap<u64, Part>>),
}

/// `length` bytes of a value, from `skip` on.
#[derive(Clone, Debug)]
struct Part {
    value: Arc<Value>,
    skip: u64,
    length: u64,
}

impl Value {
    fn zero(size: u64) -> Self {
        Self {
            size,
            data: 0,
            depth: 0,
            kind: Kind::Zero,
        }
    }

    pub(super) fn byte(byte: u8) -> Self {
        Self {
            size: 1,
            data: 1,
            depth: 0,
            kind: match byte {
                0 => return Self::zero(1),
                _ => Kind::Fill(byte),
            },
        }
    }

    pub(super) fn bytes(bytes: Vec<u8>) -> Self {
        let size = bytes.len() as u64;
        if is_zero(&bytes) {
            return Self::zero(size);
        }
        Self {
            size,
            data: size,
            depth: 0,
            kind: Kind::Bytes(bytes.into()),
        }
    }

    /// How many bytes there are.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The value `count` times.
    pub(super) fn repeated(self, count: u64) -> Result<Self, DataError> {
        let size = self.size.checked_mul(count);
        let size = size.filter(|size| *size <= MOST_SIZE);
        let size = size.ok_or(DataError::TooLarge)?;
        if size == self.size {
            return Ok(self);
        }
        if size == 0 {
            return Ok(Self::zero(0));
        }
        let data = self.data.saturating_mul(count);
        let depth = self.depth + 1;
        let kind = match self.kind {
            Kind::Zero => return Ok(Self::zero(size)),
            Kind::Fill(byte) => Kind::Fill(byte),
            _ if self.size <= CHUNK && !matches!(self.kind, Kind::Bytes(_)) => {
                Kind::Repeat(Arc::new(Self::bytes(self.small())))
            }
            _ => Kind::Repeat(Arc::new(self)),
        };
        let value = Self {
            size,
            data,
            depth,
            kind,
        };
        value.checked()
    }

    /// The bytes from `start` up to the one before `end`.
    pub(super) fn slice(self, start: u64, end: Option<u64>) -> Result<Self, DataError> {
        let end = end.unwrap_or(self.size);
        if start == end {
            // Nothing is a part of everything, as nbdkit has it.
            return Ok(Self::zero(0));
        }
        if start > end || end > self.size {
            let size = self.size;
            return Err(DataError::Slice { start, end, size });
        }
        if end - start == self.size {
            return Ok(self);
        }
        let mut parts = Parts::default();
        parts.put_part(
            0,
            Part {
                skip: start,
                length: end - start,
                value: Arc::new(self),
            },
        )?;
        parts.into_value()
    }

    /// The value cut to `size` bytes, or with zeroes behind it.
    pub(super) fn resized(self, size: u64) -> Result<Self, DataError> {
        if size <= self.size {
            return self.slice(0, Some(size));
        }
        let mut parts = Parts::default();
        parts.put(0, self)?;
        parts.extend_to(size)?;
        parts.into_value()
    }

    /// Writes the data to a device of the same size, which is empty and may take `most` bytes of memory.
    pub(super) fn lay_out(&self, device: &MemoryDevice, most: u64) -> Result<(), DataError> {
        if self.data > most {
            return Err(DataError::TooMuch);
        }
        let mut out = |at: u64, bytes: &[u8]| {
            let written = device.write_now(ByteRange::between(at, at + bytes.len() as u64), bytes);
            match written {
                Ok(()) if device.allocated() <= most => Ok(()),
                Ok(()) => Err(DataError::TooMuch),
                Err(_) => Err(DataError::TooLarge),
            }
        };
        self.emit(ByteRange::between(0, self.size), 0, &mut out)
    }

    fn checked(self) -> Result<Self, DataError> {
        match self.depth > DEEPEST {
            true => Err(DataError::TooDeep),
            false => Ok(self),
        }
    }

    /// All bytes of one that has no more than a chunk.
    fn small(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.size as usize];
        let mut out = |at: u64, piece: &[u8]| {
            bytes[at as usize..at as usize + piece.len()].copy_from_slice(piece);
            Ok(())
        };
        // It cannot fail: nothing in it does.
        let _ = self.emit(ByteRange::between(0, self.size), 0, &mut out);
        bytes
    }

    /// Hands the data of `range` to `out`, the range's first byte being at `at` there. Zeroes may be left out.
    fn emit(&self, range: ByteRange, at: u64, out: &mut Out<'_>) -> Result<(), DataError> {
        if self.data == 0 || range.is_empty() {
            return Ok(());
        }
        match &self.kind {
            Kind::Zero => Ok(()),
            Kind::Fill(byte) => {
                let chunk = vec![*byte; range.len().min(CHUNK) as usize];
                emit_pieces(range, at, CHUNK, |piece, to| {
                    out(to, &chunk[..piece.len() as usize])
                })
            }
            Kind::Bytes(bytes) => out(at, &bytes[range.start() as usize..range.end() as usize]),
            Kind::Repeat(unit) if unit.size < CHUNK => {
                let bytes = unit.small();
                let times = (CHUNK / unit.size).min(range.len().div_ceil(unit.size) + 1);
                let chunk = bytes.repeat(times as usize);
                emit_pieces(range, at, chunk.len() as u64, |piece, to| {
                    let start = (piece.start() % chunk.len() as u64) as usize;
                    out(to, &chunk[start..start + piece.len() as usize])
                })
            }
            Kind::Repeat(unit) => emit_pieces(range, at, unit.size, |piece, to| {
                let start = piece.start() % unit.size;
                unit.emit(ByteRange::between(start, start + piece.len()), to, out)
            }),
            Kind::Parts(parts) => {
                let first = parts.range(..=range.start()).next_back();
                let from = first.map_or(0, |(start, _)| *start);
                for (start, part) in parts.range(from..range.end()) {
                    let place = ByteRange::between(*start, start + part.length);
                    let inside = place.intersection(range);
                    let skip = part.skip + (inside.start() - place.start().min(inside.start()));
                    let wanted = ByteRange::between(skip, skip + inside.len());
                    let to = at + (inside.start() - range.start().min(inside.start()));
                    part.value.emit(wanted, to, out)?;
                }
                Ok(())
            }
        }
    }
}

/// Takes bytes and where they lie.
type Out<'a> = dyn FnMut(u64, &[u8]) -> Result<(), DataError> + 'a;

fn emit_pieces(
    range: ByteRange,
    at: u64,
    unit: u64,
    mut out: impl FnMut(ByteRange, u64) -> Result<(), DataError>,
) -> Result<(), DataError> {
    for piece in range.pieces(unit) {
        out(piece, at + (piece.start() - range.start()))?;
    }
    Ok(())
}

/// Values put at offsets, the later ones over the earlier.
#[derive(Debug, Default)]
pub(super) struct Parts {
    size: u64,
    depth: u32,
    parts: BTreeMap<u64, Part>,
}

impl Parts {
    /// Puts all of `value` at `offset`, and says where it ends.
    pub(super) fn put(&mut self, offset: u64, value: Value) -> Result<u64, DataError> {
        let length = value.size;
        let value = Arc::new(value);
        self.put_part(
            offset,
            Part {
                value,
                skip: 0,
                length,
            },
        )
    }

    fn put_part(&mut self, offset: u64, part: Part) -> Result<u64, DataError> {
        let range = ByteRange::new(offset, part.length).map_err(|_| DataError::TooLarge)?;
        self.extend_to(range.end())?;
        self.clear(range);
        self.depth = self.depth.max(part.value.depth + 1);
        if part.length > 0 && part.value.data > 0 {
            self.parts.insert(offset, part);
        }
        Ok(range.end())
    }

    /// Makes it so large at least.
    pub(super) fn extend_to(&mut self, size: u64) -> Result<(), DataError> {
        if size > MOST_SIZE {
            return Err(DataError::TooLarge);
        }
        self.size = self.size.max(size);
        Ok(())
    }

    /// Takes away what lies in `range`.
    fn clear(&mut self, range: ByteRange) {
        if range.is_empty() {
            return;
        }
        if let Some((start, before)) = self.parts.range_mut(..range.start()).next_back() {
            let end = start + before.length;
            if end > range.start() {
                let mut tail = before.clone();
                before.length = range.start() - start;
                if end > range.end() {
                    tail.skip += range.end() - start;
                    tail.length = end - range.end();
                    self.parts.insert(range.end(), tail);
                }
            }
        }
        while let Some((start, part)) = self.parts.range(range.start()..range.end()).next() {
            let (start, end) = (*start, start + part.length);
            let Some(mut part) = self.parts.remove(&start) else {
                return;
            };
            if end > range.end() {
                part.skip += range.end() - start;
                part.length = end - range.end();
                self.parts.insert(range.end(), part);
            }
        }
    }

    /// The value that all of it is.
    pub(super) fn into_value(mut self) -> Result<Value, DataError> {
        let data = self.parts.values().fold(0_u64, |sum, part| {
            sum.saturating_add(part.length.min(part.value.data))
        });
        if data == 0 {
            return Ok(Value::zero(self.size));
        }
        // One that is all of it is nothing new.
        if let (1, Some(part)) = (self.parts.len(), self.parts.get(&0))
            && part.skip == 0
            && part.length == self.size
            && part.value.size == self.size
        {
            let part = self.parts.pop_first();
            if let Some((_, part)) = part {
                return Ok(Arc::unwrap_or_clone(part.value));
            }
        }
        let value = Value {
            size: self.size,
            data,
            depth: self.depth,
            kind: Kind::Parts(Arc::new(self.parts)),
        };
        value.checked()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_a_little_data_touches_count_too() {
        let mut unit = Parts::default();
        unit.put(0, Value::byte(1)).expect("room");
        unit.extend_to(1 << 20).expect("room");
        let unit = unit.into_value().expect("a value");
        for (count, fits) in [(32, true), (33, false), (1 << 40, false)] {
            let value = unit.clone().repeated(count).expect("a value");
            let device = MemoryDevice::new(value.size());
            let laid_out = value.lay_out(&device, 1 << 20);
            let expected = if fits {
                Ok(())
            } else {
                Err(DataError::TooMuch)
            };
            assert_eq!(laid_out, expected, "{count}");
            assert!(device.allocated() <= (1 << 20) + (32 << 10));
        }
    }

    #[test]
    fn what_repeats_a_little_is_laid_out_as_a_whole() {
        let value = Value::bytes(vec![1, 2, 3]).repeated(1 << 40);
        let value = value.and_then(|value| value.slice(1, Some(200_001)));
        let value = value.expect("a value");
        let device = MemoryDevice::new(value.size());
        value.lay_out(&device, 1 << 20).expect("it fits");
        let bytes = device.contents();
        assert!(
            (1..)
                .zip(&bytes)
                .all(|(at, byte)| u64::from(*byte) == at % 3 + 1)
        );
    }
}
