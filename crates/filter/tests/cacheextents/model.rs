//! Anything at once, on several connections to several exports, against what is true.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use blockferry_block::{BlockDevice, Buffer, ByteRange, WriteFlags, ZeroFlags};
use blockferry_filter::CacheExtents;
use tokio::runtime::{Builder, Handle};

use crate::source::{Cached, Disk, Mood, UNIT, contexts, next_random};

const SIZE: u64 = 64 * UNIT + 100;

/// A client with a handle, that does one thing after the other.
struct Client {
    disk: Arc<Disk>,
    handle: Arc<dyn BlockDevice>,
    random: u64,
    /// Whether it gives up changes, too.
    drops: bool,
}

/// Two disks, some of which lose changes.
fn disks(seed: u64, runtime: Option<&Handle>) -> [Arc<Disk>; 2] {
    [seed, seed + 1000].map(|seed| {
        let mood = Mood {
            seed: Some(Mutex::new(seed)),
            loses: loses(seed),
            runtime: runtime.cloned(),
        };
        Disk::moody(SIZE, mood)
    })
}

fn loses(seed: u64) -> bool {
    seed.is_multiple_of(3)
}

impl Client {
    fn below(&mut self, bound: u64) -> u64 {
        next_random(&mut self.random) % bound
    }

    /// A range that begins and ends anywhere.
    fn range(&mut self) -> ByteRange {
        let start = self.below(SIZE);
        let longest = match self.below(3) {
            0 => UNIT / 2,
            1 => 4 * UNIT,
            _ => SIZE,
        };
        ByteRange::between(start, (start + 1 + self.below(longest)).min(SIZE))
    }

    /// Does something, or a part of it. Gives whether it was asked and answered.
    async fn step(&mut self) -> Result<bool, String> {
        let kind = self.below(16);
        // Whoever changes something is more patient.
        let is_tired = match kind {
            0..3 => self.drops && self.below(16) == 0,
            _ => self.below(4) == 0,
        };
        let patience = if is_tired { self.below(30) } else { u64::MAX };
        let tired = async {
            for _ in 0..patience {
                tokio::task::yield_now().await;
            }
        };
        let range = self.range();
        let context = self.below(2) as usize;
        let work = async {
            match kind {
                0 => {
                    let data = Buffer::zeroed(range.len() as usize);
                    let written = self.handle.write(range.start(), data, WriteFlags::empty());
                    let _ = written.await;
                }
                1 => drop(self.handle.zero(range, ZeroFlags::empty()).await),
                2 => drop(self.handle.trim(range, WriteFlags::empty()).await),
                3 => drop(self.handle.read(range.start(), Buffer::zeroed(1)).await),
                _ => return self.ask(range, context).await,
            }
            Ok(false)
        };
        tokio::select! {
            biased;
            done = work => done,
            () = tired => Ok(false),
        }
    }

    async fn ask(&self, range: ByteRange, context: usize) -> Result<bool, String> {
        let ages = self.disk.ages(context);
        let answer = self.handle.extents(range, &contexts()[context]).await;
        let Ok(answer) = answer else {
            return Ok(false);
        };
        self.disk.check(range, context, &answer, &ages)?;
        Ok(true)
    }
}

/// A small cache is as right as a large one.
fn filters() -> [CacheExtents; 4] {
    let default = CacheExtents::default();
    let window = |window| CacheExtents {
        window,
        ..default.clone()
    };
    [
        default.clone(),
        window(8 * UNIT),
        window(UNIT / 2),
        CacheExtents {
            entries: 20,
            ..window(20 * UNIT)
        },
    ]
}

#[test]
fn nothing_stale_is_ever_told_however_requests_interleave() {
    for seed in 0..24_u64 {
        let filter = &filters()[seed as usize % 4];
        let runtime = Builder::new_current_thread().enable_time().build();
        let answered = runtime.expect("a runtime").block_on(async {
            let disks = disks(seed, None);
            let cached = Cached::new(filter, &[&disks[0], &disks[1]]);
            let mut clients = Vec::new();
            for number in 0..10 {
                let export = number % 2;
                let name = ["a", "b"][export];
                let mut client = Client {
                    disk: Arc::clone(&disks[export]),
                    handle: cached.open(name).await,
                    random: seed * 100 + number as u64,
                    drops: loses(seed),
                };
                clients.push(tokio::spawn(async move {
                    let mut answered = 0;
                    for step in 0..300 {
                        match client.step().await {
                            Ok(told) => answered += u64::from(told),
                            Err(wrong) => {
                                panic!("seed {seed}, client {number}, step {step}: {wrong}")
                            }
                        }
                    }
                    answered
                }));
            }
            let mut answered = 0;
            for client in clients {
                answered += client.await.expect("nothing stale");
            }
            let hits = cached.count("a", "hits") + cached.count("b", "hits");
            assert!(
                hits > answered / 50 || loses(seed),
                "{hits} of {answered} were remembered"
            );
            answered
        });
        assert!(answered > 500, "{answered}");
    }
}

#[test]
fn nothing_stale_is_ever_told_on_threads_whose_runtimes_end() {
    let background = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_time()
        .build();
    let background = background.expect("a runtime");
    for seed in 0..4_u64 {
        let filter = filters()[seed as usize % 4].clone();
        let disks = disks(seed, Some(background.handle()));
        let cached = background.block_on(async { Cached::new(&filter, &[&disks[0], &disks[1]]) });
        let (answered, wrong) = (AtomicU64::new(0), Mutex::new(None));
        thread::scope(|scope| {
            for number in 0..4_u64 {
                let (cached, disks, answered, wrong) = (&cached, &disks, &answered, &wrong);
                scope.spawn(move || {
                    for connection in 0..12 {
                        let runtime = Builder::new_current_thread().enable_time().build();
                        let runtime = runtime.expect("a runtime");
                        let life = async {
                            let export = (number % 2) as usize;
                            let mut others = Vec::new();
                            for other in 0..3 {
                                let mut client = Client {
                                    disk: Arc::clone(&disks[export]),
                                    handle: cached.open(["a", "b"][export]).await,
                                    random: ((seed * 10 + number) * 100 + connection) * 10 + other,
                                    drops: loses(seed),
                                };
                                others.push(tokio::spawn(async move {
                                    let mut answered = 0;
                                    for _ in 0..40 {
                                        answered += u64::from(client.step().await?);
                                    }
                                    Ok::<_, String>(answered)
                                }));
                            }
                            // The others are in the middle of something when the first is done.
                            let first = others.swap_remove(connection as usize % 3);
                            first.await.expect("no panic")
                        };
                        match runtime.block_on(life) {
                            Ok(count) => drop(answered.fetch_add(count, Ordering::Relaxed)),
                            Err(message) => *wrong.lock().expect("not poisoned") = Some(message),
                        }
                    }
                });
            }
        });
        assert_eq!(
            wrong.into_inner().expect("not poisoned"),
            None,
            "seed {seed}"
        );
        assert!(answered.load(Ordering::Relaxed) > 200, "{answered:?}");
    }
}
