//! A device whose power can be cut.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, DeviceInfo, Error, ErrorKind,
    Operation, Result, WriteFlags, ZeroFlags, device::request_range,
};

/// What a disk writes as a whole, in bytes.
const SECTOR: u64 = 512;

/// What trimmed bytes read as: nobody may rely on it.
const TRIMMED: u8 = 0xdd;

/// A device in memory that can grow and remembers the order of all that was done to it, so that one can see what is
/// there when its power is cut at any point: what was flushed, and any part of what was not.
#[derive(Debug)]
pub struct ForgetfulDevice {
    info: DeviceInfo,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// As it was made.
    first: Vec<u8>,
    /// As one sees it while there is power.
    now: Vec<u8>,
    events: Vec<Event>,
    /// What is surely there after so many events, the last of which was a flush.
    durable: (usize, Vec<u8>),
}

#[derive(Clone, Debug)]
enum Event {
    /// These bytes, here. What was trimmed or zeroed is bytes, too.
    Write(u64, Vec<u8>),
    Resize(u64),
    Flush,
}

/// What of the events since the last flush is there after the power was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Survival {
    /// Nothing.
    Nothing,
    /// All of it.
    Everything,
    /// Some events, as a whole, as this number has it.
    Events(u64),
    /// Some sectors of 512 bytes of some events, as this number has it.
    Sectors(u64),
}

impl ForgetfulDevice {
    /// A device that has `bytes`, durably.
    #[must_use]
    pub fn new(bytes: impl AsRef<[u8]>) -> Self {
        let now = bytes.as_ref().to_vec();
        let mut info = DeviceInfo::new("forgetful:", now.len() as u64);
        info.capabilities = Capabilities::WRITE
            | Capabilities::FLUSH
            | Capabilities::TRIM
            | Capabilities::ZERO
            | Capabilities::RESIZE;
        let durable = (0, now.clone());
        let state = State {
            first: now.clone(),
            now,
            events: Vec::new(),
            durable,
        };
        Self {
            info,
            state: Mutex::new(state),
        }
    }

    /// How many events there were: changes and flushes.
    #[must_use]
    pub fn events(&self) -> usize {
        self.state().events.len()
    }

    /// What is there when the power is cut after the first `events` events. Those who ask for one after the other
    /// ask with rising numbers: that is fast.
    #[must_use]
    pub fn cut(&self, events: usize, survival: Survival) -> Vec<u8> {
        let state = &mut *self.state();
        let events = events.min(state.events.len());
        let mut flushes = state.events[..events].iter();
        let flushed = flushes
            .rposition(|event| matches!(event, Event::Flush))
            .map_or(0, |at| at + 1);
        if flushed < state.durable.0 {
            state.durable = (0, state.first.clone());
        }
        let (done, durable) = &mut state.durable;
        for event in &state.events[*done..flushed] {
            event.apply(durable, |_| true);
        }
        *done = flushed;
        let mut bytes = durable.clone();
        for (index, event) in (0..).zip(&state.events[flushed..events]) {
            match survival {
                Survival::Nothing => {}
                Survival::Everything => event.apply(&mut bytes, |_| true),
                Survival::Events(seed) if mixed(seed, index, 0) & 1 == 0 => {}
                Survival::Events(_) => event.apply(&mut bytes, |_| true),
                Survival::Sectors(seed) => {
                    event.apply(&mut bytes, |at| mixed(seed, index, at / SECTOR) & 1 == 1);
                }
            }
        }
        bytes
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, operation: Operation, range: ByteRange, bytes: Vec<u8>) -> Result<()> {
        self.info.check(operation, range)?;
        let event = Event::Write(range.start(), bytes);
        let mut state = self.state();
        event.apply(&mut state.now, |_| true);
        state.events.push(event);
        Ok(())
    }
}

