//! How a failure is told: the message, a hint where one helps, and the exit code.
//!
//! All messages are in one voice, so that people and scripts know where to look:
//!
//! - `SUBJECT: what happened: why`, on one line, in the present tense, without a full stop. The subject is an endpoint as
//!   it was written, a file, or an option with its dashes; the operation follows it where there was one.
//! - What to do is not part of it: that stands on a line of its own, after `hint: ` ([`hints`](super::hints)).
//! - Commands, options in sentences about others, and words to be typed stand in 'single quotes'; words that somebody
//!   else wrote stand in "double quotes" where they are quoted at all, and are always escaped.
//! - The same failure has the same words everywhere: "it is not a ...", "... is not supported", "lies past the end of the file",
//!   "it must be from ... to ...", "there is no ...". Numbers of system errors and names of temporary files are left out
//!   ([`system`]).
//! - An image is a disk in a format or raw; a file, an export and a device hold it; an endpoint is what a user writes.

use std::{error::Error as StdError, fmt, fmt::Write, io};

use serde::Serialize;

use crate::{
    block::{Error, ErrorKind},
    copy::{CopyError, Side},
    endpoint::EndpointError,
    filter::FilterError,
    system,
};

use super::{
    hints,
    output::{program, tell},
    signals::Interrupt,
};

/// Messages longer than this are cut: what a peer says is bounded below already, this is the last net.
const LONGEST_MESSAGE: usize = 4096;

/// Why a command did not do what it was asked for.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    message: String,
    notes: Vec<String>,
    hint: Option<String>,
    /// The error of a device that it came from.
    cause: Option<Error>,
}

/// A failure for programs.
#[derive(Debug, Serialize)]
pub(crate) struct Details<'a> {
    /// A word that stays the same: `connection-lost`, `no-space`, ...
    pub(crate) kind: String,
    /// What people are told.
    pub(crate) message: &'a str,
    /// What was being done: `read`, `write`, ...
    pub(crate) operation: Option<String>,
    /// The range in bytes that it was done to.
    pub(crate) offset: Option<u64>,
    pub(crate) length: Option<u64>,
    /// As the user wrote it.
    pub(crate) endpoint: Option<&'a str>,
    /// Whether trying again may help.
    pub(crate) transient: bool,
    pub(crate) notes: &'a [String],
    pub(crate) hint: Option<&'a str>,
}

/// The exit codes of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Failed,
    Usage,
    /// Whoever read our output did not want all of it.
    ReaderGone,
    /// A question was not answered, where "no" has a code of its own.
    Undecided,
    /// `EX_TEMPFAIL` of sysexits.h.
    TryAgain,
    Interrupted(Interrupt),
}

