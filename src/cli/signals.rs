//! The requests to end: SIGINT, SIGTERM, SIGHUP; or of another program that does a job through the library.

use std::{future::pending, io};

use blockferry_sys::FILE_SIZE_SIGNAL;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::job::Stop;

/// Which request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interrupt {
    /// Ctrl-C.
    Int,
    /// A polite `kill`.
    Term,
    /// The terminal was closed.
    Hangup,
    /// Whoever began the job.
    Caller,
}

impl Interrupt {
    /// The exit code of a program that ended because of it: 128 and the signal's number.
    pub(crate) fn exit_code(self) -> u8 {
        let signal = match self {
            Self::Int | Self::Caller => SignalKind::interrupt(),
            Self::Term => SignalKind::terminate(),
            Self::Hangup => SignalKind::hangup(),
        };
        u8::try_from(128 + signal.as_raw_value()).unwrap_or(u8::MAX)
    }

    /// What happened, as a word for a message.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Int => "interrupted",
            Self::Term => "asked to end",
            Self::Hangup => "the terminal was closed",
            Self::Caller => "stopped",
        }
    }
}

/// Listens for the requests.
pub(crate) enum Signals {
    /// To the system.
    System(SystemSignals),
    /// To whoever began the job.
    Caller(Stop),
}

/// The signals of the system.
pub(crate) struct SystemSignals {
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
        let hangup = SignalKind::hangup();
        let ignored = blockferry_sys::is_signal_ignored(hangup.as_raw_value());
        Ok(Self::System(SystemSignals {
            int: signal(SignalKind::interrupt())?,
            term: signal(SignalKind::terminate())?,
            hangup: (!ignored).then(|| signal(hangup)).transpose()?,
            _file_size: signal(SignalKind::from_raw(FILE_SIZE_SIGNAL))?,
        }))
    }

    /// Takes SIGHUP for something else than an end: to look again at a file. Where `wanted` is false it
    /// keeps its meaning, and nothing is ever asked.
    pub(crate) fn reload(&mut self, wanted: bool) -> io::Result<Reload> {
        match self {
            Self::System(signals) if wanted => {
                signals.hangup = None;
                signal(SignalKind::hangup()).map(|signal| Reload(Some(signal)))
            }
            _ => Ok(Reload(None)),
        }
    }

    /// Waits for the next request. Nothing is lost when the future is dropped.
    pub(crate) async fn next(&mut self) -> Interrupt {
        let signals = match self {
            Self::System(signals) => signals,
            Self::Caller(stop) => {
                stop.asked().await;
                return Interrupt::Caller;
            }
        };
        tokio::select! {
            Some(()) = signals.int.recv() => Interrupt::Int,
            Some(()) = signals.term.recv() => Interrupt::Term,
            () = receive(&mut signals.hangup) => Interrupt::Hangup,
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
