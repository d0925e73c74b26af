//! Memory that is lent while bytes are in it: a session that waits for its peer holds none.
//!
//! Spare buffers are the process's, for where each connection has a thread, memory that a thread keeps is memory that
//! an idle connection keeps. Nobody waits for them: who finds the list in use takes fresh memory, or lets old memory go.

use std::sync::Mutex;

/// How many buffers of a length wait to be lent again.
const SPARE: usize = 8;

static SPARES: Mutex<Vec<Box<[u8]>>> = Mutex::new(Vec::new());

/// A buffer of `length` bytes, with whatever is in them.
pub(crate) fn lend(length: usize) -> Box<[u8]> {
    let spare = SPARES.try_lock().ok().and_then(|mut spares| {
        let place = spares.iter().position(|spare| spare.len() == length)?;
        Some(spares.swap_remove(place))
    });
    // Fresh zeroes: what is never used of them takes no memory.
    spare.unwrap_or_else(|| vec![0; length].into_boxed_slice())
}

/// Takes a buffer back that is to be lent again.
pub(crate) fn take_back(buffer: Box<[u8]>) {
    if let Ok(mut spares) = SPARES.try_lock() {
        let alike = spares.iter().filter(|spare| spare.len() == buffer.len());
        if alike.count() < SPARE {
            spares.push(buffer);
        }
    }
}