impl Failure {
    /// The request made no sense.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message.into())
    }

    /// It failed, and trying again would not help.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message.into())
    }

    /// Something of the system failed.
    pub(crate) fn system(what: &str, error: &io::Error) -> Self {
        Self::failed(format!("{what}: {}", system::words(error)))
    }

    /// Someone asked us to end.
    pub(crate) fn interrupted(interrupt: Interrupt) -> Self {
        Self::new(Exit::Interrupted(interrupt), interrupt.as_str().to_owned())
    }

    /// Nobody reads our output any more.
    pub(crate) fn reader_gone() -> Self {
        Self::new(
            Exit::ReaderGone,
            "the reader of the output went away".to_owned(),
        )
    }

    fn new(exit: Exit, message: String) -> Self {
        Self {
            exit,
            message: system::without_numbers(message),
            notes: Vec::new(),
            hint: None,
            cause: None,
        }
    }

    /// What programs are told of it.
    pub(crate) fn details(&self) -> Details<'_> {
        let cause = self.cause.as_ref();
        let kind = match (self.exit, cause) {
            (Exit::Interrupted(_), _) => "interrupted".to_owned(),
            (_, Some(cause)) => word(&cause.kind()),
            (Exit::Usage, None) => "usage".to_owned(),
            (_, None) => "failed".to_owned(),
        };
        Details {
            kind,
            message: &self.message,
            operation: cause.and_then(Error::operation).as_ref().map(word),
            offset: cause.and_then(Error::offset),
            length: cause.and_then(Error::length),
            endpoint: cause.and_then(Error::endpoint),
            transient: self.exit == Exit::TryAgain,
            notes: &self.notes,
            hint: self.hint.as_deref(),
        }
    }

    /// What people are told first.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// Further facts.
    pub(crate) fn notes(&self) -> &[String] {
        &self.notes
    }

    /// What can be done about it, where that is known.
    pub(crate) fn advice(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Whether someone asked for it.
    pub(crate) fn is_interrupt(&self) -> bool {
        matches!(self.exit, Exit::Interrupted(_))
    }

    /// The same failure with one more fact, told on a line of its own.
    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// The same failure, whose message says first what it is about.
    pub(crate) fn about(mut self, what: &str) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// The same failure in other words, which are all that is known of it.
    pub(crate) fn saying(mut self, message: impl Into<String>) -> Self {
        self.message = message.into();
        self.cause = None;
        self
    }

    /// Why it failed, without what is known of where: not the endpoint, the operation or the range.
    pub(crate) fn reason(&self) -> String {
        let Some(cause) = &self.cause else {
            return self.message.clone();
        };
        let context = own_context(cause);
        let reason = self.message.strip_prefix(&context);
        reason.unwrap_or(&self.message).to_owned()
    }

    /// Whether it is the system that said no.
    pub(crate) fn is_of_the_system(&self) -> bool {
        self.cause.as_ref().is_some_and(is_system_error)
    }

    /// The error of a device that it came from.
    pub(crate) fn cause(&self) -> Option<&Error> {
        self.cause.as_ref()
    }

    /// The same failure with advice, unless it has some already.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// The same failure without advice, which speaks of this program's own commands.
    pub(crate) fn without_hint(mut self) -> Self {
        self.hint = None;
        self
    }

    /// The same failure of a command that ends with 1 when the answer is no.
    pub(crate) fn undecided(mut self) -> Self {
        if self.exit == Exit::Failed {
            self.exit = Exit::Undecided;
        }
        self
    }

    /// The exit code.
    pub(crate) fn code(&self) -> u8 {
        match self.exit {
            Exit::Failed | Exit::ReaderGone => 1,
            Exit::Usage | Exit::Undecided => 2,
            Exit::TryAgain => 75,
            Exit::Interrupted(interrupt) => interrupt.exit_code(),
        }
    }

    /// Whether it is that nobody reads our output any more.
    pub(crate) fn is_reader_gone(&self) -> bool {
        self.exit == Exit::ReaderGone
    }

    /// Tells it on standard error.
    pub(crate) fn report(&self) {
        for line in self.to_string().lines() {
            tell(line);
        }
    }
}

/// Every line that is told, without control characters.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program = program();
        write!(f, "{program}: {}", Line(&self.message))?;
        for note in &self.notes {
            write!(f, "\n{program}: {}", Line(note))?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {}", Line(hint))?;
        }
        Ok(())
    }
}

/// The name of a variant as a word: `ConnectionLost` is `connection-lost`.
fn word(variant: &impl fmt::Debug) -> String {
    let mut word = String::new();
    for c in format!("{variant:?}").chars() {
        if c.is_ascii_uppercase() && !word.is_empty() {
            word.push('-');
        }
        word.push(c.to_ascii_lowercase());
    }
    word
}

