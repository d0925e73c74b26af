//! What is noted as done while a copy runs, and copies that go on from there.

use std::{
    sync::{Arc, Mutex, atomic::Ordering::SeqCst},
    time::Duration,
};

use blockferry_block::{BoxFuture, ByteRange, Result};
use blockferry_copy::{
    Checkpoint, Control, CopyOptions, Destination, Done, SaveDone, Side, Source, copy,
};

use crate::Recorder;
use crate::restarting::{SIZE, Server, run, source, target};

/// Keeps what it is given.
#[derive(Default)]
struct Kept(Mutex<Vec<Done>>);

impl SaveDone for Kept {
    fn save(&self, done: &Done) -> BoxFuture<'static, Result<()>> {
        self.0.lock().expect("not poisoned").push(done.clone());
        Box::pin(async { Ok(()) })
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_goes_on_from_any_checkpoint_of_another() {
    let from = source(true).link();
    let kept = Arc::new(Kept::default());
    let with = |done: Done| {
        let mut options = CopyOptions::default();
        options.request_size = Some(64 << 10);
        options.checkpoint = Some(Checkpoint {
            done,
            save: Arc::clone(&kept) as _,
        });
        options
    };
    let to = target(true).link();
    let control = Control::new();
    control.set_rate(Some(2 << 20));
    let options = with(Done::default());
    let (source, target_) = (
        Source::Device(Arc::clone(&from) as _),
        Destination::Device(Arc::clone(&to) as _),
    );
    let report = copy(source, target_, &options, &control, &()).await;
    report.expect("copied");
    let checkpoints = std::mem::take(&mut *kept.0.lock().expect("not poisoned"));
    assert!(checkpoints.len() > 5, "{}", checkpoints.len());
    let image = from.bytes();
    for done in checkpoints {
        assert_eq!(done.data + done.zero, done.ranges.len());
        // What is done is there, and nothing else.
        let mut bytes = vec![0xee; SIZE];
        for range in done.ranges.iter() {
            let part = range.start() as usize..range.end() as usize;
            bytes[part.clone()].copy_from_slice(&image[part]);
        }
        let to = Server::new(bytes, true).link();
        let events = Recorder::default();
        let options = with(done.clone());
        let before = from.server.requests.load(SeqCst);
        let report = run(&from, &to, &options, &events).await.expect("copied");
        assert!(to.bytes() == image);
        assert_eq!(report.resumed, done.ranges.len());
        assert_eq!(report.data + report.zero, SIZE as u64);
        assert_eq!(events.progress().done, SIZE as u64);
        let reads = from.server.requests.load(SeqCst) - before;
        let left = (SIZE as u64 - done.ranges.len()) / (64 << 10);
        assert!(reads as u64 <= left + 20, "{reads} reads for {left}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_fails_notes_what_it_has_done() {
    let from = source(false).restarting_at([200]);
    from.gone.store(true, SeqCst);
    let from = from.link();
    let to = target(false).link();
    let kept = Arc::new(Kept::default());
    let mut options = CopyOptions::default();
    options.request_size = Some(64 << 10);
    options.checkpoint = Some(Checkpoint {
        done: Done::default(),
        save: Arc::clone(&kept) as _,
    });
    let error = run(&from, &to, &options, &Recorder::default()).await;
    error.expect_err("the source is gone");
    let last = kept.0.lock().expect("not poisoned").pop().expect("noted");
    assert!(last.ranges.len() > 8 << 20, "{}", last.ranges.len());
    let (image, bytes) = (from.bytes(), to.bytes());
    for range in last.ranges.iter() {
        let part = range.start() as usize..range.end() as usize;
        assert!(bytes[part.clone()] == image[part]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_within_a_flush_notes_no_more_than_that_flush_covers() {
    let from = source(false).restarting_at([200]);
    from.gone.store(true, SeqCst);
    let from = from.link();
    // The first flush is under way when the source is gone; the next one fails.
    let mut to = target(false);
    to.flushing = (Duration::from_secs(60), 1);
    let to = to.link();
    let kept = Arc::new(Kept::default());
    let mut options = CopyOptions::default();
    options.request_size = Some(64 << 10);
    options.requests = Some(1);
    options.checkpoint = Some(Checkpoint {
        done: Done::default(),
        save: Arc::clone(&kept) as _,
    });
    let error = run(&from, &to, &options, &Recorder::default()).await;
    error.expect_err("the source is gone");
    let last = kept.0.lock().expect("not poisoned").pop().expect("noted");
    assert!(!last.ranges.is_empty());
    let (image, durable) = (from.bytes(), to.bytes());
    for range in last.ranges.iter() {
        let part = range.start() as usize..range.end() as usize;
        assert!(durable[part.clone()] == image[part], "{range:?}");
    }
}

#[tokio::test]
async fn a_checkpoint_that_does_not_fit_is_refused_before_anything_is_written() {
    let from = source(false).link();
    let fits = ByteRange::between(0, 4096);
    for (range, data) in [
        (ByteRange::between(0, SIZE as u64 + 512), SIZE as u64 + 512),
        (ByteRange::between(100, 4096), 3996),
        (fits, 17),
    ] {
        let mut to = target(false);
        to.info.limits.minimum = 512;
        let to = to.link();
        let mut options = CopyOptions::default();
        options.checkpoint = Some(Checkpoint {
            done: Done {
                ranges: [range].into_iter().collect(),
                data,
                zero: 0,
            },
            save: Arc::new(Kept::default()),
        });
        let error = run(&from, &to, &options, &Recorder::default()).await;
        assert_eq!(error.expect_err("refused").side, Side::Plan);
        assert_eq!(to.server.requests.load(SeqCst), 0);
    }
}
