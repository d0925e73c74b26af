//! Pipes as containers: bytes rest in the kernel on their way from one descriptor to another and are never
//! copied (`splice(2)`).
//!
//! A pipe holds slots, not bytes: each piece of a page that goes in takes one, however small it is. A pipe
//! of 1 MiB (256 slots) may so be full with a few KiB, and only the pipe itself can say whether it is.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, retry_on_intr},
    pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice},
};

use crate::stream::wait_for;

/// A pipe whose both ends are ours, and how many bytes are in it. Its calls do not block.
#[derive(Debug)]
pub struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    capacity: usize,
    length: usize,
}

/// Lets the pipe that `end` is an end of hold `capacity` bytes (whole pages), and says how many it really
/// does: the system may grant less than was asked for, or nothing more than there was.
///
/// # Errors
/// When `end` is no end of a pipe.
pub fn set_pipe_capacity(end: impl AsFd, capacity: usize) -> io::Result<usize> {
    fcntl_setpipe_size(&end, capacity)
        .or_else(|_| fcntl_getpipe_size(&end))
        .map_err(io::Error::from)
}

/// How many bytes of pipes the system grants this user, all processes together, before it makes new ones tiny
/// (`/proc/sys/fs/pipe-user-pages-soft`); `None`: as many as one likes. A privileged process has no such limit.
#[must_use]
pub fn user_pipe_limit() -> Option<u64> {
    if crate::is_root() {
        return None;
    }
    let text = std::fs::read_to_string("/proc/sys/fs/pipe-user-pages-soft").ok()?;
    let pages: u64 = text.trim().parse().ok()?;
    (pages > 0).then(|| pages.saturating_mul(rustix::param::page_size() as u64))
}

/// Why no more bytes went into a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FillStop {
    /// All that was asked for is in.
    Complete,
    /// The source has nothing more at the moment.
    SourceEmpty,
    /// The source has come to its end.
    SourceEnded,
    /// The pipe takes nothing more: it has no slot left, or the source turned out not to be spliceable.
    /// What is left at the source must be received in another way.
    PipeFull,
}