impl Event {
    /// Does it to `bytes`, as far as sectors that begin at an offset are there afterwards.
    fn apply(&self, bytes: &mut Vec<u8>, is_there: impl Fn(u64) -> bool) {
        let (offset, data) = match self {
            Self::Write(offset, data) => (offset, data),
            Self::Resize(size) if is_there(*size) => return bytes.resize(*size as usize, 0),
            Self::Resize(_) | Self::Flush => return,
        };
        let range = ByteRange::between(*offset, offset + data.len() as u64);
        for piece in range.pieces(SECTOR) {
            if !is_there(piece.start()) {
                continue;
            }
            let place = piece.start() as usize..piece.end() as usize;
            if bytes.len() < place.end {
                bytes.resize(place.end, 0);
            }
            let from = (piece.start() - offset) as usize;
            bytes[place].copy_from_slice(&data[from..][..piece.len() as usize]);
        }
    }
}

/// Any number that follows from these.
fn mixed(seed: u64, event: u64, sector: u64) -> u64 {
    let mut state = seed ^ event.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ sector.rotate_left(32);
    for _ in 0..2 {
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^= state >> 31;
    }
    state
}

impl BlockDevice for ForgetfulDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, mut buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Read, offset, &buffer)?;
            let state = self.state();
            let place = range.start() as usize..range.end() as usize;
            let Some(bytes) = state.now.get(place) else {
                let error = Error::new(ErrorKind::OutOfBounds).during(Operation::Read);
                return Err(error.at(offset, range.len()));
            };
            buffer.copy_from_slice(bytes);
            Ok(buffer)
        })
    }

    fn write(&self, offset: u64, data: Buffer, _: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Write, offset, &data)?;
            self.change(Operation::Write, range, data.to_vec())?;
            Ok(data)
        })
    }

    fn zero(&self, range: ByteRange, _: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        let zeroes = vec![0; range.len() as usize];
        Box::pin(async move { self.change(Operation::Zero, range, zeroes) })
    }

    fn resize(&self, size: u64) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let event = Event::Resize(size);
            let mut state = self.state();
            event.apply(&mut state.now, |_| true);
            state.events.push(event);
            Ok(())
        })
    }

    fn trim(&self, range: ByteRange, _: WriteFlags) -> BoxFuture<'_, Result<()>> {
        let anything = vec![TRIMMED; range.len() as usize];
        Box::pin(async move { self.change(Operation::Trim, range, anything) })
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.state().events.push(Event::Flush);
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_what_was_flushed_is_sure_to_be_there() {
        let device = ForgetfulDevice::new([1; 2048]);
        let write = |at, byte, length| {
            device.write(
                at,
                Buffer::from(&vec![byte; length][..]),
                WriteFlags::empty(),
            )
        };
        write(0, 2, 512).await.expect("written");
        device.flush().await.expect("flushed");
        write(512, 3, 2048).await.expect("written");
        write(0, 4, 512).await.expect("written");
        let read = device.read(0, Buffer::zeroed(2560)).await.expect("read");
        assert_eq!((read[0], read[512], read[2559]), (4, 3, 3));
        assert_eq!(device.events(), 4);
        assert_eq!(device.cut(1, Survival::Nothing), [1; 2048]);
        assert_eq!(device.cut(1, Survival::Everything)[..512], [2; 512]);
        let flushed = device.cut(4, Survival::Nothing);
        assert_eq!(
            (&flushed[..512], &flushed[512..]),
            (&[2; 512][..], &[1; 1536][..])
        );
        assert_eq!(device.cut(4, Survival::Everything), read[..]);
        let mut lengths = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let some = device.cut(4, Survival::Sectors(seed));
            assert!(matches!(some[0], 2 | 4));
            for sector in some.chunks(512) {
                assert!(
                    sector.iter().all(|byte| *byte == sector[0]),
                    "sectors are whole"
                );
            }
            lengths.insert(some.len());
            let whole = device.cut(4, Survival::Events(seed));
            assert!(whole.len() == 2048 || whole[512..] == [3; 2048]);
        }
        assert!(lengths.len() > 1, "some of it is there, sometimes");
    }
}
