//! A pool whose server goes away and comes back, or does not.

mod support;

use std::{
    future::Future,
    os::unix::net::UnixListener,
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use blockferry_block::{
    BlockDevice, Buffer, ByteRange, Capabilities, Context, Error, ErrorKind, Payload, PipePool,
    WriteFlags, ZeroFlags,
};
use blockferry_client::{ConnectOptions, Pool, PoolEvent, PoolObserver, PoolOptions};
use blockferry_proto::{Command, Errno};
use support::{Place, Script, Server, byte_at};
use tokio::runtime::Builder;

fn small() -> Script {
    Script {
        size: 1 << 20,
        ..Script::default()
    }
}

/// A server that takes everything and answers nothing.
fn mute() -> Script {
    Script {
        silent_from: Some(0),
        ..small()
    }
}

/// What a pool tells, in a word each.
#[derive(Clone, Default)]
struct Diary(Arc<Mutex<Vec<String>>>);

impl Diary {
    fn options(&self, connections: usize, retries: u32) -> PoolOptions {
        let entries = Arc::clone(&self.0);
        let mut options = PoolOptions::default();
        options.connections = connections;
        options.retries = retries;
        options.observer = Some(PoolObserver::new(move |event| {
            let entry = match event {
                PoolEvent::Lost { left, .. } => format!("lost, {left} left"),
                PoolEvent::WritesLost => "writes lost".to_owned(),
                PoolEvent::AttemptFailed { attempt, .. } => format!("attempt {attempt}"),
                PoolEvent::Reconnected { attempts } => format!("connected after {attempts}"),
                PoolEvent::GaveUp { error } => format!("gave up: {error}"),
                other => panic!("unknown: {other:?}"),
            };
            entries.lock().expect("not poisoned").push(entry);
        }));
        options
    }

    fn has(&self, words: &str) -> bool {
        let entries = self.0.lock().expect("not poisoned");
        entries.iter().any(|entry| entry.contains(words))
    }
}

async fn connect(place: &Place, options: impl Into<PoolOptions>) -> Pool {
    let options = options.into();
    let wanted = options.connections;
    let pool = Pool::connect(&place.uri(), &ConnectOptions::default(), options)
        .await
        .expect("a pool");
    until(|| pool.connections() == wanted).await;
    pool
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// `old` dies, and a server like `script` of the same memory takes its place.
fn replace(place: &Place, old: &Server, script: Script) -> Server {
    let new = old.successor(script);
    place.lead_to(&new.socket);
    old.kill();
    new
}

async fn read_at(pool: &Pool, offset: usize) -> Result<(), Error> {
    let buffer = pool.read(offset as u64, Buffer::zeroed(4096)).await?;
    let mut bytes = buffer.iter().enumerate();
    assert!(bytes.all(|(index, byte)| *byte == byte_at(offset + index)));
    Ok(())
}

async fn write_at(pool: &Pool, offset: u64, flags: WriteFlags) -> Result<(), Error> {
    let data = Buffer::from(&[0xab; 4096][..]);
    pool.write(offset, data, flags).await.map(drop)
}

fn is_written(server: &Server, offset: usize) -> bool {
    server.memory()[offset..offset + 4096] == [0xab; 4096]
}

/// What a flush says that cannot vouch for what was written before.
fn tells_of_lost_writes(flushed: Result<(), Error>) -> bool {
    match flushed {
        Ok(()) => false,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Io, "{error}");
            assert!(error.to_string().contains("not flushed"), "{error}");
            true
        }
    }
}

#[tokio::test]
async fn requests_wait_while_the_server_is_away_and_are_answered_by_the_next() {
    let old = Server::start(small());
    let place = Place::of(&old);
    let diary = Diary::default();
    let pool = connect(&place, diary.options(3, 20)).await;
    place.clear();
    old.kill();
    until(|| diary.has("attempt 2")).await;
    let (reading, range) = (read_at(&pool, 777), ByteRange::between(0, 8192));
    let back = async {
        let new = old.successor(small());
        place.lead_to(&new.socket);
        new
    };
    let (read, extents, new) =
        tokio::join!(reading, pool.extents(range, &Context::Allocation), back);
    read.expect("a read");
    assert!(!extents.expect("extents").is_empty());
    assert!(diary.has("lost, 0 left") && diary.has("connected after"));
    until(|| pool.connections() == 3).await;
    drop(new);
}

