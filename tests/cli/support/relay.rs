//! A running relay, and what stands at its ends.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use serde_json::Value;
use tempfile::{TempDir, tempdir};

use super::run::{Outcome, blockferry, signal, until, wait};

/// How long anything may take to come. It bounds a hang; no test depends on speed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What an address begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Tcp,
    Unix,
}

pub(crate) const FAMILIES: [Family; 2] = [Family::Tcp, Family::Unix];

/// A connection.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    pub(crate) fn connect(address: &str) -> io::Result<Self> {
        match address.split_once(':') {
            Some(("unix", path)) => UnixStream::connect(path).map(Self::Unix),
            Some(("tcp", place)) => TcpStream::connect(place).map(Self::Tcp),
            _ => panic!("{address}"),
        }
    }

    /// Says that no more will be written.
    pub(crate) fn end(&self) {
        self.try_end().expect("ended");
    }

    fn try_end(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
        }
    }

    pub(crate) fn second(&self) -> Self {
        match self {
            Self::Tcp(stream) => Self::Tcp(stream.try_clone().expect("a descriptor")),
            Self::Unix(stream) => Self::Unix(stream.try_clone().expect("a descriptor")),
        }
    }

    /// All that comes until the other side ends.
    pub(crate) fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        self.read_to_end(&mut all).map(|_| all)
    }

    /// Sends `bytes`, which come back.
    pub(crate) fn echo(&mut self, bytes: &[u8]) {
        self.write_all(bytes).expect("sent");
        let mut back = vec![0; bytes.len()];
        self.read_exact(&mut back).expect("sent back");
        assert_eq!(back, bytes);
    }

    /// Breaks a TCP connection off: what is closed with something unread is reset. The other side must have
    /// sent something.
    pub(crate) fn reset(self) {
        let Self::Tcp(stream) = self else {
            panic!("a unix socket knows no reset");
        };
        assert_eq!(stream.peek(&mut [0]).expect("something unread"), 1);
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A listener that stands for a target.
pub(crate) enum Target {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Target {
    /// At a free port, or at the socket `name` in `directory`.
    pub(crate) fn new(family: Family, directory: &Path, name: &str) -> Self {
        match family {
            Family::Tcp => Self::Tcp(TcpListener::bind("127.0.0.1:0").expect("a port")),
            Family::Unix => {
                let path = directory.join(name);
                Self::Unix(UnixListener::bind(&path).expect("a socket"), path)
            }
        }
    }

    pub(crate) fn address(&self) -> String {
        match self {
            Self::Tcp(listener) => format!("tcp:{}", listener.local_addr().expect("an address")),
            Self::Unix(_, path) => format!("unix:{}", path.display()),
        }
    }

    pub(crate) fn accept(&self) -> Stream {
        match self {
            Self::Tcp(listener) => Stream::Tcp(listener.accept().expect("a connection").0),
            Self::Unix(listener, _) => Stream::Unix(listener.accept().expect("a connection").0),
        }
    }

    /// Sends back what it gets, to every connection, for as long as the test runs.
    pub(crate) fn echoing(self) -> String {
        let address = self.address();
        thread::spawn(move || {
            loop {
                let mut stream = self.accept();
                thread::spawn(move || {
                    let mut back = stream.second();
                    if io::copy(&mut stream, &mut back).is_ok() {
                        // It may be gone by then.
                        let _ = back.try_end();
                    }
                });
            }
        });
        address
    }
}

/// A target that does not answer: its queue is full of connections that nobody accepts.
pub(crate) struct Silent {
    listener: TcpListener,
    _queue: Vec<TcpStream>,
}

impl Silent {
    pub(crate) fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let patience = Duration::from_millis(500);
        let mut queue = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, patience) {
            queue.push(stream);
        }
        Self {
            listener,
            _queue: queue,
        }
    }

    pub(crate) fn address(&self) -> String {
        format!("tcp:{}", self.listener.local_addr().expect("an address"))
    }
}

/// An address that refuses: free a moment ago, and nobody else on this machine takes ports by number.
pub(crate) fn refusing() -> String {
    Target::new(Family::Tcp, Path::new(""), "").address()
}

/// A running `blockferry relay`. It ends with the value.
pub(crate) struct Relay {
    child: Child,
    /// Where it listens.
    pub(crate) address: String,
    told: Arc<Mutex<String>>,
    telling: Option<thread::JoinHandle<()>>,
    room: TempDir,
}

impl Relay {
    /// Relays what comes in at a free place of `family` to `targets`, with a log.
    pub(crate) fn new(family: Family, options: &[&str], targets: &[&str]) -> Self {
        Self::of(blockferry(["relay"]), family, options, targets)
    }

    /// The same by a command that `relay` is the last word of.
    pub(crate) fn of(command: Command, family: Family, options: &[&str], targets: &[&str]) -> Self {
        let room = tempdir().expect("a directory");
        let listen = match family {
            Family::Tcp => "tcp:127.0.0.1:0".to_owned(),
            Family::Unix => format!("unix:{}", room.path().join("relay.sock").display()),
        };
        Self::listening(command, room, &listen, options, targets)
    }

