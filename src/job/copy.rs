//! A copy from the words to the end.

use std::{ffi::OsString, sync::Arc, time::Duration};

use clap::Parser;

use crate::{
    cli::{
        args::{Cli, Command},
        commands,
        failure::Failure,
        options::{self, Show, Terminals},
        progress::{Listener, View},
    },
    copy::{DigestOptions, Event, Report},
};

use super::{JobError, Stop};

/// A copy that was understood, and has touched nothing yet.
#[derive(Debug)]
pub struct CopyJob(options::CopyJob);

/// A copy that was made.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CopyDone {
    /// What the engine did.
    pub report: Report,
    /// How the digest in it was computed, if one was wanted.
    pub digest: Option<DigestOptions>,
    /// How long it took, from the first byte until the destination was closed.
    pub elapsed: Duration,
    /// What was not as it should be, in sentences for people.
    pub warnings: Vec<String>,
}

impl CopyJob {
    /// Understands what `blockferry copy` takes: options, sources, the destination. What does not come from whoever
    /// wrote the program had better stand behind a `--`, and `[ CMD ARGS... ]` is [one
    /// argument](crate::endpoint::collapse_groups). What is there to be shown is nothing here: `--progress`, `--json`
    /// and `--verbose` change nothing.
    ///
    /// # Errors
    /// Of the kind `usage`: words that are not known, or do not go together.
    pub fn new<T: Into<OsString>>(words: impl IntoIterator<Item = T>) -> Result<Self, JobError> {
        let words = words.into_iter().map(Into::into);
        let words = ["blockferry".into(), "copy".into()]
            .into_iter()
            .chain(words);
        let cli = Cli::try_parse_from(words).map_err(|error| misunderstood(&error))?;
        let Command::Copy(args) = cli.command else {
            return Err(Failure::usage("this is not a copy").into());
        };
        let terminals = Terminals {
            input: false,
            output: false,
            error: false,
        };
        Ok(Self(options::CopyJob::resolve(
            &args, cli.common, terminals,
        )?))
    }

    /// Copies, on this thread, and returns when the destination is whole: durable, and with its name.
    ///
    /// `listener` is told how it gets on, from within the copy: it must not block. A server that is started for an
    /// endpoint lives as long as this thread.
    ///
    /// # Errors
    /// What went wrong, with what became of the destination in its notes; of the kind `interrupted` after
    /// [`Stop::stop`].
    pub fn run(
        self,
        listener: impl Fn(Event) + Send + Sync + 'static,
        stop: &Stop,
    ) -> Result<CopyDone, JobError> {
        let mut job = self.0;
        job.stop = Some(stop.clone());
        job.verbose = false;
        job.warnings = false;
        let view = View::new(Show::To(Listener::new(Arc::new(listener))), true);
        let done = commands::copy::carry_out(&job, &view)?;
        done.page?;
        Ok(CopyDone {
            report: done.report,
            digest: job.engine.digest,
            elapsed: done.elapsed,
            warnings: view.warnings(),
        })
    }
}

/// What the parser has against the words, without its advice for terminals.
fn misunderstood(error: &clap::Error) -> JobError {
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let reason = text.split("\n\n").next().unwrap_or(text);
    let reason = reason.split_whitespace().collect::<Vec<_>>().join(" ");
    Failure::usage(reason.replace('\0', " ")).into()
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::Mutex};

    use super::*;

    #[test]
    fn a_file_is_copied_and_progress_is_told() {
        let directory = tempfile::tempdir().expect("a directory");
        let target = directory.path().join("disk.raw");
        let words = ["--checksum".into(), "--".into(), "sample:1M".into()];
        let words = words.into_iter().chain([target.clone().into_os_string()]);
        let job = CopyJob::new(words).expect("a job");
        let events = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&events);
        let listener = move |event| heard.lock().expect("no panic").push(event);
        let done = job.run(listener, &Stop::new()).expect("a copy");
        assert_eq!((done.report.size, done.report.flushed), (1 << 20, true));
        assert!(done.report.digest.is_some() && done.digest.is_some());
        assert_eq!(fs::metadata(target).expect("a file").len(), 1 << 20);
        let events = events.lock().expect("no panic");
        assert!(matches!(
            events[0],
            Event::Planned {
                size: Some(1_048_576)
            }
        ));
    }

    #[test]
    fn a_copy_that_was_stopped_before_leaves_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let target = directory.path().join("disk.raw");
        let words = ["sample:1M".into(), target.clone().into_os_string()];
        let job = CopyJob::new(words).expect("a job");
        let stop = Stop::new();
        stop.stop();
        stop.stop();
        let error = job.run(|_| {}, &stop).expect_err("it was stopped");
        assert_eq!(error.kind(), "interrupted");
        assert!(!target.exists());
    }

    #[test]
    fn words_that_make_no_sense_are_refused_on_one_line() {
        for words in [
            &["--connections=0", "a", "b"][..],
            &["--nonsense", "a", "b"],
            &["a"],
        ] {
            let error = CopyJob::new(words).expect_err("no sense");
            assert_eq!(error.kind(), "usage");
            assert!(!error.message().contains('\n'), "{error}");
        }
    }
}