#[tokio::test]
async fn a_server_that_dies_in_the_middle_of_an_answer_or_of_a_negotiation_is_tried_again() {
    for last_words in [0, 10, 3000] {
        let old = Server::start(Script {
            dies_at: Some(2),
            last_words,
            ..small()
        });
        let place = Place::of(&old);
        let diary = Diary::default();
        let pool = connect(&place, diary.options(1, 20)).await;
        read_at(&pool, 0).await.expect("the first answer");
        // Whoever connects now is hung up on.
        let rude = place.link.with_file_name("rude.sock");
        let listener = UnixListener::bind(&rude).expect("a free name");
        place.lead_to(&rude);
        let hanging_up = thread::spawn(move || listener.incoming().take(2).for_each(drop));
        let coming_back = async {
            until(|| diary.has("attempt 2")).await;
            let new = old.successor(small());
            place.lead_to(&new.socket);
            new
        };
        let reading = async {
            for offset in [1, 4096, 70_000] {
                read_at(&pool, offset).await.expect("a read");
            }
        };
        let ((), new) = tokio::join!(reading, coming_back);
        hanging_up.join().expect("no panic");
        drop(new);
    }
}

#[tokio::test]
async fn what_was_not_acknowledged_is_done_again_and_nothing_is_lost() {
    let old = Server::start(mute());
    let place = Place::of(&old);
    let pool = connect(&place, Diary::default().options(2, 8)).await;
    let range = ByteRange::between(65536, 131_072);
    let dying = async {
        until(|| old.requests(Command::Trim).len() == 1).await;
        replace(&place, &old, small())
    };
    let (written, zeroed, trimmed, new) = tokio::join!(
        write_at(&pool, 8192, WriteFlags::empty()),
        pool.zero(range, ZeroFlags::empty()),
        pool.trim(range, WriteFlags::empty()),
        dying
    );
    written.expect("a write");
    zeroed.expect("zeroes");
    trimmed.expect("a trim");
    assert!(is_written(&new, 8192));
    assert_eq!(new.requests(Command::Write).len(), 1);
    assert!(!tells_of_lost_writes(pool.flush().await));
    assert!(!new.requests(Command::Flush).is_empty());
}

#[tokio::test]
async fn a_flush_tells_once_of_writes_that_the_server_may_have_forgotten() {
    let old = Server::start(small());
    let place = Place::of(&old);
    let diary = Diary::default();
    let pool = connect(&place, diary.options(2, 8)).await;
    let other = pool.clone();
    write_at(&pool, 0, WriteFlags::empty())
        .await
        .expect("a write");
    let new = replace(&place, &old, small());
    // Reading goes on as if nothing had been.
    read_at(&pool, 4096).await.expect("a read");
    assert!(diary.has("writes lost"));
    let late = pool.clone();
    assert!(tells_of_lost_writes(pool.flush().await));
    assert!(!tells_of_lost_writes(pool.flush().await));
    // Each handle that was there is told for itself; a new one starts afresh.
    assert!(tells_of_lost_writes(other.flush().await));
    assert!(tells_of_lost_writes(late.flush().await));
    assert!(!tells_of_lost_writes(pool.clone().flush().await));
    assert!(!tells_of_lost_writes(other.flush().await));

    // And again for the next loss.
    write_at(&other, 0, WriteFlags::empty())
        .await
        .expect("a write");
    let newest = replace(&place, &new, small());
    assert!(tells_of_lost_writes(pool.flush().await));
    assert!(!tells_of_lost_writes(pool.flush().await));
    drop(newest);
}

