//! Servers that restart in the middle of a copy, and forget what they did not flush.

use std::{
    future,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use blockferry_block::ErrorKind;
use blockferry_copy::{
    CompareOptions, Comparison, Control, CopyOptions, Destination, DigestOptions, Event, Side,
    Source, Warning, compare, copy,
};

use crate::restarting::{SIZE, Server, orders, reconnections, run, source, target};
use crate::{Recorder, digest::naive_digest, pipe::Output};

#[tokio::test(start_paused = true)]
async fn a_source_that_restarts_four_times_is_read_on() {
    for (connections, options) in orders() {
        let from = source(connections)
            .restarting_at([20, 90, 91, 200])
            .refusing(2)
            .link();
        let to = target(connections).link();
        let events = Recorder::default();
        let report = run(&from, &to, &options, &events).await.expect("copied");
        assert!(to.bytes() == from.bytes(), "{connections} {options:?}");
        assert_eq!(report.data + report.zero, SIZE as u64);
        assert_eq!(events.progress().done, SIZE as u64);
        assert!(report.reconnections >= 3, "{report:?}");
        assert!(reconnections(&events) >= 3);
    }
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_restarts_and_forgets_is_written_again() {
    for (connections, options) in orders() {
        for restarts in [vec![7], vec![50, 120, 250, 300], vec![370], vec![386, 387]] {
            let from = source(connections).link();
            let to = target(connections)
                .restarting_at(restarts.clone())
                .refusing(1)
                .link();
            let events = Recorder::default();
            let report = run(&from, &to, &options, &events).await.expect("copied");
            assert!(
                to.bytes() == from.bytes(),
                "{connections} {restarts:?} {options:?}"
            );
            assert_eq!(report.data + report.zero, SIZE as u64);
            assert_eq!(events.progress().done, SIZE as u64);
            assert!(report.flushed);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_restarts_at_any_request_ends_with_the_right_image() {
    let mut options = CopyOptions::default();
    options.request_size = Some(1 << 20);
    options.requests = Some(2);
    for restart in (0..45).step_by(4) {
        let from = source(true).link();
        let to = target(true).restarting_at([restart]).link();
        let events = Recorder::default();
        run(&from, &to, &options, &events).await.expect("copied");
        assert!(to.bytes() == from.bytes(), "{restart}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_block_of_a_smaller_image_is_written_again_too() {
    for restart in [24, 25, 26, 27, 28, 29, 30] {
        let from = source(false).link();
        let mut to = Server::new(vec![0xd1; SIZE + 5000], false).restarting_at([restart]);
        to.info.limits.minimum = 512;
        let to = to.link();
        let mut options = CopyOptions::default();
        options.request_size = Some(1 << 20);
        let events = Recorder::default();
        let report = run(&from, &to, &options, &events).await.expect("copied");
        let bytes = to.bytes();
        assert!(bytes[..SIZE] == from.bytes(), "{restart}");
        assert!(bytes[SIZE..].iter().all(|byte| *byte == 0xd1), "{restart}");
        assert_eq!(report.data + report.zero, SIZE as u64);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_flushed_is_not_written_again() {
    let from = source(false).link();
    // So slow that it is flushed on the way, every 30 seconds.
    let to = target(false).restarting_at([300]).link();
    let control = Control::new();
    control.set_rate(Some(100 << 10));
    let mut options = CopyOptions::default();
    options.request_size = Some(64 << 10);
    let events = Recorder::default();
    let (source, target) = (
        Source::Device(Arc::clone(&from) as _),
        Destination::Device(Arc::clone(&to) as _),
    );
    let report = copy(source, target, &options, &control, &events).await;
    assert!(report.expect("copied").flushed);
    assert!(to.bytes() == from.bytes());
    assert!(to.server.flushes.load(SeqCst) > 5);
    let again = events.events().into_iter().find_map(|event| match event {
        Event::Warning(Warning::Reconnected { again, .. }) => Some(again),
        _ => None,
    });
    // No more than what 30 seconds move.
    let again = again.expect("it restarted");
    assert!(again > 0 && again < 4 << 20, "{again}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_stays_away_ends_the_copy_after_so_many_attempts() {
    for connections in [false, true] {
        for retries in [0, 1, 5] {
            let from = source(connections).restarting_at([30]);
            from.gone.store(true, SeqCst);
            let from = from.link();
            let to = target(connections).link();
            let mut options = CopyOptions::default();
            options.retries = retries;
            let events = Recorder::default();
            let error = run(&from, &to, &options, &events)
                .await
                .expect_err("nobody is there");
            assert_eq!(error.side, Side::Source);
            assert!(error.error.is_transient(), "{error}");
            let attempts = events
                .events()
                .into_iter()
                .filter(|event| matches!(event, Event::Warning(Warning::Reconnecting { .. })));
            assert_eq!(attempts.count(), retries as usize);
            if retries > 0 {
                assert!(error.to_string().contains("could not be opened again"));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn many_connections_wait_as_long_for_a_server_as_one() {
    for connections in [1, 16] {
        for side in [Side::Source, Side::Destination] {
            let (mut from, mut to) = (source(true), target(true));
            let server = match side {
                Side::Source => &mut from,
                _ => &mut to,
            };
            *server.restarts.get_mut().expect("not poisoned") = vec![200];
            server.away = Duration::from_secs(22);
            let (from, to) = (from.link(), to.link());
            let mut options = CopyOptions::default();
            options.connections = connections;
            options.requests = Some(4);
            options.request_size = Some(64 << 10);
            let events = Recorder::default();
            let copied = run(&from, &to, &options, &events).await;
            copied.expect("it was back before the attempts were used up");
            assert!(to.bytes()[..SIZE] == from.bytes());
            let attempts = events
                .events()
                .into_iter()
                .filter(|event| matches!(event, Event::Warning(Warning::Reconnecting { .. })));
            assert_eq!(attempts.count(), 8);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_comes_back_as_another_ends_the_copy_at_once_and_for_good() {
    for connections in [false, true] {
        let mut from = source(connections).restarting_at([30]);
        from.gone.store(true, SeqCst);
        from.farewell = ErrorKind::Incompatible;
        let (from, to) = (from.link(), target(connections).link());
        let events = Recorder::default();
        let copied = run(&from, &to, &CopyOptions::default(), &events).await;
        let error = copied.expect_err("it is another one").error;
        assert_eq!(error.kind(), ErrorKind::Incompatible);
        assert!(!error.is_transient(), "{error}");
        assert!(error.to_string().contains("could not be opened again"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_dies_of_one_request_does_not_keep_the_copy_for_ever() {
    let from = source(true).restarting_at(10..100_000).link();
    let to = target(true).link();
    let events = Recorder::default();
    let copied = run(&from, &to, &CopyOptions::default(), &events).await;
    let error = copied.expect_err("it never answers again");
    assert_eq!(error.side, Side::Source);
}

#[tokio::test(start_paused = true)]
async fn a_pipe_gets_each_byte_once_although_the_source_restarts() {
    for connections in [false, true] {
        let from = source(connections).restarting_at([3, 30, 31, 60]).link();
        let output = Output::new(usize::MAX);
        let mut options = CopyOptions::default();
        options.request_size = Some(256 << 10);
        let to = Destination::Stream(Box::new(output.clone()));
        let from_device = Source::Device(Arc::clone(&from) as _);
        let events = Recorder::default();
        let copied = copy(from_device, to, &options, &Control::new(), &events).await;
        copied.expect("copied");
        assert!(output.bytes() == from.bytes());
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_waits_for_a_server_can_be_cancelled() {
    let from = source(false).restarting_at([10]).refusing(7).link();
    let to = target(false).link();
    let control = Control::new();
    let events = Recorder::default();
    let (source, target) = (
        Source::Device(Arc::clone(&from) as _),
        Destination::Device(Arc::clone(&to) as _),
    );
    let options = CopyOptions::default();
    let copying = copy(source, target, &options, &control, &events);
    let cancel = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        control.cancel();
        future::pending::<()>().await;
    };
    let ended = tokio::select! {
        ended = copying => ended,
        () = cancel => unreachable!("it never ends"),
    };
    assert_eq!(ended.expect_err("cancelled").side, Side::Cancelled);
    // What was written until then is durable.
    assert!(to.server.flushes.load(SeqCst) > 0);
}

#[tokio::test(start_paused = true)]
async fn what_was_done_twice_counts_once_in_a_digest_and_is_verified() {
    for (connections, options) in orders() {
        let mut options = options;
        options.digest = Some(DigestOptions::default());
        options.verify = true;
        let from = source(connections).restarting_at([20, 90, 200]).link();
        // Some of these come while it is read back.
        let to = target(connections)
            .restarting_at([50, 300, 420, 500, 600])
            .link();
        let events = Recorder::default();
        let report = run(&from, &to, &options, &events).await.expect("copied");
        let image = from.bytes();
        assert!(to.bytes() == image, "{connections} {options:?}");
        let digest = report.digest.expect("wanted").to_string();
        assert_eq!(digest, naive_digest(&image, DigestOptions::default()));
        assert!(report.verified);
        assert_eq!(events.progress().done, SIZE as u64);
    }
}

#[tokio::test(start_paused = true)]
async fn a_flush_that_was_a_lie_is_found_out_when_the_server_restarts() {
    let from = source(true).link();
    let mut to = target(true);
    to.lies = true;
    // All is written by then, and some of it read back.
    let to = to.restarting_at([420]).link();
    let mut options = CopyOptions::default();
    options.request_size = Some(64 << 10);
    options.requests = Some(4);
    options.verify = true;
    let copied = run(&from, &to, &options, &Recorder::default()).await;
    let error = copied.expect_err("it has forgotten everything");
    assert_eq!(error.side, Side::Destination);
    assert_eq!(error.error.kind(), ErrorKind::Mismatch);
}

#[tokio::test(start_paused = true)]
async fn images_whose_servers_restart_are_compared_to_the_end() {
    for connections in [false, true] {
        let one = source(connections).restarting_at([5, 30, 31]).refusing(2);
        let mut bytes = one.disks.lock().expect("not poisoned").0.clone();
        bytes[SIZE - 1] ^= 1;
        let other = Server::new(bytes, connections).restarting_at([3, 40]);
        let (one, other) = (one.link(), other.link());
        let events = Recorder::default();
        let control = Control::new();
        let options = CompareOptions::default();
        let found = compare(one.clone(), other, &options, &control, &events).await;
        let offset = SIZE as u64 - 1;
        assert_eq!(
            found.expect("connected again"),
            Comparison::Differs { offset }
        );
        assert!(reconnections(&events) > 0);

        let gone = source(connections).restarting_at([20]);
        gone.gone.store(true, SeqCst);
        let found = compare(one, gone.link(), &options, &control, &events).await;
        let error = found.expect_err("gone for good");
        assert_eq!(error.side, Side::Destination);
        assert!(error.error.is_transient());
    }
}
