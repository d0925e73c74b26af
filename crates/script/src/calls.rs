//! Calls of a script's methods: what goes in, what the exit code means, which error it becomes.

use std::{
    ffi::OsStr,
    io,
    os::unix::process::ExitStatusExt as _,
    process::ExitStatus,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use blockferry_block::{Error, ErrorKind, Result, Wish, Wishes};
use tokio::time::timeout;

use crate::{
    answers::{AnswerError, Complaint},
    blocking,
    process::{self, Ended, Failure, Input, Output},
    program::Saved,
};

/// What a method may print that prints a line or a few.
pub(crate) const SHORT: usize = 64 << 10;

/// What a method may print that prints a list.
pub(crate) const LONG: usize = 64 << 20;

/// How long `close` and `unload` may take where nothing else was said: somebody waits for them.
pub(crate) const CLOSING: Duration = Duration::from_secs(60);

/// A script, as far as running it goes.
#[derive(Debug)]
pub(crate) struct Runner {
    pub(crate) name: Arc<str>,
    pub(crate) program: Saved,
    pub(crate) limit: Option<Duration>,
    /// What the script asked for when there was no connection to ask it of.
    pub(crate) wishes: Arc<Wishes>,
    /// Whether `unload` is due.
    pub(crate) loaded: AtomicBool,
}

/// How a call ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// Well, after printing so many bytes.
    Done(u64),
    /// There is no such method.
    Missing,
    /// With an answer in the negative.
    False,
}

/// Calls of a script that may wish for something.
#[derive(Clone, Copy)]
pub(crate) struct Calls<'a> {
    runner: &'a Runner,
    wishes: &'a Wishes,
}

impl Runner {
    /// Calls whose wishes go to `wishes`.
    pub(crate) fn calls<'a>(&'a self, wishes: &'a Wishes) -> Calls<'a> {
        Calls {
            runner: self,
            wishes,
        }
    }

    /// An error that names the script and the method.
    pub(crate) fn error(&self, kind: ErrorKind, method: &str, words: &str) -> Error {
        Error::with_message(kind, format!("{method}: {words}")).on(&self.name)
    }

    /// The error for an answer that makes no sense.
    pub(crate) fn nonsense(&self, method: &str, error: &AnswerError) -> Error {
        self.error(ErrorKind::Io, method, &error.to_string())
    }

    /// Runs `unload` if that is due, and removes the temporary directory.
    pub(crate) async fn unload(&self) {
        if self.loaded.swap(false, Ordering::AcqRel) {
            let unload = self.calls(&self.wishes).tell("unload", &[]);
            // What it says or how it fails is of no use to anybody any more.
            let _ = timeout(self.limit.unwrap_or(CLOSING), unload).await;
        }
        self.program.remove();
    }

    async fn run(
        &self,
        method: &str,
        arguments: &[&OsStr],
        input: Input<'_>,
        output: Output<'_>,
    ) -> Result<Option<Ended>> {
        let mut is_second = false;
        let running = loop {
            let Some(command) = self.program.command(method, arguments) else {
                return Ok(None);
            };
            match process::start(command, input).await {
                Ok(running) => break running,
                Err(error) if !is_second && self.program.is_for_shell(&error) => is_second = true,
                Err(error) => return Err(self.not_started(method, error)),
            }
        };
        let ended = running.finish(input, output).await;
        ended.map(Some).map_err(|failure| match failure {
            Failure::TooMuch(limit) => {
                let words = format!("it printed more than {limit} bytes and was ended");
                self.error(ErrorKind::Io, method, &words)
            }
            Failure::Pipe(error) => {
                let words = "the pipes to it failed";
                self.error(ErrorKind::Io, method, words).because(error)
            }
        })
    }

    fn not_started(&self, method: &str, error: io::Error) -> Error {
        let words = format!("it cannot be run: {error}");
        self.error(ErrorKind::Io, method, &words).because(error)
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        if self.loaded.load(Ordering::Acquire) && self.program.has("unload") {
            blocking::run(|| self.unload());
        }
    }
}

