//! Images of every kind that give up what they have: what is behind them shows, also after a cut.

use blockferry_block::{
    MemoryDevice,
    testing::{ForgetfulDevice, Survival},
};

use super::*;
use crate::{
    Image as _,
    qcow2::{
        check as check_image,
        write::tests::{
            Relatives, backed, check_clean, contents, copy, everything, kinds, memory, open_with,
            subclusters,
        },
    },
};

fn behind(bytes: &[u8]) -> Relatives {
    Relatives {
        backing: Some(Arc::new(MemoryDevice::from_bytes(bytes))),
        data: None,
    }
}

#[tokio::test]
async fn any_image_shows_what_is_behind_it_and_gives_its_space_back() {
    for (what, image, relatives) in kinds() {
        let below = memory(&image);
        let before = below.contents().len();
        let emptied = empty(below.clone(), &relatives).await;
        emptied.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        check_clean(&below, &what).await;
        let below = copy(&below);
        let report = check_image(&*below).await.expect("checked");
        assert_eq!(report.allocated_clusters, 0, "{what}");
        assert!(below.contents().len() <= before, "{what}");
        let again = open_with(below.clone(), &relatives).await;
        let found = contents(&again).await;
        let mut expected = match &relatives.backing {
            Some(backing) => contents(&**backing).await,
            None => Vec::new(),
        };
        expected.resize(found.len(), 0);
        assert!(found == expected, "{what}");
        again.close().await.expect("closed");
    }
}

#[tokio::test]
async fn a_cut_leaves_the_disk_what_it_was_where_it_is_behind_it_already() {
    for (what, image) in [
        ("512", backed(everything(9, 200))),
        ("subclusters", backed(subclusters(6))),
    ] {
        let first = open_with(memory(&image), &behind(&[])).await;
        let disk = contents(&first).await;
        let relatives = behind(&disk);
        let below = Arc::new(ForgetfulDevice::new(image.build()));
        empty(below.clone(), &relatives).await.expect("emptied");
        for events in 0..=below.events() {
            let seed = events as u64;
            let survival = match events % 4 {
                0 => Survival::Everything,
                1 => Survival::Events(seed),
                2 => Survival::Nothing,
                _ => Survival::Sectors(seed),
            };
            let what = format!("{what}, cut after {events}");
            let left = MemoryDevice::from_bytes(below.cut(events, survival)).growable();
            let left = Arc::new(left);
            let report = check_image(&*left).await.expect("checked");
            assert!(report.is_consistent(), "{what}: {report:?}");
            let again = open_with(left.clone(), &relatives).await;
            assert!(contents(&again).await == disk, "{what}");
            drop(again);
            // It is done again, to its end.
            let left = copy(&left);
            empty(left.clone(), &relatives).await.expect("emptied");
            let report = check_image(&*left).await.expect("checked");
            assert_eq!(report.allocated_clusters, 0, "{what}");
        }
    }
}
