//! Whatever is in a qcow2 image: its bitmaps change, and its version, or that is refused. No panic, and an image in which
//! nothing was wrong has nothing wrong afterwards.
#![no_main]

#[allow(dead_code, reason = "the tests take more of it")]
#[path = "../../crates/format/tests/hostile/images.rs"]
mod images;
#[allow(dead_code, reason = "others look at the image, too")]
#[path = "../shared/look.rs"]
mod look;

use std::sync::Arc;

use blockferry_block::{BlockDevice, MemoryDevice};
use blockferry_format::qcow2::{AmendOptions, BitmapChange, amend, change_bitmap, check};
use libfuzzer_sys::fuzz_target;
use tokio::runtime::Builder;

/// How many bytes there are behind the image: its file cannot grow, so that memory is bounded.
const ROOM: usize = 256 << 10;

fuzz_target!(|data: &[u8]| {
    let Some((&[choice, count], data)) = data.split_first_chunk::<2>() else {
        return;
    };
    let (steps, data) = data.split_at(data.len().min(usize::from(count % 8)));
    let mut bytes = match choice & 1 {
        0 => data.to_vec(),
        _ => look::changed(images::Builder::sound().rich().build(), data),
    };
    bytes.resize(bytes.len() + ROOM, 0);
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        for step in steps {
            let below = Arc::new(MemoryDevice::from_bytes(&bytes));
            let was_clean = is_clean(&below).await;
            let done = change(Arc::clone(&below) as Arc<dyn BlockDevice>, *step).await;
            bytes = below.contents();
            assert!(!(done && was_clean) || is_clean(&below).await);
        }
    });
});

async fn is_clean(below: &Arc<MemoryDevice>) -> bool {
    check(&**below).await.is_ok_and(|report| report.is_clean())
}

async fn change(below: Arc<dyn BlockDevice>, step: u8) -> bool {
    let name = ["one", "b", "c", "d"][usize::from(step >> 6)];
    let other = ["one", "b"][usize::from(step >> 5 & 1)];
    let change = match step & 15 {
        0 | 1 => BitmapChange::Add { granularity: None },
        2 => BitmapChange::Add {
            granularity: Some(512 << (step >> 4 & 7)),
        },
        3 | 4 => BitmapChange::Remove,
        5 => BitmapChange::Clear,
        6 => BitmapChange::Enable,
        7 => BitmapChange::Disable,
        8..=12 => BitmapChange::Merge {
            source: other.to_owned(),
            image: None,
        },
        _ => {
            let mut options = AmendOptions::default();
            options.version = (step & 16 != 0).then_some(2 + u32::from(step & 1));
            options.lazy_refcounts = Some(step & 32 != 0);
            options.data_file_not_raw = step & 64 != 0;
            return told(amend(below, &options).await);
        }
    };
    told(change_bitmap(below, name, &change).await)
}

fn told(result: blockferry_block::Result<()>) -> bool {
    if let Err(error) = &result {
        assert!(!error.to_string().contains(char::is_control), "{error}");
    }
    result.is_ok()
}
