//! `copy`: a whole copy, as the command line makes it, on a thread of its own. The caller's thread waits for it, calls the
//! callback, and looks for signals; what either raises ends the copy.

use std::{
    ffi::OsString,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use blockferry::{
    copy::{DigestOptions, Event, Progress},
    job::{CopyDone, CopyJob, JobError, Stop},
};
use pyo3::{prelude::*, types::PyDict};

use crate::{
    errors::{of_device, raised},
    runtime::SIGNAL_PAUSE,
    words::endpoint_word,
};

/// Copies, as the words of the command line say it. `progress` is called with a phase, what is done, the size, and how
/// much of it was data and zeroes, on this thread, `interval` seconds apart at least. `cancel` is an event that ends it.
#[pyfunction]
#[pyo3(signature = (words, images, progress, interval, cancel))]
pub(crate) fn copy<'py>(
    py: Python<'py>,
    words: Vec<OsString>,
    images: Vec<Bound<'py, PyAny>>,
    progress: Option<Bound<'py, PyAny>>,
    interval: f64,
    cancel: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let mut words = words;
    words.push("--".into());
    for image in &images {
        words.push(endpoint_word(image)?);
    }
    let job = CopyJob::new(words).map_err(|error| raised(py, error))?;
    let (stop, board) = (Stop::new(), Arc::new(Board::default()));
    let worker = {
        let (stop, board) = (stop.clone(), Arc::clone(&board));
        let worker = thread::Builder::new().name("blockferry copy".to_owned());
        worker.spawn(move || {
            let listener = Arc::clone(&board);
            let result = job.run(move |event| listener.heard(&event), &stop);
            board.end(result);
        })
    };
    let worker = worker.map_err(|error| of_device(py, error.into()))?;
    let interval = Duration::try_from_secs_f64(interval.max(0.0)).unwrap_or(Duration::MAX);
    let mut teller = Teller {
        callback: progress,
        interval,
        told: None,
        next: Instant::now(),
    };
    let mut exception = None;
    let mut is_cancelled = false;
    let result = loop {
        let pause = teller.pause();
        let (news, result) = py.detach(|| board.wait(pause));
        let told = py.check_signals().and_then(|()| match exception {
            None => teller.tell(news, result.is_some()),
            // Who has raised once is not asked again.
            Some(_) => Ok(()),
        });
        if let Err(error) = told {
            // Once it ends well, and when it is asked again at once.
            stop.stop();
            exception.get_or_insert(error);
        }
        if let (Some(cancel), false) = (&cancel, is_cancelled || exception.is_some()) {
            match is_set(cancel) {
                Ok(false) => {}
                Ok(true) => {
                    stop.stop();
                    is_cancelled = true;
                }
                Err(error) => {
                    stop.stop();
                    exception = Some(error);
                }
            }
        }
        if let Some(result) = result {
            break result;
        }
    };
    // It has nothing left to do.
    let _ = py.detach(|| worker.join());
    if let Some(exception) = exception {
        return Err(exception);
    }
    let done = result.map_err(|error| raised(py, error))?;
    report(py, &done)
}

/// Whether an event has happened: a `threading.Event`, or what has such a method.
fn is_set(event: &Bound<'_, PyAny>) -> PyResult<bool> {
    event.call_method0("is_set")?.is_truthy()
}

/// What the copy's thread says to the one that waits.
#[derive(Default)]
struct Board {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    news: News,
    result: Option<Result<CopyDone, JobError>>,
}

/// How far a copy is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct News {
    phase: Phase,
    progress: Progress,
    size: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Opening,
    Copying,
    Flushing,
    Verifying,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Copying => "copying",
            Self::Flushing => "flushing",
            Self::Verifying => "verifying",
        }
    }
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of what the engine says. Nobody is woken: whoever waits looks when it is time.
    fn heard(&self, event: &Event) {
        let mut state = self.lock();
        let news = &mut state.news;
        match event {
            Event::Planned { size } => {
                news.phase = Phase::Copying;
                news.size = *size;
            }
            Event::Progress(progress) => news.progress = *progress,
            Event::Flushing => news.phase = Phase::Flushing,
            Event::Verifying { done, size } => {
                news.phase = Phase::Verifying;
                news.progress.done = *done;
                news.size = Some(*size);
            }
            _ => {}
        }
    }

    fn end(&self, result: Result<CopyDone, JobError>) {
        self.lock().result = Some(result);
        self.changed.notify_all();
    }

    /// Waits for the end, or for `pause`.
    fn wait(&self, pause: Duration) -> (News, Option<Result<CopyDone, JobError>>) {
        let state = self.lock();
        let waited = self
            .changed
            .wait_timeout_while(state, pause, |state| state.result.is_none());
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        (state.news, state.result.take())
    }
}

/// Calls the callback, not too often, and only when there is something new.
struct Teller<'py> {
    callback: Option<Bound<'py, PyAny>>,
    interval: Duration,
    told: Option<News>,
    next: Instant,
}

impl Teller<'_> {
    /// How long to wait for the next look.
    fn pause(&self) -> Duration {
        let next = self.next.saturating_duration_since(Instant::now());
        match &self.callback {
            Some(_) => next.clamp(Duration::from_millis(1), SIGNAL_PAUSE),
            None => SIGNAL_PAUSE,
        }
    }

    fn tell(&mut self, news: News, is_last: bool) -> PyResult<()> {
        let now = Instant::now();
        let Some(callback) = &self.callback else {
            return Ok(());
        };
        let is_due = (now >= self.next || is_last) && news.phase != Phase::Opening;
        if !is_due || self.told == Some(news) {
            return Ok(());
        }
        self.next = now.checked_add(self.interval).unwrap_or(self.next);
        self.told = Some(news);
        let Progress {
            done, data, zero, ..
        } = news.progress;
        callback.call1((news.phase.name(), done, news.size, data, zero))?;
        Ok(())
    }
}

/// What was done, under the names of the fields of `Report`.
fn report<'py>(py: Python<'py>, done: &CopyDone) -> PyResult<Bound<'py, PyDict>> {
    let report = &done.report;
    let facts = PyDict::new(py);
    facts.set_item("size", report.size)?;
    facts.set_item("data", report.data)?;
    facts.set_item("zero", report.zero)?;
    facts.set_item("seconds", done.elapsed.as_secs_f64())?;
    facts.set_item("flushed", report.flushed)?;
    facts.set_item("verified", report.verified)?;
    facts.set_item("resumed", report.resumed)?;
    facts.set_item("reconnections", report.reconnections)?;
    facts.set_item("digest", report.digest.map(|digest| digest.to_string()))?;
    let algorithm = report
        .digest
        .and(done.digest)
        .as_ref()
        .map(DigestOptions::to_string);
    facts.set_item("digest_algorithm", algorithm)?;
    facts.set_item("source_connections", report.source_connections)?;
    facts.set_item("destination_connections", report.destination_connections)?;
    facts.set_item("request_size", report.request_size)?;
    facts.set_item("queue_size", report.queue_size)?;
    facts.set_item("warnings", done.warnings.clone())?;
    Ok(facts)
}
