//! One run of a program: something goes in, something comes out, within bounds, and it ends.
//!
//! Everything happens in the runtime of whoever asks; no signal handler and no other thread takes part. A run
//! that is given up takes its whole process group with it.

use std::{
    future::{Future, poll_fn},
    io,
    os::fd::OwnedFd,
    os::unix::process::CommandExt,
    pin::pin,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use blockferry_sys::{exit_descriptor, kill_group, set_pipe_capacity};
use futures_util::future::try_join;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest, unix::AsyncFd},
    net::unix::pipe::{Receiver, Sender},
    time::sleep,
};

/// So much of what a program says on standard error is kept.
const KEPT_STDERR: usize = 64 << 10;

/// What a pipe holds without being asked to.
const USUAL_PIPE: u64 = 64 << 10;

/// The most that a pipe is asked to hold: what is moved in one turn.
const LARGE_PIPE: usize = 1 << 20;

/// A piece of what is moved without a buffer of its own.
const PIECE: usize = 64 << 10;

/// How often a program that someone is still writing is tried again, and how long is waited in between.
const BUSY_TRIES: u32 = 200;
const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// How often an end is looked for where the system cannot announce it.
const EXIT_PAUSE: Duration = Duration::from_millis(5);

/// What a program gets on standard input.
#[derive(Clone, Copy)]
pub(crate) enum Input<'a> {
    /// Nothing: `/dev/null`.
    Nothing,
    Bytes(&'a [u8]),
    /// So many zeroes.
    Zeroes(u64),
}

/// Where a program's standard output goes.
pub(crate) enum Output<'a> {
    /// To the end of a list, which becomes no longer than `limit` bytes.
    Collect {
        bytes: &'a mut Vec<u8>,
        limit: usize,
    },
    /// To memory, as much as it takes.
    Fill(&'a mut [u8]),
    /// Nowhere, but no more than so many bytes.
    Count(u64),
}

/// A program that ran to its end.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// How many bytes it printed.
    pub(crate) printed: u64,
    /// The beginning of what it said on standard error.
    pub(crate) stderr: Vec<u8>,
}

/// Why a program did not get to its end.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It printed more than there is room for.
    TooMuch(u64),
    /// The pipes to it broke.
    Pipe(io::Error),
}

/// Starts `command`, with a pipe for what it gets or without.
///
/// A file that was just written may still be open for writing in a process that another thread is about to
/// start; that is over soon.
pub(crate) async fn start(mut command: Command, input: Input<'_>) -> io::Result<Running> {
    let stdin = match input {
        Input::Nothing => Stdio::null(),
        Input::Bytes(_) | Input::Zeroes(_) => Stdio::piped(),
    };
    command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let mut tries = 0;
    loop {
        match command.spawn() {
            Ok(child) => return Ok(Running(Some(child))),
            Err(error)
                if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < BUSY_TRIES =>
            {
                tries += 1;
                sleep(BUSY_PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// A program that is running. Dropping it ends it and whatever it started.
pub(crate) struct Running(Option<Child>);

/// Our ends of a program's pipes.
struct Pipes {
    stdin: Option<Sender>,
    stdout: Receiver,
    stderr: Receiver,
}

impl Running {
    /// Leads the program to its end with `input`, which is what it was started for, and `output`. It is over
    /// when the program has ended and nobody holds its outputs any more.
    pub(crate) async fn finish(
        mut self,
        input: Input<'_>,
        output: Output<'_>,
    ) -> Result<Ended, Failure> {
        let Pipes {
            stdin,
            stdout,
            stderr,
        } = self.pipes(&input, &output).map_err(Failure::Pipe)?;
        let mut feeding = pin!(feed(stdin, input));
        let mut ending = pin!(async {
            let (printed, stderr) = try_join(receive(stdout, output), listen(stderr)).await?;
            let status = self.end().await.map_err(Failure::Pipe)?;
            Ok(Ended {
                status,
                printed,
                stderr,
            })
        });
        let mut fed = false;
        poll_fn(|cx| {
            // A program may leave its input alone: that is its own affair.
            if !fed && feeding.as_mut().poll(cx).is_ready() {
                fed = true;
            }
            ending.as_mut().poll(cx)
        })
        .await
    }

    fn pipes(&mut self, input: &Input<'_>, output: &Output<'_>) -> io::Result<Pipes> {
        let gone = || io::Error::from(io::ErrorKind::NotConnected);
        let child = self.0.as_mut().ok_or_else(gone)?;
        let stdin = child.stdin.take().map(OwnedFd::from);
        let stdout = OwnedFd::from(child.stdout.take().ok_or_else(gone)?);
        let stderr = OwnedFd::from(child.stderr.take().ok_or_else(gone)?);
        if let Some(stdin) = &stdin {
            widen(stdin, input.len());
        }
        widen(&stdout, output.expected());
        Ok(Pipes {
            stdin: stdin.map(Sender::from_owned_fd).transpose()?,
            stdout: Receiver::from_owned_fd(stdout)?,
            stderr: Receiver::from_owned_fd(stderr)?,
        })
    }

    /// Waits for the program's end.
    async fn end(mut self) -> io::Result<ExitStatus> {
        let Some(child) = self.0.as_mut() else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            match exit_descriptor(child).and_then(watch) {
                Ok(process) => drop(process.readable().await?),
                Err(_) => sleep(EXIT_PAUSE).await,
            }
        };
        self.0 = None;
        Ok(status)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(mut child) = self.0.take() else {
            return;
        };
        // Nothing was reaped: the group is still this child's.
        let _ = kill_group(&child);
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        // It ends soon, unless a system call holds it that cannot be ended.
        let _ = thread::Builder::new()
            .name("script-reaper".into())
            .stack_size(64 << 10)
            .spawn(move || child.wait());
    }
}

impl Input<'_> {
    fn len(&self) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Zeroes(length) => *length,
        }
    }
}

impl Output<'_> {
    /// How many bytes may come.
    fn limit(&self) -> u64 {
        match self {
            Self::Collect { limit, .. } => *limit as u64,
            Self::Fill(memory) => memory.len() as u64,
            Self::Count(limit) => *limit,
        }
    }

    /// How many bytes will come, as far as that is known.
    fn expected(&self) -> u64 {
        match self {
            Self::Collect { .. } => 0,
            Self::Fill(_) | Self::Count(_) => self.limit(),
        }
    }
}

