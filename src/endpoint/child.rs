//! A server that is started for one endpoint, on a socket that nobody else can reach.
//!
//! The socket is made before the server is, in a directory of its own, and handed over by systemd
//! socket activation. As soon as the child has it, both names are removed: we connect through a
//! handle to the place where the socket was. So nothing is left behind, whatever ends this process.
//! Where `/proc` is missing the directory stays until the child is stopped.

use std::{
    fs::Permissions,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{fs::PermissionsExt, net::UnixListener, process::ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, ExitStatus},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use blockferry_sys as sys;
use tempfile::TempDir;

use crate::{
    block::{Error, ErrorKind, Result},
    client::Gone,
    system,
};

use super::{OpenOptions, ServerCommand};

/// How long a server may take to end by itself before it is killed.
const PATIENCE: Duration = Duration::from_secs(5);

/// The same where nothing else can go on in the meantime.
const DROP_PATIENCE: Duration = Duration::from_millis(500);

/// How long after a broken connection the server's own end is waited for, so that its status can be told.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// A running server that was started for an endpoint. Dropping it ends it: at once, where it does not
/// do so itself within half a second of being asked.
///
/// It is also asked to end when the *thread* that started it ends, so start it on one that lives as
/// long as the server is needed: the main thread.
#[derive(Debug)]
pub struct ServerChild {
    name: Arc<str>,
    server: Arc<Server>,
}

/// What is still asked for when the value itself is gone: by connections that want to be made again.
#[derive(Debug)]
struct Server {
    process: Mutex<Process>,
    place: Place,
}

#[derive(Debug)]
struct Process {
    child: Child,
    status: Option<ExitStatus>,
}

/// How the socket is reached.
#[derive(Debug)]
enum Place {
    /// Through `/proc/self/fd`; its name is gone.
    Handle(OwnedFd),
    /// By its name in a directory that is removed at the end.
    Directory(TempDir),
}

const SOCKET_NAME: &str = "socket";

impl ServerChild {
    /// Starts the command. It answers, or fails, once someone connects.
    ///
    /// # Errors
    /// `NotFound` when there is no such program, and whatever keeps a socket or a process from being made.
    pub fn start(command: &ServerCommand, options: &OpenOptions) -> Result<Self> {
        let name: Arc<str> = Arc::from(command.to_string());
        let directory = tempfile::Builder::new()
            .prefix("blockferry-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir()
            .map_err(|error| failed("cannot make a directory for the socket", &error))?;
        let path = directory.path().join(SOCKET_NAME);
        let listener = UnixListener::bind(&path)
            .map_err(|error| failed("cannot make a socket for the command", &error))?;
        let place = Place::new(directory, &path);
        let program = match &options.own_program {
            Some(own) if command.program() == "serve" => {
                let mut arguments = vec!["serve".into()];
                arguments.extend_from_slice(command.arguments());
                spawn(own.as_os_str(), &arguments, &listener)
            }
            _ => spawn(command.program(), command.arguments(), &listener),
        };
        let process = program.map_err(|error| {
            let kind = ErrorKind::from(&error);
            let message = match kind {
                ErrorKind::NotFound => format!("{name}: there is no such command"),
                _ => {
                    let why = system::words(&error);
                    format!("{name}: the command cannot be started: {why}")
                }
            };
            Error::with_message(kind, message)
        })?;
        // Dropped here, our copy of the listener is gone: when the child dies, connecting fails at
        // once instead of waiting in a queue that nobody empties.
        drop(listener);
        let process = Mutex::new(Process {
            child: process,
            status: None,
        });
        Ok(Self {
            name,
            server: Arc::new(Server { process, place }),
        })
    }

    /// The command as the user wrote it.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Where its socket is: good for connecting from this process while this value lives.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        match &self.server.place {
            Place::Handle(fd) => PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd())),
            Place::Directory(directory) => directory.path().join(SOCKET_NAME),
        }
    }

    /// Whether the server ended although it was still needed, and how, as a phrase:
    /// "exited with status 1". Waits a moment, for one whose connection just broke.
    pub fn early_end(&mut self) -> Option<String> {
        self.server.last_words()
    }

    /// Tells connections that cannot be made again that the server has ended.
    #[must_use]
    pub fn gone(&self) -> Gone {
        let server = Arc::clone(&self.server);
        Gone::new(move || {
            let end = server.last_words()?;
            Some(format!("the command {end}, and is not started again"))
        })
    }

    /// Asks the server to end, waits some seconds, and kills it when it has not. The runtime goes on
    /// meanwhile: a connection that is being closed may be what the server waits for.
    pub async fn stop(&mut self) {
        self.server.ask_to_end();
        let mut pauses = Pauses::until(Instant::now() + PATIENCE);
        while self.server.status().is_none() {
            let Some(pause) = pauses.next() else { break };
            tokio::time::sleep(pause).await;
        }
        self.kill();
    }

    /// Ends the server at once.
    pub fn kill(&mut self) {
        self.server.kill();
    }
}