impl Calls<'_> {
    /// Calls `method` and lets its output go to `output`.
    pub(crate) async fn call(
        self,
        method: &str,
        arguments: &[&OsStr],
        input: Input<'_>,
        output: Output<'_>,
    ) -> Result<Reply> {
        let run = self.runner.run(method, arguments, input, output);
        let ended = match self.runner.limit {
            Some(limit) => timeout(limit, run).await.unwrap_or_else(|_| {
                let words = format!(
                    "it did not end within {} s and was ended",
                    limit.as_secs_f64()
                );
                Err(self.runner.error(ErrorKind::Io, method, &words))
            }),
            None => run.await,
        };
        match ended? {
            Some(ended) => self.judge(method, &ended),
            None => Ok(Reply::Missing),
        }
    }

    /// Calls a method that prints nothing, and says whether it is there.
    pub(crate) async fn tell(self, method: &str, arguments: &[&OsStr]) -> Result<bool> {
        self.send(method, arguments, Input::Nothing).await
    }

    /// Calls a method that prints nothing with `input`, and says whether it is there.
    pub(crate) async fn send(
        self,
        method: &str,
        arguments: &[&OsStr],
        input: Input<'_>,
    ) -> Result<bool> {
        let output = Output::Count(LONG as u64);
        let reply = self.call(method, arguments, input, output).await?;
        self.plain(method, reply).map(|printed| printed.is_some())
    }

    /// Calls a method that prints up to `limit` bytes; nothing when it is not there.
    pub(crate) async fn ask(
        self,
        method: &str,
        arguments: &[&OsStr],
        limit: usize,
    ) -> Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        let output = Output::Collect {
            bytes: &mut bytes,
            limit,
        };
        let reply = self.call(method, arguments, Input::Nothing, output).await?;
        Ok(self.plain(method, reply)?.map(|_| bytes))
    }

    /// Calls a method that answers by its exit code; nothing when it is not there.
    pub(crate) async fn question(self, method: &str, arguments: &[&OsStr]) -> Result<Option<bool>> {
        let output = Output::Count(LONG as u64);
        let reply = self.call(method, arguments, Input::Nothing, output).await?;
        Ok(match reply {
            Reply::Done(_) => Some(true),
            Reply::False => Some(false),
            Reply::Missing => None,
        })
    }

    /// How many bytes a method printed that is no question; nothing when it is not there.
    pub(crate) fn plain(self, method: &str, reply: Reply) -> Result<Option<u64>> {
        match reply {
            Reply::Done(printed) => Ok(Some(printed)),
            Reply::Missing => Ok(None),
            Reply::False => {
                let words = "it ended with code 3 (false), which answers no question here";
                Err(self.runner.error(ErrorKind::Io, method, words))
            }
        }
    }

    /// What the end of a call means.
    fn judge(self, method: &str, ended: &Ended) -> Result<Reply> {
        let done = Ok(Reply::Done(ended.printed));
        let down = Some(ErrorKind::ShuttingDown);
        let (wish, result) = match ended.status.code() {
            Some(0) => return done,
            Some(2) => return Ok(Reply::Missing),
            Some(3) => return Ok(Reply::False),
            Some(4) => (Wish::ShutDown, done),
            Some(5) => (Wish::ShutDown, Err(self.complaint(method, ended, down))),
            Some(6) => (Wish::Drop, Err(self.complaint(method, ended, down))),
            Some(7) => (Wish::Disconnect, done),
            Some(8) => (Wish::Disconnect, Err(self.complaint(method, ended, down))),
            _ => return Err(self.complaint(method, ended, None)),
        };
        self.wishes.wish(wish);
        result
    }

    /// The error for a call that failed, in the script's own words.
    fn complaint(self, method: &str, ended: &Ended, kind: Option<ErrorKind>) -> Error {
        let complaint = Complaint::parse(&ended.stderr);
        let kind = kind.unwrap_or(match ended.status.code() {
            Some(_) => complaint.kind,
            None => ErrorKind::Io,
        });
        let words = match (ended.status.code(), complaint.words.is_empty()) {
            (Some(_), false) => complaint.words,
            (None, false) => format!("{} ({})", fate(ended.status), complaint.words),
            (Some(_), true) => format!("{} and said nothing", fate(ended.status)),
            (None, true) => fate(ended.status),
        };
        self.runner.error(kind, method, &words)
    }
}

/// How a program ended, for people.
fn fate(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it ended with code {code}"),
        (None, Some(signal)) => format!("it was ended by signal {signal}"),
        (None, None) => "it did not end".to_owned(),
    }
}
