//! A server on a unix socket, and a client that talks to it with blocking calls, request by request.

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::Duration,
};

use blockferry_block::BlockDevice;
use blockferry_proto::{
    ClientConfig, ClientHandshake, ClientSession, Command, CommandFlags, Cookie, Errno, Extent,
    Negotiated, Outcome, ReplyEvent, Request, RequestHeader, ServerError, Step,
};
use blockferry_server::{Exports, Listener, Server, ServerOptions, SingleExport};

/// No test waits longer for an answer: a lost one is a failure, not a hang.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running server. Dropping it shuts it down.
pub(crate) struct Host {
    pub(crate) server: Server,
    path: PathBuf,
    events: Arc<Mutex<Vec<String>>>,
    thread: Option<JoinHandle<io::Result<()>>>,
    _directory: tempfile::TempDir,
}

impl Host {
    /// Serves `device` with default options.
    pub(crate) fn of(device: Arc<dyn BlockDevice>) -> Self {
        Self::with(device, ServerOptions::default())
    }

    /// Serves `device`.
    pub(crate) fn with(device: Arc<dyn BlockDevice>, options: ServerOptions) -> Self {
        Self::of_exports(Arc::new(SingleExport::new(device)), options)
    }

    pub(crate) fn of_exports(exports: Arc<dyn Exports>, options: ServerOptions) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("a listener");
        let events = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&events);
        let server = Server::observed(exports, options, move |event| {
            log.lock().expect("not poisoned").push(format!("{event:?}"));
        });
        let handle = server.clone();
        let thread = thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?
                .block_on(handle.serve(vec![Listener::from(listener)]))
        });
        Self {
            server,
            path,
            events,
            thread: Some(thread),
            _directory: directory,
        }
    }

    /// A connection on which nothing was said yet.
    pub(crate) fn raw(&self) -> UnixStream {
        let socket = UnixStream::connect(&self.path).expect("a connection");
        socket.set_read_timeout(Some(PATIENCE)).expect("an option");
        socket.set_write_timeout(Some(PATIENCE)).expect("an option");
        socket
    }

    /// A client of the default export with everything that can be negotiated.
    pub(crate) fn connect(&self) -> Peer {
        self.connect_with(ClientConfig::default())
    }

    pub(crate) fn connect_with(&self, config: ClientConfig) -> Peer {
        match shake(self.raw(), config) {
            Ok((socket, Outcome::Transmit(negotiated))) => Peer::new(socket, &negotiated),
            other => panic!("the handshake came to {other:?}"),
        }
    }

    /// What a handshake comes to.
    pub(crate) fn handshake(&self, config: ClientConfig) -> Result<Outcome, String> {
        shake(self.raw(), config).map(|(_, outcome)| outcome)
    }

    /// What the observer saw.
    pub(crate) fn events(&self) -> Vec<String> {
        self.events.lock().expect("not poisoned").clone()
    }

    /// Waits until the observer saw an event that contains `text`.
    pub(crate) fn wait_for_event(&self, text: &str) {
        wait_until(|| self.events().iter().any(|event| event.contains(text)));
    }

    /// Waits for the server to return.
    pub(crate) fn join(mut self) {
        if let Some(thread) = self.thread.take() {
            thread.join().expect("no panic").expect("no failure");
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.server.shutdown();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The default options with a change.
pub(crate) fn options(change: impl FnOnce(&mut ServerOptions)) -> ServerOptions {
    let mut options = ServerOptions::default();
    change(&mut options);
    options
}

/// Waits until `condition` holds; fails the test when it does not for too long.
pub(crate) fn wait_until(mut condition: impl FnMut() -> bool) {
    for _ in 0..PATIENCE.as_millis() {
        if condition() {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
    panic!("it did not happen");
}

fn shake(socket: UnixStream, config: ClientConfig) -> Result<(UnixStream, Outcome), String> {
    shake_on(socket, config, |_| panic!("TLS was not configured"))
}

/// The handshake on a socket that knows what to do when TLS is to begin.
pub(crate) fn shake_on<S: Read + Write>(
    mut socket: S,
    config: ClientConfig,
    mut start_tls: impl FnMut(&mut S) -> Result<(), String>,
) -> Result<(S, Outcome), String> {
    let mut handshake = ClientHandshake::new(config).expect("a valid configuration");
    loop {
        match handshake.step() {
            Step::Send(bytes) => socket.write_all(&bytes).map_err(|e| e.to_string())?,
            Step::Receive(length) => {
                let mut bytes = vec![0; length];
                socket.read_exact(&mut bytes).map_err(|e| e.to_string())?;
                handshake.receive(&bytes).map_err(|e| e.to_string())?;
            }
            Step::StartTls => {
                start_tls(&mut socket)?;
                handshake.tls_ready();
            }
            Step::Done => {
                let outcome = handshake.take_outcome().expect("an outcome");
                return Ok((socket, outcome));
            }
        }
    }
}

/// A client in transmission.
pub(crate) struct Peer<S = UnixStream> {
    pub(crate) socket: S,
    pub(crate) session: ClientSession,
    partial: HashMap<Cookie, Reply>,
    order: Vec<Cookie>,
    finished: HashMap<Cookie, Reply>,
}

/// What came back for a request.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    pub(crate) data: Vec<u8>,
    pub(crate) extents: Vec<(u32, Vec<Extent>)>,
    pub(crate) error: Option<ServerError>,
}

impl Reply {
    pub(crate) fn errno(&self) -> Option<Errno> {
        self.error.as_ref().map(|error| error.errno)
    }

    /// The data of a request that succeeded.
    pub(crate) fn ok(self) -> Vec<u8> {
        assert_eq!(self.error, None);
        self.data
    }
}

impl<S: Read + Write> Peer<S> {
    pub(crate) fn new(socket: S, negotiated: &Negotiated) -> Self {
        Self {
            socket,
            session: ClientSession::new(negotiated),
            partial: HashMap::new(),
            order: Vec::new(),
            finished: HashMap::new(),
        }
    }

    pub(crate) fn negotiated(&self) -> &Negotiated {
        self.session.negotiated()
    }

    /// Sends a request without waiting for the answer.
    pub(crate) fn submit(
        &mut self,
        command: Command,
        flags: CommandFlags,
        (offset, length): (u64, u64),
        payload: &[u8],
    ) -> Cookie {
        let mut header = RequestHeader::new();
        let request = Request {
            command,
            flags,
            offset,
            length,
        };
        let cookie = self
            .session
            .submit(request, &mut header)
            .expect("a valid request");
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(payload);
        self.socket.write_all(&bytes).expect("sent");
        let data = if command == Command::Read { length } else { 0 };
        let reply = Reply {
            data: vec![0xEE; usize::try_from(data).expect("a length")],
            ..Reply::default()
        };
        self.partial.insert(cookie, reply);
        cookie
    }

    /// The answer to `cookie`; others that come first are kept.
    pub(crate) fn wait(&mut self, cookie: Cookie) -> Reply {
        loop {
            if let Some(reply) = self.finished.remove(&cookie) {
                return reply;
            }
            self.receive();
        }
    }

    /// The cookies of all answers so far, in the order in which they came.
    pub(crate) fn order(&self) -> &[Cookie] {
        &self.order
    }

    pub(crate) fn call(
        &mut self,
        command: Command,
        flags: CommandFlags,
        range: (u64, u64),
        payload: &[u8],
    ) -> Reply {
        let cookie = self.submit(command, flags, range, payload);
        self.wait(cookie)
    }

    pub(crate) fn read(&mut self, offset: u64, length: u64) -> Reply {
        self.call(Command::Read, CommandFlags::empty(), (offset, length), &[])
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Reply {
        let length = data.len() as u64;
        self.call(
            Command::Write,
            CommandFlags::empty(),
            (offset, length),
            data,
        )
    }

    pub(crate) fn flush(&mut self) -> Reply {
        self.call(Command::Flush, CommandFlags::empty(), (0, 0), &[])
    }

    pub(crate) fn status(&mut self, offset: u64, length: u64, flags: CommandFlags) -> Reply {
        self.call(Command::BlockStatus, flags, (offset, length), &[])
    }

    /// Sends a request with less payload than it announces.
    pub(crate) fn submit_partly(
        &mut self,
        command: Command,
        (offset, length): (u64, u64),
        part: &[u8],
    ) {
        self.submit(command, CommandFlags::empty(), (offset, length), part);
    }

    pub(crate) fn say_goodbye(&mut self) {
        let mut header = RequestHeader::new();
        self.session.disconnect(&mut header);
        self.socket.write_all(header.as_bytes()).expect("sent");
    }

    /// Says goodbye and waits for the server to hang up.
    pub(crate) fn disconnect(mut self) {
        self.say_goodbye();
        self.expect_end();
    }

    /// Waits for the server to hang up.
    pub(crate) fn expect_end(mut self) {
        assert_eq!(self.socket.read(&mut [0; 16]).expect("the end"), 0);
    }

    /// Receives one event.
    fn receive(&mut self) {
        let mut bytes = vec![0; self.session.needed()];
        self.socket.read_exact(&mut bytes).expect("a reply");
        let mut rest = &bytes[..];
        loop {
            let (used, event) = self.session.receive(rest).expect("a valid reply");
            rest = &rest[used..];
            match event {
                ReplyEvent::NeedMore => {}
                ReplyEvent::Payload {
                    cookie,
                    offset,
                    length,
                } => {
                    let part = part(&mut self.partial, cookie, offset, length);
                    self.socket.read_exact(part).expect("data");
                }
                ReplyEvent::Hole {
                    cookie,
                    offset,
                    length,
                } => {
                    part(&mut self.partial, cookie, offset, length).fill(0);
                }
                ReplyEvent::Extents {
                    cookie,
                    context,
                    extents,
                } => {
                    let reply = self.partial.get_mut(&cookie).expect("in flight");
                    reply.extents.push((context, extents));
                }
                ReplyEvent::Done { cookie, result } => {
                    let mut reply = self.partial.remove(&cookie).expect("in flight");
                    reply.error = result.err();
                    self.order.push(cookie);
                    self.finished.insert(cookie, reply);
                }
            }
            if rest.is_empty() {
                return;
            }
        }
    }
}

/// The part of a read's data that an event is about.
fn part(
    replies: &mut HashMap<Cookie, Reply>,
    cookie: Cookie,
    offset: u64,
    length: u64,
) -> &mut [u8] {
    let reply = replies.get_mut(&cookie).expect("in flight");
    let start = usize::try_from(offset).expect("an offset");
    let end = start + usize::try_from(length).expect("a length");
    &mut reply.data[start..end]
}