    /// Relays what comes in at `listen`.
    pub(crate) fn at(listen: &str, options: &[&str], targets: &[&str]) -> Self {
        let room = tempdir().expect("a directory");
        Self::listening(blockferry(["relay"]), room, listen, options, targets)
    }

    fn listening(
        mut command: Command,
        room: TempDir,
        listen: &str,
        options: &[&str],
        targets: &[&str],
    ) -> Self {
        command
            .args(options)
            .arg("--log")
            .arg(room.path().join("log"))
            .arg(listen)
            .args(targets);
        Self::start(command, room)
    }

    fn start(mut command: Command, room: TempDir) -> Self {
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary");
        let told = Arc::new(Mutex::new(String::new()));
        let stderr = child.stderr.take().expect("a pipe");
        let hearing = Arc::clone(&told);
        let telling = thread::spawn(move || {
            for line in BufReader::new(stderr).lines() {
                let line = line.expect("text") + "\n";
                hearing.lock().expect("a text").push_str(&line);
            }
        });
        let mut relay = Self {
            child,
            address: String::new(),
            told,
            telling: Some(telling),
            room,
        };
        until("the relay", || relay.told().contains("relaying "));
        relay.address = relay.word_behind("relaying ");
        relay
    }

    fn word_behind(&self, mark: &str) -> String {
        let told = self.told();
        let (_, rest) = told.split_once(mark).unwrap_or_else(|| panic!("{told}"));
        let word = rest.split_whitespace().next();
        word.expect("a word").to_owned()
    }

    pub(crate) fn connect(&self) -> Stream {
        Stream::connect(&self.address).expect("a connection")
    }

    /// The same to one over TCP, and as that: nothing is waited for without end.
    pub(crate) fn connect_tcp(&self) -> TcpStream {
        let place = self.address.strip_prefix("tcp:").expect("TCP");
        patient(TcpStream::connect(place).expect("a connection"))
    }

    /// Its port, of one over TCP.
    pub(crate) fn port(&self) -> u16 {
        let port = self.address.rsplit(':').next();
        port.and_then(|port| port.parse().ok()).expect("a port")
    }

    /// Waits until it has said `words` on standard error.
    #[track_caller]
    pub(crate) fn until_it_tells(&self, words: &str) {
        until(words, || self.told().contains(words));
    }

    /// What was said on standard error.
    pub(crate) fn told(&self) -> String {
        self.told.lock().expect("a text").clone()
    }

    pub(crate) fn log_path(&self) -> PathBuf {
        self.room.path().join("log")
    }

    /// The entries of the log for `event`.
    pub(crate) fn logged(&self, event: &str) -> Vec<Value> {
        entries(&self.log_path(), event)
    }

    /// The log's entry of the only connection, once it is over.
    pub(crate) fn closed(&self) -> Value {
        until("the end of the connection", || {
            !self.logged("closed").is_empty()
        });
        self.logged("closed").remove(0)
    }

    /// The page of metrics.
    pub(crate) fn metrics(&self) -> String {
        let url = self.word_behind("metrics at http://");
        let mut socket = TcpStream::connect(url.trim_end_matches("/metrics")).expect("metrics");
        write!(socket, "GET /metrics HTTP/1.1\r\n\r\n").expect("asked");
        let mut page = String::new();
        socket.read_to_string(&mut page).expect("a page");
        page
    }

    /// The value of a count, with its labels.
    pub(crate) fn count(&self, name: &str) -> u64 {
        let page = self.metrics();
        let line = format!("blockferry_relay_{name} ");
        let line = page.lines().find_map(|it| it.strip_prefix(&line));
        let value = line.and_then(|value| value.parse().ok());
        value.unwrap_or_else(|| panic!("no {name} in {page}"))
    }

    pub(crate) fn child(&self) -> &Child {
        &self.child
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(&self.child, name);
    }

    /// Waits for its end.
    pub(crate) fn finish(mut self) -> Outcome {
        let code = wait(&mut self.child);
        if let Some(telling) = self.telling.take() {
            telling.join().expect("all that it said");
        }
        Outcome {
            code,
            stdout: Vec::new(),
            stderr: self.told(),
        }
    }

    /// Asks it to end, and waits for that.
    pub(crate) fn terminate(self) -> Outcome {
        self.signal("TERM");
        self.finish()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection on which nothing is waited for without end.
pub(crate) fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).expect("an option");
    stream.set_write_timeout(Some(PATIENCE)).expect("an option");
    stream
}

/// The entries of a log for `event`.
pub(crate) fn entries(log: &Path, event: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines = text.lines().map(|line| {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"))
    });
    lines.filter(|entry| entry["event"] == event).collect()
}

/// `count` bytes that repeat nowhere soon.
pub(crate) fn noise(count: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let words = std::iter::repeat_with(|| {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    let mut bytes: Vec<u8> = words.take(count.div_ceil(8)).flatten().collect();
    bytes.truncate(count);
    bytes
}