/// A text that stays on its line and is not too long.
struct Line<'a>(&'a str);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (count, c) in self.0.chars().enumerate() {
            if count == LONGEST_MESSAGE {
                return f.write_str("...");
            }
            if c.is_control() {
                write!(f, "{}", c.escape_default())?;
            } else {
                f.write_char(c)?;
            }
        }
        Ok(())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::from(&error)
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let exit = match error.is_transient() {
            true => Exit::TryAgain,
            false => Exit::Failed,
        };
        let mut failure = Self::new(exit, in_words(error));
        failure.hint = hints::for_error(error);
        failure.cause = Some(error.clone());
        failure
    }
}

impl From<&CopyError> for Failure {
    fn from(failed: &CopyError) -> Self {
        let mut failure = Self::from(&failed.error);
        if failed.side == Side::Destination && failed.error.kind() == ErrorKind::BrokenPipe {
            failure.hint = None;
            failure.exit = Exit::ReaderGone;
            return failure.note("the reader of the output went away before it had all of it");
        }
        if failed.progress.done > 0 {
            let done = crate::block::HumanSize(failed.progress.done);
            failure = failure.note(format!("{done} had been copied"));
        }
        failure
    }
}

impl From<FilterError> for Failure {
    fn from(error: FilterError) -> Self {
        let mut failure = Self::usage(format!("--filter: {error}"));
        failure.hint = hints::for_filter(&error);
        failure
    }
}

impl From<EndpointError> for Failure {
    fn from(error: EndpointError) -> Self {
        let mut failure = Self::usage(error.to_string());
        failure.hint = hints::for_endpoint(&error);
        failure
    }
}

/// The error and its causes on one line. A cause whose text was said already is not repeated, and an
/// error that says nothing but its kind leaves the word to its cause, which knows more.
pub(crate) fn in_words(error: &Error) -> String {
    let mut text = own_words(error);
    let mut cause = error.source();
    while let Some(next) = cause {
        let said = match next.downcast_ref::<Error>() {
            Some(inner) => without_endpoint(own_words(inner), error.endpoint()),
            None => match next.downcast_ref::<io::Error>() {
                Some(error) => system::words(error),
                None => system::without_numbers(next.to_string()),
            },
        };
        if !text.contains(&said) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&said);
        }
        cause = next.source();
    }
    text
}

/// What an error says itself: not its kind, where a cause follows.
fn own_words(error: &Error) -> String {
    let mut text = error.to_string();
    if error.source().is_some()
        && let Some(context) = text.strip_suffix(error.kind().as_str())
    {
        text.truncate(context.trim_end_matches(": ").len());
    }
    text
}

/// What stands in front of the reason in an error's own words.
fn own_context(error: &Error) -> String {
    let text = error.to_string();
    let reason = match error.reason() {
        Some(message) => message,
        None => error.kind().as_str(),
    };
    text.strip_suffix(reason).unwrap_or_default().to_owned()
}

/// What a cause says, without the name of the endpoint that was told already.
fn without_endpoint(text: String, told: Option<&str>) -> String {
    let rest = told.and_then(|told| text.strip_prefix(told)?.strip_prefix(": "));
    rest.map(str::to_owned).unwrap_or(text)
}

