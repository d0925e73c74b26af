//! Many requests at once, from several threads whose runtimes come and go.

use std::thread;

use blockferry_block::ZeroFlags;
use tokio::runtime::Builder;

use super::*;

const THREADS: u64 = 4;

/// The parts of the disk that belong to a thread: every fourth stripe, on no cluster's boundary.
fn stripe(thread: u64, number: u64) -> ByteRange {
    let start = (number * THREADS + thread) * 1500;
    ByteRange::between(start, start + 1500)
}

#[test]
fn threads_that_write_beside_each_other_do_not_meet() {
    let kinds = [
        ("512", ImageBuilder::new(9, 1 << 20)),
        ("4k", everything(12, 200)),
        ("64k", everything(16, 16)),
        ("subclusters", subclusters(50)),
    ];
    for (what, image) in kinds {
        let below = memory(&image);
        let runtime = || {
            Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime")
        };
        let image = Arc::new(runtime().block_on(open(below.clone())));
        let stripes = image.info().size / 1500 / THREADS;
        let threads = (0..THREADS).map(|own| {
            let image = Arc::clone(&image);
            thread::spawn(move || {
                // Each round has a runtime of its own, which ends with requests under way.
                for round in 0..4_u64 {
                    let runtime = runtime();
                    runtime.block_on(async {
                        let writes = (0..stripes).map(|number| {
                            let image = Arc::clone(&image);
                            async move {
                                let range = stripe(own, number);
                                let turn = (number + round) % 7;
                                if turn == 0 {
                                    return image.zero(range, ZeroFlags::empty()).await;
                                }
                                if turn == 1 && round == 0 {
                                    image.trim(range, WriteFlags::empty()).await?;
                                }
                                let byte = (own * 50 + number + round) as u8;
                                let data = Buffer::from(&[byte; 1500][..]);
                                let flags = match number % 31 {
                                    0 => WriteFlags::FUA,
                                    _ => WriteFlags::empty(),
                                };
                                image.write(range.start(), data, flags).await?;
                                if number % 17 == own {
                                    image.flush().await?;
                                }
                                Ok(())
                            }
                        });
                        let all = futures_util::future::join_all(writes).await;
                        assert!(all.iter().all(Result::is_ok), "{all:?}");
                    });
                    let left = Arc::clone(&image);
                    runtime.spawn(async move { left.flush().await });
                    runtime.block_on(tokio::task::yield_now());
                }
            })
        });
        for thread in threads.collect::<Vec<_>>() {
            thread.join().expect("no panic");
        }
        runtime().block_on(async {
            let bytes = contents(&*image).await;
            for own in 0..THREADS {
                for number in 0..stripes {
                    let expected = match (number + 3) % 7 {
                        0 => 0,
                        _ => (own * 50 + number + 3) as u8,
                    };
                    let range = stripe(own, number);
                    let found = &bytes[range.start() as usize..range.end() as usize];
                    let is_right = found.iter().all(|byte| *byte == expected);
                    assert!(is_right, "{what}: stripe {number} of thread {own}");
                }
            }
            image.close().await.expect("closed");
            check_clean(&below, what).await;
            let again = Image::open(copy(&below), &NoRelatives, &OpenOptions::default()).await;
            assert!(contents(&again.expect("it opens")).await == bytes, "{what}");
        });
    }
}