impl Drop for ServerChild {
    fn drop(&mut self) {
        self.server.ask_to_end();
        self.server.wait_until(Instant::now() + DROP_PATIENCE);
        self.server.kill();
    }
}

impl Server {
    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it ended, if it does so within a moment.
    fn last_words(&self) -> Option<String> {
        self.wait_until(Instant::now() + LAST_WORDS).map(describe)
    }

    fn kill(&self) {
        let mut process = self.process();
        if process.poll_status().is_none() {
            // It can only fail when the group is gone, which is what it is for.
            let _ = sys::kill_group(&process.child);
            process.status = process.child.wait().ok();
        }
    }

    fn ask_to_end(&self) {
        let process = self.process();
        // Also one that has ended but was not waited for: others may be left in its group. A group
        // that is gone altogether needs no asking.
        if process.status.is_none() {
            let _ = sys::terminate_group(&process.child);
        }
    }

    fn wait_until(&self, deadline: Instant) -> Option<ExitStatus> {
        let mut pauses = Pauses::until(deadline);
        loop {
            let status = self.status();
            if status.is_some() {
                return status;
            }
            thread::sleep(pauses.next()?);
        }
    }

    fn status(&self) -> Option<ExitStatus> {
        self.process().poll_status()
    }
}

impl Process {
    fn poll_status(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status
    }
}

/// The pauses between looks at a process, growing, until a deadline.
struct Pauses {
    next: Duration,
    deadline: Instant,
}

impl Pauses {
    fn until(deadline: Instant) -> Self {
        let next = Duration::from_micros(200);
        Self { next, deadline }
    }
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.next;
        self.next = (pause * 2).min(Duration::from_millis(20));
        (Instant::now() < self.deadline).then_some(pause)
    }
}

impl Place {
    /// Takes the names away when the socket can be reached without them.
    fn new(directory: TempDir, path: &Path) -> Self {
        let Ok(handle) = sys::open_location(path) else {
            return Self::Directory(directory);
        };
        let link = format!("/proc/self/fd/{}", handle.as_raw_fd());
        if std::fs::metadata(link).is_err() {
            return Self::Directory(directory);
        }
        // What cannot be removed now could not be removed later.
        let _ = directory.close();
        Self::Handle(handle)
    }
}

fn spawn(
    program: &std::ffi::OsStr,
    arguments: &[std::ffi::OsString],
    listener: &UnixListener,
) -> io::Result<Child> {
    // Our standard output may be where the image goes: what the server has to say goes to the other.
    let stdout = io::stderr().as_fd().try_clone_to_owned()?;
    sys::spawn_activated(program, arguments, listener.as_fd(), stdout)
}

fn failed(what: &str, error: &io::Error) -> Error {
    let kind = ErrorKind::from(error);
    Error::with_message(kind, format!("{what}: {}", system::words(error)))
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn start(words: &[&str]) -> Result<ServerChild> {
        let arguments = words[1..].iter().map(Into::into).collect();
        let command = ServerCommand::new(words[0], arguments);
        ServerChild::start(&command, &OpenOptions::default())
    }

    #[test]
    fn a_server_that_ends_early_is_noticed_and_its_socket_refuses() {
        let mut child = start(&["sh", "-c", "exit 3"]).expect("started");
        assert_eq!(child.early_end().as_deref(), Some("exited with status 3"));
        // A child that another thread starts has all descriptors until it is another program.
        let error = loop {
            match UnixStream::connect(child.socket()) {
                Ok(_) => thread::sleep(Duration::from_millis(1)),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn a_running_server_is_reached_again_and_again_and_stopped() {
        let mut child = start(&["sleep", "1000"]).expect("started");
        for _ in 0..3 {
            UnixStream::connect(child.socket()).expect("the queue takes it");
        }
        child.stop().await;
        assert_eq!(child.early_end().as_deref(), Some("was ended by signal 15"));
    }

    #[test]
    fn a_server_that_ignores_the_request_to_end_is_killed() {
        let script = "trap '' TERM; echo ready >&2; while :; do sleep 1; done";
        let child = start(&["sh", "-c", script]).expect("started");
        child
            .server
            .wait_until(Instant::now() + Duration::from_millis(200));
        let id = child.server.process().child.id();
        drop(child);
        assert!(!Path::new(&format!("/proc/{id}")).exists());
    }

    #[test]
    fn the_end_of_a_server_is_known_after_the_value_is_gone() {
        let child = start(&["sleep", "1000"]).expect("started");
        let gone = child.gone();
        assert_eq!(gone.why(), None);
        drop(child);
        let why = gone.why().expect("it has ended");
        assert!(why.contains("ended by signal 15"), "{why}");
    }

    #[test]
    fn a_command_that_does_not_exist_is_named() {
        let error = start(&["no-such-server-anywhere"]).expect_err("no such command");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(
            error.to_string(),
            "[ no-such-server-anywhere ]: there is no such command"
        );
    }
}
