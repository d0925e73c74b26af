//! Byte streams: reading and writing what has no offsets (pipes, terminals, sockets).
//!
//! The calls block, also on descriptors that someone else made non-blocking: standard input and
//! output share that flag with whoever started us.

use std::{io, os::fd::AsFd};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::{Errno, retry_on_intr},
};

/// Reads until `bytes` is full or the stream ends, and says how many bytes came.
///
/// # Errors
/// What `read` failed with; bytes that came before the failure are lost.
pub fn read_stream(fd: impl AsFd, bytes: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::read(&fd, &mut bytes[done..]) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_for(&fd, PollFlags::IN)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(done)
}

/// Writes all of `bytes`.
///
/// # Errors
/// What `write` failed with; a part may have been written. `WriteZero` when nothing more went in.
pub fn write_stream(fd: impl AsFd, bytes: &[u8]) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::write(&fd, &bytes[done..]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_for(&fd, PollFlags::OUT)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn wait_for(fd: impl AsFd, what: PollFlags) -> io::Result<()> {
    retry_on_intr(|| poll(&mut [PollFd::new(&fd, what)], None))?;
    Ok(())
}