/// Lets the runtime watch a descriptor that becomes readable.
///
/// The constructor is deprecated for types whose descriptor may change or be closed behind the runtime's back,
/// and its successor is unsafe; an `OwnedFd` does neither.
#[allow(deprecated)]
fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(descriptor, Interest::READABLE)
}

/// Makes room in a pipe for what will go through it, to save turns. The system may refuse.
fn widen(pipe: &OwnedFd, length: u64) {
    if length > USUAL_PIPE {
        let capacity = usize::try_from(length).map_or(LARGE_PIPE, |it| it.min(LARGE_PIPE));
        let _ = set_pipe_capacity(pipe, capacity);
    }
}

/// Hands the input over and closes it. Whether it is read is the program's affair.
async fn feed(stdin: Option<Sender>, input: Input<'_>) {
    static ZEROES: [u8; PIECE] = [0; PIECE];
    let Some(mut stdin) = stdin else { return };
    match input {
        Input::Nothing => {}
        Input::Bytes(bytes) => {
            let _ = stdin.write_all(bytes).await;
        }
        Input::Zeroes(mut left) => {
            while left > 0 {
                let part = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
                if stdin.write_all(&ZEROES[..part]).await.is_err() {
                    return;
                }
                left -= part as u64;
            }
        }
    }
}

/// Takes what is printed, up to its end, and says how much it was.
async fn receive(mut stdout: Receiver, output: Output<'_>) -> Result<u64, Failure> {
    let limit = output.limit();
    let mut printed = 0;
    match output {
        Output::Fill(memory) => {
            let mut rest = memory;
            while !rest.is_empty() {
                let count = stdout.read(rest).await.map_err(Failure::Pipe)?;
                if count == 0 {
                    return Ok(printed);
                }
                printed += count as u64;
                rest = &mut rest[count..];
            }
        }
        Output::Collect { bytes, limit } => {
            while bytes.len() < limit {
                let left = (limit - bytes.len()) as u64;
                let mut part = (&mut stdout).take(left);
                let count = part.read_buf(bytes).await.map_err(Failure::Pipe)?;
                if count == 0 {
                    return Ok(printed);
                }
                printed += count as u64;
            }
        }
        Output::Count(limit) => {
            let mut piece = vec![0; usize::try_from(limit).map_or(PIECE, |it| it.min(PIECE))];
            while printed < limit {
                let left = usize::try_from(limit - printed).unwrap_or(usize::MAX);
                let part = left.min(piece.len());
                let part = &mut piece[..part];
                let count = stdout.read(part).await.map_err(Failure::Pipe)?;
                if count == 0 {
                    return Ok(printed);
                }
                printed += count as u64;
            }
        }
    }
    match stdout.read(&mut [0]).await {
        Ok(0) => Ok(printed),
        Ok(_) => Err(Failure::TooMuch(limit)),
        Err(error) => Err(Failure::Pipe(error)),
    }
}

/// Takes what is said on standard error up to its end, and keeps its beginning.
async fn listen(mut stderr: Receiver) -> Result<Vec<u8>, Failure> {
    let mut kept = Vec::new();
    let mut limited = (&mut stderr).take(KEPT_STDERR as u64);
    limited
        .read_to_end(&mut kept)
        .await
        .map_err(Failure::Pipe)?;
    if kept.len() == KEPT_STDERR {
        let mut piece = vec![0; PIECE];
        while stderr.read(&mut piece).await.map_err(Failure::Pipe)? > 0 {}
    }
    Ok(kept)
}