#[tokio::test]
async fn what_is_durable_is_not_lost_with_the_server() {
    let old = Server::start(small());
    let place = Place::of(&old);
    let pool = connect(&place, Diary::default().options(2, 8)).await;
    for offset in [0, 4096] {
        write_at(&pool, offset, WriteFlags::empty())
            .await
            .expect("a write");
    }
    pool.flush().await.expect("a flush");
    write_at(&pool, 8192, WriteFlags::FUA)
        .await
        .expect("a durable write");
    let range = ByteRange::between(65536, 131_072);
    pool.zero(range, ZeroFlags::FUA)
        .await
        .expect("durable zeroes");
    pool.trim(range, WriteFlags::FUA)
        .await
        .expect("a durable trim");
    let new = replace(&place, &old, small());
    assert!(!tells_of_lost_writes(pool.flush().await));
    assert!(!new.requests(Command::Flush).is_empty());
}

#[tokio::test]
async fn a_connection_that_is_lost_alone_takes_no_writes_with_it() {
    let server = Server::start(Script {
        mortal: Some(0),
        dies_at: Some(3),
        ..small()
    });
    let place = Place::of(&server);
    let diary = Diary::default();
    let pool = connect(&place, diary.options(2, 8)).await;
    while !diary.has("lost, 1 left") {
        write_at(&pool, 0, WriteFlags::empty())
            .await
            .expect("a write");
    }
    assert!(!tells_of_lost_writes(pool.flush().await));
    assert!(server.connections(Command::Flush).contains(&1));
    until(|| pool.connections() == 2).await;
}

#[tokio::test]
async fn a_connection_that_stood_after_the_last_answer_of_a_lost_one_vouches_for_nothing() {
    let old = Server::start(Script {
        mortal: Some(0),
        dies_at: Some(1),
        ..small()
    });
    let place = Place::of(&old);
    let diary = Diary::default();
    // The second connection is to another server, which was not there when the first was written through.
    let options = diary.options(2, 8);
    let mut first_only = options.clone();
    first_only.connections = 1;
    let pool = connect(&place, first_only).await;
    write_at(&pool, 0, WriteFlags::empty())
        .await
        .expect("a write");
    let new = old.successor(small());
    place.lead_to(&new.socket);
    read_at(&pool, 4096)
        .await
        .expect("a read through the new one");
    assert!(tells_of_lost_writes(pool.flush().await));
}

#[tokio::test]
async fn a_flush_that_its_server_dies_of_tells_of_what_it_was_to_save() {
    let old = Server::start(Script {
        // The write is answered, the flush is not.
        silent_from: Some(1),
        ..small()
    });
    let place = Place::of(&old);
    let pool = connect(&place, Diary::default().options(1, 8)).await;
    write_at(&pool, 0, WriteFlags::empty())
        .await
        .expect("a write");
    let dying = async {
        until(|| old.requests(Command::Flush).len() == 1).await;
        replace(&place, &old, small())
    };
    let (flushed, _new) = tokio::join!(pool.flush(), dying);
    assert!(tells_of_lost_writes(flushed));
    pool.flush().await.expect("all is known to be told");
}

#[tokio::test]
async fn a_server_without_flush_promises_nothing_that_could_be_lost() {
    let script = Script {
        flush: false,
        ..small()
    };
    let old = Server::start(script.clone());
    let place = Place::of(&old);
    let pool = connect(&place, Diary::default().options(1, 8)).await;
    write_at(&pool, 0, WriteFlags::empty())
        .await
        .expect("a write");
    let _new = replace(&place, &old, script);
    read_at(&pool, 4096).await.expect("a read");
    pool.flush().await.expect("nothing to flush");
}

#[tokio::test]
async fn a_server_that_stays_away_fails_requests_until_it_is_back() {
    let old = Server::start(small());
    let place = Place::of(&old);
    let diary = Diary::default();
    let pool = connect(&place, diary.options(2, 3)).await;
    place.clear();
    old.kill();
    let error = read_at(&pool, 0).await.expect_err("nobody is there");
    assert!(error.is_transient());
    let text = error.to_string();
    for words in ["place.sock", "in 3 attempts", "read of 4096 bytes"] {
        assert!(text.contains(words), "{text}");
    }
    assert!(diary.has("attempt 2") && diary.has("gave up") && !diary.has("attempt 3"));
    let again = read_at(&pool, 0).await.expect_err("still nobody");
    assert!(again.is_transient());

    let new = old.successor(small());
    place.lead_to(&new.socket);
    read_at(&pool, 0).await.expect("it is back");
    until(|| pool.connections() == 2).await;
}

