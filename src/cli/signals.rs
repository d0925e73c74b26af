//! The requests to end: SIGINT, SIGTERM, SIGHUP.

use std::{future::pending, io};

use blockferry_sys::FILE_SIZE_SIGNAL;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Which request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interrupt {
    /// Ctrl-C.
    Int,
    /// A polite `kill`.
    Term,
    /// The terminal was closed.
    Hangup,
}

impl Interrupt {
    /// The exit code of a program that ended because of it: 128 and the signal's number.
    pub(crate) fn exit_code(self) -> u8 {
        let number = self.kind().as_raw_value();
        u8::try_from(128 + number).unwrap_or(u8::MAX)
    }

    /// What happened, as a word for a message.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Int => "interrupted",
            Self::Term => "asked to end",
            Self::Hangup => "the terminal was closed",
        }
    }

    fn kind(self) -> SignalKind {
        match self {
            Self::Int => SignalKind::interrupt(),
            Self::Term => SignalKind::terminate(),
            Self::Hangup => SignalKind::hangup(),
        }
    }
}

/// Listens for the requests.
pub(crate) struct Signals {
    int: Signal,
    term: Signal,
    /// `None` where it was ignored when we were started: `nohup`.
    hangup: Option<Signal>,
    /// Taken over for what it would do: a file that grows too large is an error, not the end.
    _file_size: Signal,
}

impl Signals {
    /// Takes the signals over from the system's default. Needs a runtime with I/O.
    pub(crate) fn listen() -> io::Result<Self> {
        let hangup = Interrupt::Hangup.kind();
        let ignored = blockferry_sys::is_signal_ignored(hangup.as_raw_value());
        Ok(Self {
            int: signal(Interrupt::Int.kind())?,
            term: signal(Interrupt::Term.kind())?,
            hangup: (!ignored).then(|| signal(hangup)).transpose()?,
            _file_size: signal(SignalKind::from_raw(FILE_SIZE_SIGNAL))?,
        })
    }

    /// Takes SIGHUP for something else than an end: to look again at a file. Where `wanted` is false it
    /// keeps its meaning, and nothing is ever asked.
    pub(crate) fn reload(&mut self, wanted: bool) -> io::Result<Reload> {
        if !wanted {
            return Ok(Reload(None));
        }
        self.hangup = None;
        signal(Interrupt::Hangup.kind()).map(|signal| Reload(Some(signal)))
    }

    /// Waits for the next request. Nothing is lost when the future is dropped.
    pub(crate) async fn next(&mut self) -> Interrupt {
        tokio::select! {
            Some(()) = self.int.recv() => Interrupt::Int,
            Some(()) = self.term.recv() => Interrupt::Term,
            () = receive(&mut self.hangup) => Interrupt::Hangup,
        }
    }
}

/// Listens for SIGHUP as the request to read a file again.
#[derive(Debug)]
pub(crate) struct Reload(Option<Signal>);

impl Reload {
    /// Waits for the next request. Nothing is lost when the future is dropped.
    pub(crate) async fn asked(&mut self) {
        receive(&mut self.0).await;
    }
}

async fn receive(signal: &mut Option<Signal>) {
    if let Some(signal) = signal
        && signal.recv().await.is_some()
    {
        return;
    }
    pending::<()>().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        assert_eq!(Interrupt::Int.exit_code(), 130);
        assert_eq!(Interrupt::Term.exit_code(), 143);
        assert_eq!(Interrupt::Hangup.exit_code(), 129);
    }
}
