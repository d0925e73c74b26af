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

pub(crate) fn wait_for(fd: impl AsFd, what: PollFlags) -> io::Result<()> {
    retry_on_intr(|| poll(&mut [PollFd::new(&fd, what)], None))?;
    Ok(())
}

// Miri knows nothing of ioctl on sockets.
#[cfg(all(test, not(miri)))]
mod tests {
    use std::{io::Write, os::unix::net::UnixStream, thread};

    use super::*;

    #[test]
    fn bytes_are_collected_until_the_buffer_is_full_or_the_stream_ends() {
        let (reader, mut writer) = io::pipe().expect("a pipe");
        let feeder = thread::spawn(move || {
            for part in ["one ", "two ", "three"] {
                writer.write_all(part.as_bytes()).expect("written");
            }
        });
        let mut bytes = [0; 6];
        assert_eq!(read_stream(&reader, &mut bytes).expect("read"), 6);
        assert_eq!(&bytes, b"one tw");
        let mut bytes = [0; 100];
        assert_eq!(read_stream(&reader, &mut bytes).expect("read"), 7);
        assert_eq!(&bytes[..7], b"o three");
        assert_eq!(read_stream(&reader, &mut bytes).expect("the end"), 0);
        feeder.join().expect("fed");
    }

    #[test]
    fn a_non_blocking_stream_is_waited_for_in_both_directions() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        ours.set_nonblocking(true).expect("set");
        let length = 4 << 20;
        let peer = thread::spawn(move || {
            let mut bytes = vec![0; length];
            assert_eq!(read_stream(&theirs, &mut bytes).expect("read"), length);
            write_stream(&theirs, &bytes).expect("written");
        });
        let mut bytes = vec![3; length];
        write_stream(&ours, &bytes).expect("written");
        bytes.fill(0);
        assert_eq!(read_stream(&ours, &mut bytes).expect("read"), length);
        assert!(bytes.iter().all(|byte| *byte == 3));
        peer.join().expect("the peer is done");
    }
}
