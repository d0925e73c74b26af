//! Images of every kind behind which something else comes: the same disk, also after a cut.

use std::time::Duration;

use blockferry_block::{
    MemoryDevice,
    testing::{Fault, FaultyDevice, ForgetfulDevice, Rule, Survival},
};

use super::*;
use crate::{
    Image as _,
    qcow2::{
        check as check_image,
        testing::ImageBuilder,
        write::tests::{
            Relatives, backed, check_clean, contents, copy, everything, kinds, memory, open_with,
            subclusters, text,
        },
    },
};

fn behind(bytes: Vec<u8>) -> Relatives {
    Relatives {
        backing: Some(Arc::new(MemoryDevice::from_bytes(bytes))),
        data: None,
    }
}

fn onto(relatives: &Relatives) -> Option<Backing> {
    relatives.backing.clone().map(|device| Backing {
        name: b"new".to_vec(),
        format: Some("raw".to_owned()),
        device: Some(device),
    })
}

/// Backing files of several lengths, with something of what `old` has.
fn others(old: &[u8]) -> Vec<Relatives> {
    let mut changed = old.to_vec();
    for (number, piece) in changed.chunks_mut(3000).enumerate() {
        match number % 5 {
            0 => piece.fill(0),
            1 => piece.reverse(),
            _ => {}
        }
    }
    let mut longer = changed.clone();
    longer.resize(old.len() * 2 + 700_000, 7);
    let shorter = changed[..old.len() / 3].to_vec();
    vec![
        Relatives::default(),
        behind(old.to_vec()),
        behind(changed),
        behind(longer),
        behind(shorter),
        behind(Vec::new()),
    ]
}

#[tokio::test]
async fn any_image_shows_the_same_with_any_backing_file() {
    for (what, image, relatives) in kinds() {
        let old = match &relatives.backing {
            Some(backing) => contents(&**backing).await,
            None => text(3, 90_000),
        };
        // Each of them twice, with the data compressed and not.
        let others = others(&old)
            .into_iter()
            .chain(others(&old).into_iter().rev());
        for (number, mut new) in others.enumerate() {
            let what = format!("{what}, to {number}");
            new.data.clone_from(&relatives.data);
            let below = memory(&image);
            let first = open_with(below.clone(), &relatives).await;
            let expected = contents(&first).await;
            drop(first);
            let backing = onto(&new);
            let options = RebaseOptions {
                compress: number % 2 == 1,
                ..RebaseOptions::default()
            };
            let rebased = rebase(below.clone(), &relatives, backing.as_ref(), &options).await;
            rebased.unwrap_or_else(|error| panic!("{what}: {error:?}"));
            check_clean(&below, &what).await;
            let again = open_with(copy(&below), &new).await;
            assert!(contents(&again).await == expected, "{what}");
            let details = again.details();
            let said = details.as_qcow2().and_then(|it| it.backing.clone());
            assert_eq!(said.is_some(), backing.is_some(), "{what}");
        }
    }
}

#[tokio::test]
async fn what_is_the_same_is_not_written() {
    let old = behind(text(5, 150_000));
    let below = memory(&backed(ImageBuilder::new(12, 150_000)));
    let length = below.contents().len();
    let options = RebaseOptions::default();
    let rebased = rebase(below.clone(), &old, onto(&old).as_ref(), &options).await;
    rebased.expect("rebased");
    assert_eq!(below.contents().len(), length);
}

#[tokio::test]
async fn what_both_chains_have_is_not_even_read() {
    let old = behind(text(5, 150_000));
    let slow = FaultyDevice::new(Arc::new(MemoryDevice::from_bytes(text(5, 100_000))));
    slow.add(Rule::on(Operation::Read).fault(Fault::Error(ErrorKind::Io)));
    let new = Relatives {
        backing: Some(Arc::new(slow)),
        data: None,
    };
    let rebased = |common| {
        let (old, new) = (old.clone(), new.clone());
        async move {
            let below = memory(&backed(ImageBuilder::new(12, 150_000)));
            let options = RebaseOptions {
                common,
                ..RebaseOptions::default()
            };
            rebase(below, &old, onto(&new).as_ref(), &options).await
        }
    };
    let (depth, size) = (1, 150_000);
    rebased(Some(Common { depth, size }))
        .await
        .expect("nothing is read");
    for common in [
        None,
        Some(Common { depth: 2, size }),
        Some(Common {
            depth,
            size: 50_000,
        }),
    ] {
        let failed = rebased(common).await.expect_err("it is read");
        assert_eq!(failed.kind(), ErrorKind::Io);
    }
}

