//! A server of a piece of memory that does as its script says: answers late, backwards, in pieces,
//! with errors, or dies.

use std::{
    fs,
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::{
        fs::symlink,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use blockferry_proto::{
    BlockSizes, Command, CommandFlags, Errno, Extent, NbdUri, Negotiated, ReplyMode, ReplyWriter,
    RequestEvent, RequestLimits, ServedExport, ServerConfig, ServerHandshake, ServerRequest,
    ServerSession, ServerStep, TransmissionFlags,
};
use tempfile::TempDir;

/// What the server is like.
#[derive(Clone)]
pub(crate) struct Script {
    pub(crate) size: usize,
    pub(crate) structured: bool,
    pub(crate) extended: bool,
    pub(crate) block_sizes: Option<BlockSizes>,
    /// Up to so many requests are collected before they are answered, the last one first.
    pub(crate) backwards: usize,
    /// Reads are answered in so many chunks, the last one first, where chunks exist.
    pub(crate) chunks: usize,
    /// The chunks come first to last.
    pub(crate) in_order: bool,
    /// A chunk of zeroes is a hole.
    pub(crate) holes: bool,
    /// It can be told not to cut a read into chunks.
    pub(crate) knows_df: bool,
    /// Answers leave in writes of so many bytes.
    pub(crate) write_size: usize,
    /// The connection dies in the middle of the answer to this request, counted from 0.
    pub(crate) dies_at: Option<usize>,
    /// How many bytes of the answer are sent before that; all but the last one, if it is no longer.
    pub(crate) last_words: usize,
    /// Only this connection dies, counted from 0; otherwise every one does.
    pub(crate) mortal: Option<usize>,
    /// How many connections are welcome, and what becomes of the others.
    pub(crate) welcome: usize,
    pub(crate) others: Others,
    /// Several connections are as good as one.
    pub(crate) multi_conn: bool,
    /// There is a flush.
    pub(crate) flush: bool,
    /// From this request on, counted from 0, nothing is answered any more; the connection stays.
    pub(crate) silent_from: Option<usize>,
    /// Which requests fail.
    pub(crate) fails: fn(&ServerRequest) -> Option<Errno>,
}

/// What becomes of a connection that is not welcome.
#[derive(Clone, Copy)]
#[allow(dead_code, reason = "not every test meets both")]
pub(crate) enum Others {
    Refused,
    /// It stays open, and nothing is ever said.
    Silent,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            size: 4 << 20,
            structured: true,
            extended: true,
            block_sizes: None,
            backwards: 1,
            chunks: 1,
            in_order: false,
            holes: false,
            knows_df: true,
            write_size: usize::MAX,
            dies_at: None,
            last_words: usize::MAX,
            mortal: None,
            welcome: usize::MAX,
            others: Others::Refused,
            multi_conn: true,
            flush: true,
            silent_from: None,
            fails: |_| None,
        }
    }
}

/// The running server; its socket goes with the value.
pub(crate) struct Server {
    _room: TempDir,
    pub(crate) socket: PathBuf,
    #[allow(dead_code, reason = "not every test writes")]
    memory: Arc<Mutex<Vec<u8>>>,
    #[allow(dead_code, reason = "not every test counts")]
    requests: Arc<Mutex<Log>>,
    /// A handle to each connection that there ever was.
    #[allow(dead_code, reason = "not every test kills")]
    streams: Arc<Mutex<Vec<UnixStream>>>,
}

/// Each request with the number of its connection.
type Log = Vec<(usize, ServerRequest)>;

impl Server {
    pub(crate) fn start(script: Script) -> Self {
        let memory = (0..script.size).map(byte_at).collect();
        Self::of(script, Arc::new(Mutex::new(memory)))
    }

    /// Another server of the same memory.
    #[allow(dead_code, reason = "not every test restarts")]
    pub(crate) fn successor(&self, script: Script) -> Self {
        Self::of(script, Arc::clone(&self.memory))
    }

    fn of(script: Script, memory: Arc<Mutex<Vec<u8>>>) -> Self {
        let room = tempfile::tempdir().expect("a directory");
        let socket = room.path().join("server.sock");
        let listener = UnixListener::bind(&socket).expect("a free name");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (shared, log) = (Arc::clone(&memory), Arc::clone(&requests));
        let streams = Arc::new(Mutex::new(Vec::new()));
        let known = Arc::clone(&streams);
        thread::spawn(move || {
            let mut silent = Vec::new();
            for (connection, stream) in listener.incoming().enumerate() {
                let stream = stream.expect("a connection");
                let handle = stream.try_clone().expect("a descriptor");
                known.lock().expect("not poisoned").push(handle);
                if connection >= script.welcome {
                    match script.others {
                        Others::Refused => drop(stream),
                        Others::Silent => silent.push(stream),
                    }
                    continue;
                }
                let mut script = script.clone();
                if script.mortal.is_some_and(|mortal| mortal != connection) {
                    script.dies_at = None;
                }
                let (memory, log) = (Arc::clone(&shared), Arc::clone(&log));
                thread::spawn(move || {
                    // A client that goes away is no concern of the server.
                    let _ = serve(stream, &script, &memory, |request| {
                        log.lock()
                            .expect("not poisoned")
                            .push((connection, request));
                    });
                });
            }
        });
        Self {
            _room: room,
            socket,
            memory,
            requests,
            streams,
        }
    }

