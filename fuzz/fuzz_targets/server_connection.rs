//! Whatever a client sends through a real socket, the server answers or hangs up, and never waits for more
//! than it will get. Whoever keeps to the protocol gets what a plain row of bytes would give.
//!
//! The first byte of an input chooses how the connection begins: with raw bytes, or with a handshake that
//! succeeds, followed by raw bytes or by requests that are made of the rest, valid and invalid ones.
#![no_main]

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use blockferry_block::MemoryDevice;
use blockferry_proto::{ClientConfig, ClientHandshake, Negotiated, Outcome, ReplyMode, Step, wire};
use blockferry_server::{Server, ServerOptions, SingleExport};
use libfuzzer_sys::fuzz_target;

const SIZE: usize = 64 << 10;

/// Far longer than anything takes: what is not done by then hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server of one connection, and the client's end of it.
struct Host {
    socket: UnixStream,
    device: Arc<MemoryDevice>,
    over: mpsc::Receiver<()>,
    /// Threads of this process before it was there.
    threads: usize,
}

impl Host {
    fn new(options: ServerOptions) -> Self {
        let threads = threads();
        let (client, server_end) = UnixStream::pair().expect("two sockets");
        for set in [UnixStream::set_read_timeout, UnixStream::set_write_timeout] {
            set(&client, Some(PATIENCE)).expect("an option");
        }
        let bytes: Vec<u8> = (0..SIZE).map(byte_at).collect();
        let device = Arc::new(MemoryDevice::from_bytes(bytes));
        let exports = Arc::new(SingleExport::new(device.clone()).named("disk"));
        let (tell, over) = mpsc::channel();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            let server = Server::new(exports, options);
            let served = runtime.block_on(server.serve_connected(OwnedFd::from(server_end)));
            served.expect("a thread");
            let _ = tell.send(());
        });
        Self {
            socket: client,
            device,
            over,
            threads,
        }
    }

    /// Waits for the server, whose client has said all that it will.
    fn end(self) -> Arc<MemoryDevice> {
        drop(self.socket);
        self.over.recv_timeout(PATIENCE).expect("an end");
        // What a thread that is about to end still holds looks like a leak.
        let deadline = Instant::now() + PATIENCE;
        while threads() > self.threads {
            assert!(Instant::now() < deadline, "a thread stays behind");
            thread::yield_now();
        }
        self.device
    }
}

/// How many threads this process has.
fn threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task");
    tasks.map_or(0, Iterator::count)
}

fn byte_at(offset: usize) -> u8 {
    // No page of it is zero, and no two begin alike.
    (offset / 251) as u8 | 1
}

fuzz_target!(|data: &[u8]| {
    let Some((&choice, input)) = data.split_first() else {
        return;
    };
    let mut options = ServerOptions::default();
    options.read_only = choice & 0x10 != 0;
    if choice & 0x20 != 0 {
        options.max_in_flight_requests = 2;
        options.max_in_flight_bytes = 4096;
    }
    options.discard = choice & 0x40 == 0;
    let read_only = options.read_only;
    let mut host = Host::new(options);
    if choice & 0x0c == 0 {
        say_everything(&host.socket, input);
        host.end();
        return;
    }
    let mut config = ClientConfig::default();
    config.structured = choice & 3 != 0;
    config.extended = choice & 3 > 1;
    config.contexts = match choice & 3 {
        1 | 2 => vec!["base:allocation".to_owned()],
        _ => Vec::new(),
    };
    let negotiated = shake(&mut host.socket, config);
    if choice & 0x04 != 0 {
        say_everything(&host.socket, input);
        let device = host.end();
        if read_only {
            assert!(device.contents().iter().copied().eq((0..SIZE).map(byte_at)));
        }
        return;
    }
    let mut client = Client {
        mode: negotiated.mode,
        has_contexts: !negotiated.contexts.is_empty(),
        read_only,
        expected: (0..SIZE).map(byte_at).collect(),
        socket: &host.socket,
        cookie: 0,
    };
    for program in input.chunks_exact(8) {
        client.ask(program, &host.device);
    }
    let expected = client.leave();
    assert!(
        host.end().contents() == expected,
        "what was written is not there"
    );
});

/// Writes `input`, and reads what comes back until the server has hung up.
fn say_everything(socket: &UnixStream, input: &[u8]) {
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut rest = vec![0; 64 << 10];
            let mut socket = socket;
            loop {
                match socket.read(&mut rest) {
                    Ok(0) => return,
                    Ok(_) => {}
                    Err(error) => {
                        use std::io::ErrorKind::{TimedOut, WouldBlock};
                        let hangs = matches!(error.kind(), TimedOut | WouldBlock);
                        assert!(!hangs, "the server neither answers nor hangs up");
                        return;
                    }
                }
            }
        });
        // It may hang up before it has read everything.
        let _ = { socket }.write_all(input);
        let _ = socket.shutdown(Shutdown::Write);
    });
}