impl Pipe {
    /// An empty pipe of `capacity` bytes (whole pages), or of what the system grants: an unprivileged user gets
    /// 64 pipes of 1 MiB, and after that pipes of 8 KiB. [`capacity`](Self::capacity) says what it became.
    ///
    /// # Errors
    /// As `pipe2(2)`.
    pub fn new(capacity: usize) -> io::Result<Self> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let capacity = set_pipe_capacity(&writer, capacity)?;
        Ok(Self {
            reader,
            writer,
            capacity,
            length: 0,
        })
    }

    /// How many bytes fit when each slot holds a whole page.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many bytes are in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Moves up to `length` bytes that have arrived at `socket` into the pipe, and says how many and why
    /// not more. The socket must be a non-blocking one.
    ///
    /// # Errors
    /// As `splice(2)` when nothing was moved; `InvalidInput` where sockets cannot be spliced.
    pub fn fill_from(&mut self, socket: impl AsFd, length: usize) -> io::Result<(usize, FillStop)> {
        let socket = socket.as_fd();
        let mut moved = 0;
        // How often the kernel may say "not now" of a socket and a pipe that are both ready.
        let mut patience = 2;
        while moved < length {
            match splice_some(socket, self.writer.as_fd(), length - moved) {
                Ok(0) => return Ok((moved, FillStop::SourceEnded)),
                Ok(count) => {
                    moved += count;
                    self.length += count;
                }
                Err(Errno::AGAIN) if patience > 0 => patience -= 1,
                Err(error) if moved == 0 && error != Errno::AGAIN => return Err(error.into()),
                // Whatever it is, a receive will tell.
                Err(_) => return Ok((moved, FillStop::PipeFull)),
            }
            if moved < length
                && let Some(stop) = self.find_stop(socket)?
            {
                return Ok((moved, stop));
            }
        }
        Ok((moved, FillStop::Complete))
    }

    /// Moves up to `length` bytes that `source` has into the pipe, in one call, and says how many; 0 means that
    /// the source has ended. The source must be non-blocking, or a regular file, whose position moves on.
    ///
    /// # Errors
    /// As `splice(2)`: `WouldBlock` when the source has nothing, and also when the pipe has no slot left: ask an
    /// empty one. `InvalidInput` where the source cannot be spliced.
    pub fn fill_once(&mut self, source: impl AsFd, length: usize) -> io::Result<usize> {
        // The length is that of the kernel's loops: one of SIZE_MAX is refused as invalid.
        let length = length.min(self.capacity);
        let count = splice_some(source.as_fd(), self.writer.as_fd(), length)?;
        self.length += count;
        Ok(count)
    }

    /// Moves as many of its bytes as `target` takes without waiting, and says how many.
    ///
    /// # Errors
    /// As `splice(2)`: `WouldBlock` when there is no room in the target, `InvalidInput` where it cannot be
    /// spliced to (a file opened with `O_APPEND`, some devices). A socket or a pipe without a reader is
    /// `BrokenPipe`, and a signal unless the process ignores SIGPIPE, as Rust programs do.
    pub fn drain_to(&mut self, target: impl AsFd) -> io::Result<usize> {
        if self.length == 0 {
            return Ok(0);
        }
        let count = splice_some(self.reader.as_fd(), target.as_fd(), self.length)?;
        self.length -= count.min(self.length);
        Ok(count)
    }

    /// Moves all of its bytes to `target` and waits for room there as long as it takes.
    ///
    /// # Errors
    /// As [`drain_to`](Self::drain_to), without `WouldBlock`; a part may have been moved. `WriteZero`
    /// when nothing more went out.
    pub fn drain_all_to(&mut self, target: impl AsFd) -> io::Result<()> {
        while !self.is_empty() {
            match self.drain_to(&target) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait_for(&target, PollFlags::OUT)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Puts up to `length` zero bytes in, as many as there is room for, and says how many.
    ///
    /// # Errors
    /// As `write(2)`, without `WouldBlock`.
    pub fn fill_with_zeroes(&mut self, length: usize) -> io::Result<usize> {
        static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
        let mut moved = 0;
        while moved < length {
            let part = ZEROES.len().min(length - moved);
            let count = self.put(&ZEROES[..part])?;
            moved += count;
            if count < part {
                break;
            }
        }
        Ok(moved)
    }

    /// Copies as many of `bytes` in as there is room for, and says how many.
    ///
    /// # Errors
    /// As `write(2)`, without `WouldBlock`.
    pub fn put(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut moved = 0;
        while moved < bytes.len() {
            match retry_on_intr(|| rustix::io::write(&self.writer, &bytes[moved..])) {
                Ok(count) => {
                    moved += count;
                    self.length += count;
                }
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(moved)
    }

    /// Takes bytes out into `bytes` until it is full or the pipe is empty, and says how many.
    ///
    /// # Errors
    /// As `read(2)`; `UnexpectedEof` when the pipe does not have what it was given.
    pub fn take(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let wanted = bytes.len().min(self.length);
        let mut done = 0;
        while done < wanted {
            match retry_on_intr(|| rustix::io::read(&self.reader, &mut bytes[done..wanted])) {
                Ok(0) | Err(Errno::AGAIN) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    done += count;
                    self.length -= count;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(done)
    }

    /// Which of the two does not let more bytes through. The pipe is asked first: a full one stays so
    /// however much arrives at the socket.
    fn find_stop(&self, socket: BorrowedFd<'_>) -> io::Result<Option<FillStop>> {
        const AT_ONCE: Timespec = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut ends = [
            PollFd::new(&self.writer, PollFlags::OUT),
            PollFd::from_borrowed_fd(socket, PollFlags::IN),
        ];
        retry_on_intr(|| poll(&mut ends, Some(&AT_ONCE)))?;
        if !ends[0].revents().contains(PollFlags::OUT) {
            return Ok(Some(FillStop::PipeFull));
        }
        Ok(ends[1]
            .revents()
            .is_empty()
            .then_some(FillStop::SourceEmpty))
    }
}

/// `SPLICE_F_MORE` is never given: it holds back what was sent until more follows.
fn splice_some(from: BorrowedFd<'_>, to: BorrowedFd<'_>, length: usize) -> Result<usize, Errno> {
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    retry_on_intr(|| splice(from, None, to, None, length, flags))
}

// Miri knows nothing of splice.
#[cfg(all(test, not(miri)))]
mod tests {
    use std::{
        fs::File,
        io::{Read, Write},
        os::unix::net::UnixStream,
        thread,
    };

    use super::*;

    fn pair() -> (UnixStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        ours.set_nonblocking(true).expect("set");
        (ours, theirs)
    }

    fn contents(pipe: &mut Pipe) -> Vec<u8> {
        let mut bytes = vec![0; pipe.len()];
        assert_eq!(pipe.take(&mut bytes).expect("taken"), bytes.len());
        bytes
    }

    #[test]
    fn bytes_pass_through_unchanged_and_are_counted() {
        let (ours, mut theirs) = pair();
        let bytes: Vec<u8> = (0..60_000_u32).map(|it| (it % 251) as u8).collect();
        theirs.write_all(&bytes).expect("sent");
        let mut pipe = Pipe::new(1 << 20).expect("a pipe");
        assert_eq!(
            pipe.fill_from(&ours, 10_000).expect("filled"),
            (10_000, FillStop::Complete)
        );
        assert_eq!(
            pipe.fill_from(&ours, 100_000).expect("filled"),
            (50_000, FillStop::SourceEmpty)
        );
        assert_eq!(pipe.len(), 60_000);
        pipe.drain_all_to(&ours).expect("room for all of it");
        let mut back = vec![0; bytes.len()];
        theirs.read_exact(&mut back).expect("received");
        assert!(back == bytes && pipe.is_empty());
        drop(theirs);
        assert_eq!(
            pipe.fill_from(&ours, 1).expect("filled"),
            (0, FillStop::SourceEnded)
        );
    }

    #[test]
    fn a_pipe_without_free_slots_is_full_though_few_bytes_are_in_it() {
        let (ours, mut theirs) = pair();
        let mut pipe = Pipe::new(16 << 12).expect("a pipe");
        for _ in 0..40 {
            theirs.write_all(&[7; 100]).expect("sent");
        }
        // The kernel may put small messages together, but a page has no room for all of them.
        let (mut count, mut stop) = pipe.fill_from(&ours, 1 << 20).expect("filled");
        while stop == FillStop::SourceEmpty {
            for _ in 0..40 {
                theirs.write_all(&[7; 100]).expect("sent");
            }
            let (more, next) = pipe.fill_from(&ours, 1 << 20).expect("filled");
            (count, stop) = (count + more, next);
        }
        assert_eq!(stop, FillStop::PipeFull);
        assert!(count <= pipe.capacity(), "{count}");
        assert_eq!(
            pipe.fill_from(&ours, 1).expect("filled"),
            (0, FillStop::PipeFull)
        );
        assert_eq!(contents(&mut pipe), vec![7; count]);
    }

    #[test]
    fn zeroes_go_in_as_far_as_there_is_room() {
        let mut pipe = Pipe::new(1 << 18).expect("a pipe");
        let capacity = pipe.capacity();
        assert_eq!(pipe.fill_with_zeroes(5000).expect("room"), 5000);
        let more = pipe.fill_with_zeroes(1 << 30).expect("some room");
        assert!(more < capacity && more > capacity - 3 * 4096, "{more}");
        assert_eq!(contents(&mut pipe), vec![0; 5000 + more]);
        assert_eq!(pipe.fill_with_zeroes(0).expect("nothing to do"), 0);
    }

    #[test]
    fn a_target_without_room_is_waited_for() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let mut pipe = Pipe::new(1 << 20).expect("a pipe");
        let length = pipe.fill_with_zeroes(900_000).expect("room");
        let reading = thread::spawn(move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).expect("all of it");
            bytes
        });
        pipe.drain_all_to(&writer).expect("a reader");
        drop(writer);
        assert_eq!(reading.join().expect("no panic"), vec![0; length]);
    }

    #[test]
    fn a_target_that_cannot_be_spliced_to_keeps_the_bytes_in_the_pipe() {
        let path = std::env::temp_dir().join(format!("sys-pipe-{}", std::process::id()));
        drop(File::create_new(&path).expect("a file"));
        let file = File::options().append(true).open(&path).expect("the file");
        std::fs::remove_file(&path).expect("a name to remove");
        let mut pipe = Pipe::new(1 << 16).expect("a pipe");
        pipe.fill_with_zeroes(100).expect("room");
        let error = pipe.drain_to(&file).expect_err("not to O_APPEND");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert_eq!(contents(&mut pipe), [0; 100]);
    }
}