    /// Ends every connection at once. It can still be connected to where its socket is known.
    #[allow(dead_code, reason = "not every test kills")]
    pub(crate) fn kill(&self) {
        for stream in self.streams.lock().expect("not poisoned").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    #[allow(dead_code, reason = "some tests go through a place")]
    pub(crate) fn uri(&self) -> NbdUri {
        format!("nbd+unix:///?socket={}", self.socket.display())
            .parse()
            .expect("a good URI")
    }

    #[allow(dead_code, reason = "not every test writes")]
    pub(crate) fn memory(&self) -> Vec<u8> {
        self.memory.lock().expect("not poisoned").clone()
    }

    /// The requests of `command` that came so far.
    #[allow(dead_code, reason = "not every test counts")]
    pub(crate) fn requests(&self, command: Command) -> Vec<ServerRequest> {
        let requests = self.requests.lock().expect("not poisoned");
        let requests = requests.iter().map(|(_, request)| *request);
        requests
            .filter(|request| request.command == command)
            .collect()
    }

    /// The connections that requests of `command` came on so far, in order.
    #[allow(dead_code, reason = "most tests have one connection")]
    pub(crate) fn connections(&self, command: Command) -> Vec<usize> {
        let requests = self.requests.lock().expect("not poisoned");
        let of_command = requests
            .iter()
            .filter(|(_, request)| request.command == command);
        of_command.map(|(connection, _)| *connection).collect()
    }
}

/// A name for a server that can be given to another one.
#[allow(dead_code, reason = "not every test needs one")]
pub(crate) struct Place {
    _room: TempDir,
    pub(crate) link: PathBuf,
}

#[allow(dead_code, reason = "not every test needs one")]
impl Place {
    pub(crate) fn of(server: &Server) -> Self {
        let room = tempfile::tempdir().expect("a directory");
        let link = room.path().join("place.sock");
        let place = Self { _room: room, link };
        place.lead_to(&server.socket);
        place
    }

    pub(crate) fn lead_to(&self, socket: &Path) {
        let _ = fs::remove_file(&self.link);
        symlink(socket, &self.link).expect("a link");
    }

    /// Nobody is there any more.
    pub(crate) fn clear(&self) {
        fs::remove_file(&self.link).expect("it was there");
    }

    pub(crate) fn uri(&self) -> NbdUri {
        format!("nbd+unix:///?socket={}", self.link.display())
            .parse()
            .expect("a good URI")
    }
}

/// The byte that the memory has at `position` to begin with.
pub(crate) fn byte_at(position: usize) -> u8 {
    (position % 251) as u8 + 1
}

fn serve(
    mut stream: UnixStream,
    script: &Script,
    memory: &Mutex<Vec<u8>>,
    log: impl Fn(ServerRequest),
) -> io::Result<()> {
    let negotiated = negotiate(&mut stream, script)?;
    let mut session = ServerSession::new(&negotiated, RequestLimits::default());
    let replies = ReplyWriter::new(negotiated.mode);
    let mut waiting: Vec<(ServerRequest, Option<Errno>)> = Vec::new();
    let mut answered = 0;
    loop {
        stream.set_read_timeout(Some(match waiting.len() {
            0 => Duration::from_secs(60),
            _ => Duration::from_millis(20),
        }))?;
        let mut head = vec![0; session.needed()];
        let event = match stream.read_exact(&mut head) {
            Ok(()) => session.receive(&head).map_err(io::Error::other)?.1,
            // Nobody sends more: what waits is answered.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                answer(
                    &mut stream,
                    script,
                    replies,
                    memory,
                    &mut waiting,
                    &mut answered,
                )?;
                continue;
            }
            Err(error) => return Err(error),
        };
        match event {
            RequestEvent::NeedMore => continue,
            RequestEvent::Disconnect => {
                return answer(
                    &mut stream,
                    script,
                    replies,
                    memory,
                    &mut waiting,
                    &mut answered,
                );
            }
            RequestEvent::Refused { request, errno, .. } => {
                panic!("the client sent a bad request: {request:?}, {errno}");
            }
            RequestEvent::Request(request) => {
                let error = (script.fails)(&request);
                if request.command == Command::Write {
                    let mut data = vec![0; request.length as usize];
                    stream.set_read_timeout(None)?;
                    stream.read_exact(&mut data)?;
                    if error.is_none() {
                        let start = request.offset as usize;
                        memory.lock().expect("not poisoned")[start..start + data.len()]
                            .copy_from_slice(&data);
                    }
                }
                log(request);
                waiting.push((request, error));
            }
        }
        if waiting.len() >= script.backwards {
            answer(
                &mut stream,
                script,
                replies,
                memory,
                &mut waiting,
                &mut answered,
            )?;
        }
    }
}