#[tokio::test]
async fn a_server_of_something_else_is_refused_until_the_right_one_is_back() {
    let old = Server::start(small());
    let place = Place::of(&old);
    let diary = Diary::default();
    let pool = connect(&place, diary.options(2, 8)).await;
    let wrong = Server::start(Script {
        size: 2 << 20,
        ..small()
    });
    place.lead_to(&wrong.socket);
    old.kill();
    for _ in 0..2 {
        let error = read_at(&pool, 0).await.expect_err("not the same");
        assert_eq!(error.kind(), ErrorKind::Incompatible);
        let text = error.to_string();
        assert!(text.contains("1048576 bytes and is 2097152 now"), "{text}");
    }
    assert!(wrong.requests(Command::Read).is_empty());
    let right = old.successor(small());
    place.lead_to(&right.socket);
    read_at(&pool, 0).await.expect("it is back");
}

#[tokio::test]
async fn a_request_that_its_server_dies_of_is_not_repeated_for_ever() {
    let server = Server::start(Script {
        dies_at: Some(0),
        ..small()
    });
    let place = Place::of(&server);
    let pool = connect(&place, Diary::default().options(1, 3)).await;
    let error = read_at(&pool, 0).await.expect_err("it dies each time");
    assert!(error.is_transient());
    assert!((2..=5).contains(&server.requests(Command::Read).len()));
}

#[tokio::test]
async fn a_server_that_is_about_to_end_is_left_for_the_next() {
    let old = Server::start(Script {
        fails: |_| Some(Errno::ESHUTDOWN),
        ..small()
    });
    let place = Place::of(&old);
    let pool = connect(&place, Diary::default().options(1, 8)).await;
    let new = old.successor(small());
    place.lead_to(&new.socket);
    read_at(&pool, 0).await.expect("the next answers");
}

#[tokio::test]
async fn a_server_that_falls_silent_is_left_after_its_time() {
    let old = Server::start(mute());
    let place = Place::of(&old);
    let mut options = ConnectOptions::default();
    options.request_timeout = Some(Duration::from_millis(200));
    let diary = Diary::default();
    let pool = Pool::connect(&place.uri(), &options, diary.options(1, 8))
        .await
        .expect("a pool");
    let new = old.successor(small());
    place.lead_to(&new.socket);
    read_at(&pool, 0).await.expect("the next answers");
    assert!(diary.has("lost, 0 left"));
}

#[tokio::test]
async fn a_read_into_a_pipe_goes_on_in_memory_and_a_write_out_of_one_is_for_its_owner_to_repeat() {
    let old = Server::start(mute());
    let place = Place::of(&old);
    let pool = connect(&place, Diary::default().options(1, 8)).await;
    let pipes = PipePool::new(1 << 16, 2);
    let pipe = pipes.take().expect("a pipe");
    let dying = async {
        until(|| old.requests(Command::Read).len() == 1).await;
        replace(&place, &old, mute())
    };
    let (read, new) = tokio::join!(pool.read_piped(500, 4096, pipe), async {
        let mute = dying.await;
        until(|| mute.requests(Command::Read).len() == 1).await;
        replace(&place, &mute, small())
    });
    match read.expect("a read") {
        Payload::Memory(data) => assert_eq!((data.len(), data[0]), (4096, byte_at(500))),
        Payload::Piped(_) => panic!("the pipe was used up"),
    }
    let newest = new.successor(small());
    let full = || {
        let mut pipe = pipes.take().expect("a pipe");
        pipe.fill_with_zeroes(4096).expect("room");
        pipe
    };
    place.lead_to(&newest.socket);
    let written = pool.write_piped(0, full(), WriteFlags::empty()).await;
    written.expect("the connection stands");
    new.kill();
    newest.kill();
    // The loss may be noticed before the write or in its middle.
    if let Err(error) = pool.write_piped(0, full(), WriteFlags::empty()).await {
        assert!(error.is_transient(), "{error}");
        let again = pool.write_piped(0, full(), WriteFlags::empty()).await;
        again.expect("it is back");
    }
    assert!(tells_of_lost_writes(pool.flush().await));
}

