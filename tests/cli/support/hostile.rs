//! A server that negotiates as told and then does as told: garbage, lies, silence, death.
//!
//! It is written from the specification alone, without the project's own protocol code, so that an error
//! in that code cannot hide here.

use std::{
    io::{self, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

const HAS_FLAGS: u16 = 1;
const SEND_FLUSH: u16 = 1 << 2;

/// What the server says of its export.
#[derive(Clone)]
pub(crate) struct Export {
    pub(crate) size: u64,
    pub(crate) flags: u16,
    /// Minimum, preferred, maximum.
    pub(crate) block_sizes: Option<[u32; 3]>,
    pub(crate) structured: bool,
}

impl Default for Export {
    fn default() -> Self {
        Self {
            size: 1 << 20,
            flags: HAS_FLAGS | SEND_FLUSH,
            block_sizes: None,
            structured: false,
        }
    }
}

/// A request as it came over the wire.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) command: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) length: u32,
}

/// The server; it ends with the value.
pub(crate) struct Hostile {
    socket: PathBuf,
    over: Arc<AtomicBool>,
}

impl Hostile {
    /// Gives each connection to `behaviour`, from its first byte on.
    pub(crate) fn raw(
        directory: &Path,
        behaviour: impl Fn(&mut UnixStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let socket = directory.join("hostile.sock");
        let listener = UnixListener::bind(&socket).expect("a free name");
        let over = Arc::new(AtomicBool::new(false));
        let (stop, behaviour) = (Arc::clone(&over), Arc::new(behaviour));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let behaviour = Arc::clone(&behaviour);
                let mut stream = stream.expect("a connection");
                thread::spawn(move || behaviour(&mut stream));
            }
        });
        Self { socket, over }
    }

    /// Negotiates `export` and gives each request to `answer`; writes' payload has been dropped.
    pub(crate) fn serving(
        directory: &Path,
        export: Export,
        answer: impl Fn(&mut UnixStream, Request) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self::raw(directory, move |stream| {
            negotiate(stream, &export)?;
            loop {
                let request = receive_request(stream)?;
                if request.command == 2 {
                    return Ok(());
                }
                answer(stream, request)?;
            }
        })
    }

    pub(crate) fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(&self.socket);
    }
}

/// A simple reply: `error` 0 is success; `payload` follows.
pub(crate) fn simple_reply(cookie: u64, error: u32, payload: &[u8]) -> Vec<u8> {
    let mut reply = 0x6744_6698_u32.to_be_bytes().to_vec();
    reply.extend(error.to_be_bytes());
    reply.extend(cookie.to_be_bytes());
    reply.extend(payload);
    reply
}

/// A structured reply chunk.
pub(crate) fn chunk(cookie: u64, done: bool, kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut reply = 0x668e_33ef_u32.to_be_bytes().to_vec();
    reply.extend(u16::from(done).to_be_bytes());
    reply.extend(kind.to_be_bytes());
    reply.extend(cookie.to_be_bytes());
    reply.extend((payload.len() as u32).to_be_bytes());
    reply.extend(payload);
    reply
}

/// The greeting and the options, up to the transmission phase.
pub(crate) fn negotiate(stream: &mut UnixStream, export: &Export) -> io::Result<()> {
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    let mut client_flags = [0; 4];
    stream.read_exact(&mut client_flags)?;
    negotiate_options(stream, export)
}

/// The options alone, up to the transmission phase.
pub(crate) fn negotiate_options(
    stream: &mut (impl Read + Write),
    export: &Export,
) -> io::Result<()> {
    loop {
        let mut head = [0; 16];
        stream.read_exact(&mut head)?;
        let number = |range: std::ops::Range<usize>| {
            u32::from_be_bytes(head[range].try_into().expect("four bytes"))
        };
        let (option, length) = (number(8..12), number(12..16));
        let mut data = vec![0; length as usize];
        stream.read_exact(&mut data)?;
        let mut reply = |kind: u32, payload: &[u8]| {
            let mut bytes = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
            bytes.extend(option.to_be_bytes());
            bytes.extend(kind.to_be_bytes());
            bytes.extend((payload.len() as u32).to_be_bytes());
            bytes.extend(payload);
            stream.write_all(&bytes)
        };
        match option {
            // Abort.
            2 => {
                reply(1, &[])?;
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            // Structured replies.
            8 if export.structured => reply(1, &[])?,
            // Set meta contexts: base:allocation is number 1.
            10 if export.structured => {
                reply(4, b"\0\0\0\x01base:allocation")?;
                reply(1, &[])?;
            }
            // Info and go.
            6 | 7 => {
                let mut info = vec![0, 0];
                info.extend(export.size.to_be_bytes());
                info.extend(export.flags.to_be_bytes());
                reply(3, &info)?;
                if let Some(sizes) = export.block_sizes {
                    let mut info = vec![0, 3];
                    info.extend(sizes.iter().flat_map(|size| size.to_be_bytes()));
                    reply(3, &info)?;
                }
                reply(1, &[])?;
                if option == 7 {
                    return Ok(());
                }
            }
            // Not supported.
            _ => reply(0x8000_0001, &[])?,
        }
    }
}

fn receive_request(stream: &mut UnixStream) -> io::Result<Request> {
    let mut head = [0; 28];
    stream.read_exact(&mut head)?;
    assert_eq!(head[..4], [0x25, 0x60, 0x95, 0x13], "the client's magic");
    let long = |at: usize| u64::from_be_bytes(head[at..at + 8].try_into().expect("eight bytes"));
    let request = Request {
        command: u16::from_be_bytes([head[6], head[7]]),
        cookie: long(8),
        offset: long(16),
        length: u32::from_be_bytes(head[24..].try_into().expect("four bytes")),
    };
    if request.command == 1 {
        io::copy(&mut stream.take(request.length.into()), &mut io::sink())?;
    }
    Ok(request)
}