fn answer(
    stream: &mut UnixStream,
    script: &Script,
    replies: ReplyWriter,
    memory: &Mutex<Vec<u8>>,
    waiting: &mut Vec<(ServerRequest, Option<Errno>)>,
    answered: &mut usize,
) -> io::Result<()> {
    for (request, error) in waiting.drain(..).rev() {
        if script.silent_from.is_some_and(|first| *answered >= first) {
            continue;
        }
        let bytes = match error {
            Some(errno) => replies.error(&request, errno, "as the script says"),
            None => success(script, replies, memory, &request),
        };
        if script.dies_at == Some(*answered) {
            stream.write_all(&bytes[..script.last_words.min(bytes.len() - 1)])?;
            stream.shutdown(Shutdown::Both)?;
            return Err(io::ErrorKind::Other.into());
        }
        for part in bytes.chunks(script.write_size) {
            stream.write_all(part)?;
        }
        *answered += 1;
    }
    Ok(())
}

fn success(
    script: &Script,
    replies: ReplyWriter,
    memory: &Mutex<Vec<u8>>,
    request: &ServerRequest,
) -> Vec<u8> {
    let mut memory = memory.lock().expect("not poisoned");
    let (start, end) = (
        request.offset as usize,
        (request.offset + request.length) as usize,
    );
    match request.command {
        Command::Read => {
            let in_one = request.flags.contains(CommandFlags::DF);
            let pieces = match replies.mode() {
                ReplyMode::Simple => 1,
                _ if in_one => 1,
                _ => script.chunks,
            };
            let step = (end - start).div_ceil(pieces);
            let mut cuts: Vec<usize> = (start..end).step_by(step).collect();
            if !script.in_order {
                cuts.reverse();
            }
            let mut bytes = Vec::new();
            for (index, &cut) in cuts.iter().enumerate() {
                let data = &memory[cut..end.min(cut + step)];
                let last = index + 1 == cuts.len();
                if script.holes
                    && replies.mode() != ReplyMode::Simple
                    && data.iter().all(|byte| *byte == 0)
                {
                    let hole = replies.hole(request, cut as u64, data.len() as u32, last);
                    bytes.extend(hole.as_bytes());
                    continue;
                }
                let head = replies.data(request, cut as u64, data.len() as u32, last);
                bytes.extend(head.as_bytes());
                bytes.extend(data);
            }
            bytes
        }
        Command::BlockStatus => {
            // The first half is data, the second a hole.
            let half = request.length / 2;
            let extents = [(half, 0), (request.length - half, 3)]
                .map(|(length, flags)| Extent { length, flags });
            replies.block_status(request, 1, &extents, true)
        }
        command => {
            if command == Command::WriteZeroes {
                memory[start..end].fill(0);
            }
            replies.done(request).as_bytes().to_vec()
        }
    }
}

fn negotiate(stream: &mut UnixStream, script: &Script) -> io::Result<Negotiated> {
    let mut config = ServerConfig::default();
    config.structured = script.structured;
    config.extended = script.extended;
    let mut handshake = ServerHandshake::new(config);
    let mut flags =
        TransmissionFlags::all() - TransmissionFlags::READ_ONLY - TransmissionFlags::ROTATIONAL;
    flags.set(TransmissionFlags::CAN_MULTI_CONN, script.multi_conn);
    flags.set(TransmissionFlags::SEND_FLUSH, script.flush);
    flags.set(TransmissionFlags::SEND_DF, script.knows_df);
    loop {
        match handshake.step() {
            ServerStep::Send(bytes) => stream.write_all(&bytes)?,
            ServerStep::Receive(count) => {
                let mut bytes = vec![0; count];
                stream.read_exact(&mut bytes)?;
                handshake.receive(&bytes).map_err(io::Error::other)?;
            }
            ServerStep::Open { .. } => handshake.export(Ok(ServedExport {
                canonical_name: None,
                description: Some("a piece of memory".to_owned()),
                size: script.size as u64,
                flags,
                block_sizes: script.block_sizes,
                contexts: vec!["base:allocation".to_owned()],
            })),
            ServerStep::Done(negotiated) => return Ok(negotiated),
            _ => return Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }
}
