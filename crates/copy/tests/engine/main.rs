//! The engine against devices that hold it to every rule of the trait.

mod checkpoint;
mod compare;
mod digest;
mod disk;
mod extents;
mod faults;
mod handle;
mod limits;
mod many;
mod oracle;
mod pace;
mod pipe;
mod piped;
mod plain;
mod random;
mod restart;
mod restarting;
mod streams;
mod taken;
mod told;

use std::sync::{Arc, Mutex};

use blockferry_block::BlockDevice;
use blockferry_copy::{
    Control, CopyError, CopyOptions, Destination, Event, Progress, Report, Source, copy,
};

/// Requests as on a machine of even speed, so that each connection has its share: nothing is adapted.
fn evenly() -> CopyOptions {
    let mut options = CopyOptions::default();
    options.request_size = Some(256 << 10);
    options.requests = Some(4);
    options
}

/// Copies one device to another without a control or an observer.
async fn copy_device(
    from: &Arc<impl BlockDevice + 'static>,
    to: &Arc<impl BlockDevice + 'static>,
    options: &CopyOptions,
) -> Result<Report, CopyError> {
    let (from, to) = (device(from), to_device(to));
    copy(from, to, options, &Control::new(), &()).await
}

fn device(device: &Arc<impl BlockDevice + 'static>) -> Source {
    let device: Arc<dyn BlockDevice> = device.clone();
    Source::Device(device)
}

fn to_device(device: &Arc<impl BlockDevice + 'static>) -> Destination {
    let device: Arc<dyn BlockDevice> = device.clone();
    Destination::Device(device)
}

/// Keeps the events of a copy, and checks what every copy's events must be.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<Event>>>);

impl Recorder {
    fn events(&self) -> Vec<Event> {
        self.0.lock().expect("not poisoned").clone()
    }

    fn warnings(&self) -> usize {
        let warning = |event: &&Event| matches!(event, Event::Warning(_));
        self.events().iter().filter(warning).count()
    }

    /// The last progress, after checking that it only ever grew.
    fn progress(&self) -> Progress {
        let mut last = Progress::default();
        for event in self.events() {
            if let Event::Progress(progress) = event {
                assert!(progress.done > last.done);
                assert!(progress.data >= last.data && progress.zero >= last.zero);
                assert_eq!(progress.data + progress.zero, progress.done);
                last = progress;
            }
        }
        last
    }
}

impl blockferry_copy::Observer for Recorder {
    fn event(&self, event: Event) {
        self.0.lock().expect("not poisoned").push(event);
    }
}

/// Bytes that differ from block to block and are never zero.
fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&(state | 0x0101_0101_0101_0101).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