#[tokio::test]
async fn a_cut_leaves_the_same_disk_with_the_old_backing_file_or_the_new_one() {
    let old = behind(text(5, 60_000));
    let images = [
        ("512", backed(everything(9, 60))),
        ("subclusters", backed(subclusters(4))),
        ("version 2", {
            let mut image = backed(ImageBuilder::new(10, 50_000));
            image.geometry.version = 2;
            image
        }),
    ];
    for (what, image) in images {
        for (number, new) in others(&text(5, 60_000)).into_iter().enumerate() {
            let below = Arc::new(ForgetfulDevice::new(image.build()));
            let first = open_with(memory(&image), &old).await;
            let expected = contents(&first).await;
            let options = RebaseOptions {
                compress: number % 2 == 0,
                ..RebaseOptions::default()
            };
            let rebased = rebase(below.clone(), &old, onto(&new).as_ref(), &options).await;
            rebased.expect("rebased");
            let step = 1 + below.events() / 60;
            for events in (0..=below.events()).step_by(step) {
                let seed = events as u64;
                let survival = match events / step % 4 {
                    0 => Survival::Everything,
                    1 => Survival::Events(seed),
                    2 => Survival::Nothing,
                    _ => Survival::Sectors(seed),
                };
                let what = format!("{what}, to {number}, cut after {events}");
                let left = MemoryDevice::from_bytes(below.cut(events, survival)).growable();
                let left = Arc::new(left);
                let report = check_image(&*left).await.expect("checked");
                assert!(report.is_consistent(), "{what}: {report:?}");
                let below: Arc<dyn BlockDevice> = left.clone();
                let details = crate::qcow2::Details::read(&below).await.expect("an image");
                let is_old = details.backing.is_some_and(|file| file.name == b"base");
                let shown = if is_old { &old } else { &new };
                let again = open_with(left, shown).await;
                assert!(contents(&again).await == expected, "{what}");
            }
        }
    }
}

#[tokio::test]
async fn a_failure_below_leaves_the_old_backing_file() {
    let old = behind(text(5, 60_000));
    let new = behind(vec![9; 70_000]);
    let image = backed(everything(9, 60));
    let first = open_with(memory(&image), &old).await;
    let expected = contents(&first).await;
    let mut failed = 0;
    for turn in 0..40 {
        for kind in [ErrorKind::Io, ErrorKind::NoSpace] {
            let below = memory(&image);
            let faulty = FaultyDevice::new(below.clone());
            faulty.add(
                Rule::on(Operation::Write)
                    .after(turn)
                    .fault(Fault::Error(kind)),
            );
            let options = RebaseOptions::default();
            let rebased = rebase(Arc::new(faulty), &old, onto(&new).as_ref(), &options).await;
            failed += usize::from(rebased.is_err());
            let below = copy(&below);
            let report = check_image(&*below).await.expect("checked");
            assert!(report.is_consistent(), "{turn}: {report:?}");
            let shown = if rebased.is_err() { &old } else { &new };
            let again = open_with(below, shown).await;
            assert!(contents(&again).await == expected, "{turn}");
        }
    }
    assert!(failed > 10, "{failed}");
}

#[tokio::test(start_paused = true)]
async fn who_is_stopped_leaves_the_old_backing_file() {
    let old = behind(text(5, 60_000));
    let image = backed(everything(9, 60));
    let expected = contents(&open_with(memory(&image), &old).await).await;
    for number in 0..20 {
        let below = memory(&image);
        let slow = FaultyDevice::new(below.clone());
        slow.add(Rule::on(Operation::Write).fault(Fault::Delay(Duration::from_millis(2))));
        let options = RebaseOptions::default();
        let asking = async {
            tokio::time::sleep(Duration::from_millis(number)).await;
            options.stop.ask();
        };
        let rebasing = rebase(Arc::new(slow), &old, None, &options);
        let (rebased, ()) = tokio::join!(rebasing, asking);
        let shown = match rebased {
            Ok(()) => Relatives::default(),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Cancelled);
                old.clone()
            }
        };
        let below = copy(&below);
        check_clean(&below, &format!("stopped after {number}")).await;
        assert!(contents(&open_with(below, &shown).await).await == expected);
    }
}

#[tokio::test]
async fn progress_ends_with_the_size() {
    let told = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut options = RebaseOptions::default();
    let noted = Arc::clone(&told);
    options.progress = Some(Arc::new(move |done| noted.lock().expect("mine").push(done)));
    let below = memory(&backed(ImageBuilder::new(9, 100 << 20)));
    let old = behind(text(1, 3 << 20));
    let rebased = rebase(below, &old, None, &options).await;
    rebased.expect("rebased");
    let told = told.lock().expect("mine");
    assert!(told.is_sorted(), "{told:?}");
    assert!(
        told.contains(&(3 << 20)) && told.contains(&(64 << 20)),
        "{told:?}"
    );
    assert_eq!(told.last(), Some(&(100 << 20)));
}