pub(super) fn is_system_error(error: &Error) -> bool {
    error.source().is_some_and(<dyn StdError>::is::<io::Error>)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::block::Operation;

    fn name(text: &str) -> Arc<str> {
        Arc::from(text)
    }

    #[test]
    fn exit_codes_tell_failures_apart() {
        assert_eq!(Failure::failed("x").code(), 1);
        assert_eq!(Failure::usage("x").code(), 2);
        assert_eq!(Failure::from(Error::new(ErrorKind::NoSpace)).code(), 1);
        for kind in [
            ErrorKind::ConnectionLost,
            ErrorKind::TimedOut,
            ErrorKind::ShuttingDown,
        ] {
            assert_eq!(Failure::from(Error::new(kind)).code(), 75);
        }
        assert_eq!(Failure::interrupted(Interrupt::Int).code(), 130);
        assert_eq!(Failure::interrupted(Interrupt::Term).code(), 143);
        assert_eq!(Failure::from(EndpointError::Empty).code(), 2);
        assert_eq!(Failure::failed("x").undecided().code(), 2);
        let lost = Failure::from(Error::new(ErrorKind::ConnectionLost));
        assert_eq!(lost.undecided().code(), 75);
    }

    #[test]
    fn the_causes_follow_and_none_is_repeated() {
        let error = Error::from(io::Error::other("the disk is on fire"))
            .during(Operation::Write)
            .at(4096, 512)
            .on(&name("disk.raw"));
        assert_eq!(
            Failure::from(error).to_string(),
            "blockferry: disk.raw: write of 512 bytes at offset 4096: the disk is on fire"
        );
        let inner = Error::with_message(ErrorKind::Io, "broken");
        let outer = Error::with_source(ErrorKind::NoSpace, inner);
        assert_eq!(in_words(&outer), "broken");
        let repeated = Error::with_source(ErrorKind::Io, Error::new(ErrorKind::Io));
        assert_eq!(in_words(&repeated), "input/output error");
        assert_eq!(in_words(&Error::new(ErrorKind::NoSpace)), "no space left");
    }

    #[test]
    fn an_endpoint_is_named_once() {
        let why = Error::with_message(ErrorKind::Incompatible, "its size was 2 bytes and is 1 now");
        let server = name("nbd://host/");
        let cause = why.during(Operation::Open).on(&server);
        let error = Error::with_message(ErrorKind::Incompatible, "it could not be opened again");
        assert_eq!(
            in_words(&error.because(cause).on(&server)),
            "nbd://host/: it could not be opened again: open: its size was 2 bytes and is 1 now"
        );
        let cause = Error::from(io::Error::other("no route")).on(&name("nbd://other/"));
        let error = Error::with_message(ErrorKind::Io, "broken").because(cause);
        assert_eq!(
            in_words(&error.on(&server)),
            "nbd://host/: broken: nbd://other/: no route"
        );
    }

    #[test]
    fn system_errors_are_told_in_the_systems_words() {
        let error = Error::from(io::Error::from_raw_os_error(2)).during(Operation::Open);
        let error = error.on(&name("disk.raw"));
        assert_eq!(
            in_words(&error),
            "disk.raw: open: No such file or directory"
        );
        let error = io::Error::from_raw_os_error(28);
        let failure = Failure::failed(format!("--tls: key.pem: cannot be read: {error}"));
        assert_eq!(
            failure.message(),
            "--tls: key.pem: cannot be read: No space left on device"
        );
    }

    #[test]
    fn hints_stand_on_a_line_of_their_own() {
        let error = Error::new(ErrorKind::Refused).on(&name("nbd://localhost/"));
        let text = Failure::from(error).to_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "blockferry: nbd://localhost/: refused");
        assert!(
            lines[1].starts_with("hint: nothing listens there"),
            "{text}"
        );
    }

    #[test]
    fn a_uri_that_lost_its_socket_gets_the_quotes_explained() {
        let endpoint: Result<crate::endpoint::Endpoint, _> = "nbd+unix:///disk".parse();
        let failure = Failure::from(endpoint.expect_err("no socket"));
        assert_eq!(failure.code(), 2);
        assert!(
            failure.to_string().contains("hint: write nbd+unix"),
            "{failure}"
        );
    }

    #[test]
    fn control_characters_and_floods_end_here() {
        let text = Failure::failed("a\u{1b}[31m\nb").to_string();
        assert_eq!(text, "blockferry: a\\u{1b}[31m\\nb");
        assert!(Failure::failed("x".repeat(100_000)).to_string().len() < 5000);
    }

    #[test]
    fn notes_stand_between_the_message_and_the_hint() {
        let failure = Failure::failed("bad")
            .hint("do better")
            .note("it is incomplete");
        assert_eq!(
            failure.to_string(),
            "blockferry: bad\nblockferry: it is incomplete\nhint: do better"
        );
    }
}