fn shake(socket: &mut UnixStream, config: ClientConfig) -> Negotiated {
    let mut handshake = ClientHandshake::new(config).expect("a valid configuration");
    loop {
        match handshake.step() {
            Step::Send(bytes) => socket.write_all(&bytes).expect("sent"),
            Step::Receive(length) => {
                let mut bytes = vec![0; length];
                socket.read_exact(&mut bytes).expect("an answer");
                handshake.receive(&bytes).expect("a valid answer");
            }
            Step::StartTls => unreachable!("nobody asked for TLS"),
            Step::Done => match handshake.take_outcome() {
                Some(Outcome::Transmit(negotiated)) => return negotiated,
                other => panic!("the handshake came to {other:?}"),
            },
        }
    }
}

/// A client that asks one thing at a time and knows what the answer must be.
struct Client<'a> {
    mode: ReplyMode,
    has_contexts: bool,
    read_only: bool,
    expected: Vec<u8>,
    socket: &'a UnixStream,
    cookie: u64,
}

/// What came back for a request.
#[derive(Default)]
struct Reply {
    errno: u32,
    data: Vec<u8>,
    /// How many bytes of data or holes came.
    covered: usize,
    /// The sum of the extents.
    reported: u64,
}

impl Client<'_> {
    /// Makes a request of 8 bytes, sends it, and checks what it came to.
    fn ask(&mut self, program: &[u8], device: &MemoryDevice) {
        let number = |at: usize| u64::from(u16::from_be_bytes([program[at], program[at + 1]]));
        let code = u16::from(program[0] & 0x0f);
        let flags = u16::from(program[1] & 0x1f);
        let mut offset = number(2);
        let mut length = number(4);
        match program[0] >> 4 {
            // Somewhere near the end, or far behind it.
            0xd => offset += SIZE as u64 - 0x8000,
            0xe => offset = u64::MAX - offset,
            0xf => length <<= 16,
            _ => {}
        }
        // More than a write should take to be refused.
        let length = if code == 1 {
            length.min(1 << 18)
        } else {
            length.min(u32::MAX.into())
        };
        let end = offset.checked_add(length).filter(|end| *end <= SIZE as u64);
        self.cookie += 1;
        self.send(code, flags, offset, length, program[6]);
        let is_read = code == 0;
        let reply = self.receive(offset, if is_read { length as usize } else { 0 });
        let Some(end) = end else {
            assert!(
                reply.errno != 0 || code == 3 || length == 0,
                "behind the end"
            );
            return;
        };
        let (start, end) = (offset as usize, end as usize);
        if reply.errno != 0 {
            let plain = flags == 0 && matches!(code, 0 | 1 | 4 | 6);
            // A flush is of everything.
            let plain = plain || flags == 0 && code == 3 && (offset, length) == (0, 0);
            let is_refused = self.read_only && matches!(code, 1 | 4 | 6);
            assert!(
                !plain || is_refused,
                "a valid request {code} failed with {}",
                reply.errno
            );
            return;
        }
        match code {
            0 => {
                assert_eq!(reply.covered, end - start);
                assert!(reply.data == self.expected[start..end], "other data");
            }
            1 => self.expected[start..end].fill(program[6]),
            // Anything may be there now.
            4 => self.expected[start..end].copy_from_slice(&device.contents()[start..end]),
            6 => self.expected[start..end].fill(0),
            7 => {
                assert!(self.has_contexts && reply.reported > 0);
                assert!(start as u64 + reply.reported <= SIZE as u64);
            }
            3 | 5 => {}
            _ => panic!("the command {code} succeeded"),
        }
        assert!(!self.read_only || !matches!(code, 1 | 4 | 6) || length == 0);
    }

    fn send(&mut self, code: u16, flags: u16, offset: u64, length: u64, fill: u8) {
        let extended = self.mode == ReplyMode::Extended;
        let announced = extended && code == 1;
        let flags = flags | u16::from(announced) << 5;
        // To hang up is done once, at the end.
        let code = if code == 2 { 0x20 } else { code };
        let mut bytes = Vec::new();
        let magic = match extended {
            true => wire::EXTENDED_REQUEST_MAGIC,
            false => wire::REQUEST_MAGIC,
        };
        bytes.extend(magic.to_be_bytes());
        bytes.extend(flags.to_be_bytes());
        bytes.extend(code.to_be_bytes());
        bytes.extend(self.cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        match extended {
            true => bytes.extend(length.to_be_bytes()),
            false => bytes.extend((length as u32).to_be_bytes()),
        }
        if code == 1 {
            bytes.resize(bytes.len() + length as usize, fill);
        }
        self.socket.write_all(&bytes).expect("the server reads");
    }

    /// The whole answer to the last request, which wanted `length` bytes of data from `start` on.
    fn receive(&mut self, start: u64, length: usize) -> Reply {
        let mut reply = Reply {
            // Only what a successful read covers is looked at.
            data: vec![0x5a; length.min(SIZE)],
            ..Reply::default()
        };
        if self.mode == ReplyMode::Simple {
            let header: [u8; 16] = self.bytes();
            assert_eq!(header[..4], wire::SIMPLE_REPLY_MAGIC.to_be_bytes());
            assert_eq!(header[8..], self.cookie.to_be_bytes());
            reply.errno = word(&header[4..]);
            if reply.errno == 0 && length > 0 {
                self.socket.read_exact(&mut reply.data).expect("data");
                reply.covered = length;
            }
            return reply;
        }
        loop {
            let (flags, kind, payload) = self.chunk_header(start);
            let is_last = flags & 1 != 0;
            assert_eq!(flags & !1, 0);
            let mut body = vec![0; payload];
            self.socket.read_exact(&mut body).expect("a payload");
            match kind {
                wire::CHUNK_NONE => assert!(is_last && payload == 0),
                wire::CHUNK_OFFSET_DATA => {
                    let at = (long(&body) - start) as usize;
                    let data = &body[8..];
                    assert!(!data.is_empty());
                    reply.data[at..at + data.len()].copy_from_slice(data);
                    reply.covered += data.len();
                }
                wire::CHUNK_OFFSET_HOLE => {
                    let (at, hole) = ((long(&body) - start) as usize, word(&body[8..]) as usize);
                    assert!(payload == 12 && hole > 0);
                    reply.data[at..at + hole].fill(0);
                    reply.covered += hole;
                }
                wire::CHUNK_BLOCK_STATUS => {
                    assert!(self.mode == ReplyMode::Structured);
                    let extents = body[4..].chunks_exact(8);
                    reply.reported += extents.map(|extent| u64::from(word(extent))).sum::<u64>();
                }
                wire::CHUNK_BLOCK_STATUS_EXT => {
                    assert!(self.mode == ReplyMode::Extended);
                    let extents = body[8..].chunks_exact(16);
                    reply.reported += extents.map(long).sum::<u64>();
                }
                wire::CHUNK_ERROR | wire::CHUNK_ERROR_OFFSET => {
                    reply.errno = word(&body);
                    assert_ne!(reply.errno, 0);
                }
                _ => panic!("a chunk of type {kind:#x}"),
            }
            if is_last {
                return reply;
            }
        }
    }

    /// Flags, type and length of the next chunk.
    fn chunk_header(&mut self, start: u64) -> (u16, u16, usize) {
        if self.mode == ReplyMode::Structured {
            let header: [u8; 20] = self.bytes();
            assert_eq!(header[..4], wire::STRUCTURED_REPLY_MAGIC.to_be_bytes());
            assert_eq!(header[8..16], self.cookie.to_be_bytes());
            return (
                short(&header[4..]),
                short(&header[6..]),
                word(&header[16..]) as usize,
            );
        }
        let header: [u8; 32] = self.bytes();
        assert_eq!(header[..4], wire::EXTENDED_REPLY_MAGIC.to_be_bytes());
        assert_eq!(header[8..16], self.cookie.to_be_bytes());
        assert_eq!(header[16..24], start.to_be_bytes());
        (
            short(&header[4..]),
            short(&header[6..]),
            long(&header[24..]) as usize,
        )
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.socket.read_exact(&mut bytes).expect("an answer");
        bytes
    }

    /// Says goodbye, waits for the server to hang up, and tells what the device must hold.
    fn leave(mut self) -> Vec<u8> {
        let extended = self.mode == ReplyMode::Extended;
        let length = if extended { 32 } else { 28 };
        let magic = match extended {
            true => wire::EXTENDED_REQUEST_MAGIC,
            false => wire::REQUEST_MAGIC,
        };
        let mut bytes = magic.to_be_bytes().to_vec();
        bytes.extend(0u16.to_be_bytes());
        bytes.extend(2u16.to_be_bytes());
        bytes.resize(length, 0);
        self.socket.write_all(&bytes).expect("the server reads");
        let left = self.socket.read(&mut [0; 1]).expect("an end");
        assert_eq!(left, 0, "something was said that nobody asked for");
        std::mem::take(&mut self.expected)
    }
}

fn short(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn long(bytes: &[u8]) -> u64 {
    u64::from(word(bytes)) << 32 | u64::from(word(&bytes[4..]))
}