#[tokio::test]
async fn one_connection_to_a_server_without_multi_conn_can_still_be_shared() {
    let server = Server::start(Script {
        multi_conn: false,
        ..small()
    });
    let place = Place::of(&server);
    let pool = Pool::connect(&place.uri(), &ConnectOptions::default(), 4)
        .await
        .expect("a pool");
    assert!(pool.info().can(Capabilities::MULTI_CONN));
    // Nor does it matter whether the next server has it.
    let pool_again = connect(&place, Diary::default().options(1, 8)).await;
    let new = replace(&place, &server, small());
    read_at(&pool_again, 0).await.expect("a read");
    assert_eq!(
        (pool_again.connections(), new.connections(Command::Read)),
        (1, vec![0])
    );
}

#[tokio::test]
async fn whoever_is_about_to_end_waits_for_no_server() {
    let server = Server::start(small());
    let place = Place::of(&server);
    let diary = Diary::default();
    let pool = connect(&place, diary.options(2, 1000)).await;
    place.clear();
    server.kill();
    let ending = async {
        until(|| diary.has("attempt 2")).await;
        pool.stop_waiting();
    };
    let (read, ()) = tokio::join!(read_at(&pool, 0), ending);
    assert!(read.expect_err("nobody is there").is_transient());
    assert!(read_at(&pool, 0).await.is_err());
    pool.disconnect().await;
}

/// Runs `work` on a thread that has a runtime of its own, as each client of a server has.
fn on_a_thread<F: Future<Output = ()>>(
    work: impl FnOnce() -> F + Send + 'static,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(work());
    })
}

#[test]
fn a_pool_serves_threads_with_runtimes_of_their_own_while_servers_come_and_go() {
    let old = Server::start(small());
    let place = Arc::new(Place::of(&old));
    let (send, receive) = mpsc::channel();
    let (over, until_over) = tokio::sync::oneshot::channel::<()>();
    let diary = Diary::default();
    let options = diary.options(3, 8);
    let there = Arc::clone(&place);
    // The pool's own runtime.
    let home = on_a_thread(move || async move {
        let pool = connect(&there, options).await;
        send.send(pool.clone()).expect("it is waited for");
        until_over.await.expect("the end");
        pool.disconnect().await;
    });
    let pool = receive.recv().expect("a pool");
    let workers: Vec<_> = (0..4_usize)
        .map(|worker| {
            let (pool, diary) = (pool.clone(), diary.clone());
            on_a_thread(move || async move {
                let place = worker * 8192;
                let mut rounds = 0;
                // Until both restarts were met, and a little longer.
                while rounds < 50 {
                    let written = write_at(&pool, place as u64, WriteFlags::empty());
                    written.await.expect("a write");
                    read_at(&pool, 65536 + place).await.expect("a read");
                    if rounds % 5 == 0 {
                        let _ = pool.flush().await;
                    }
                    rounds += usize::from(diary.has("the second is gone"));
                }
            })
        })
        .collect();
    thread::sleep(Duration::from_millis(30));
    let second = replace(&place, &old, small());
    while second.requests(Command::Write).is_empty() {
        thread::sleep(Duration::from_millis(1));
    }
    let third = replace(&place, &second, small());
    while third.requests(Command::Write).is_empty() {
        thread::sleep(Duration::from_millis(1));
    }
    let entry = "the second is gone".to_owned();
    diary.0.lock().expect("not poisoned").push(entry);
    for worker in workers {
        worker.join().expect("no panic");
    }
    (0..4).for_each(|worker| assert!(is_written(&third, worker * 8192)));
    over.send(()).expect("it waits");
    home.join().expect("no panic");
    assert_eq!(pool.connections(), 0);
}
