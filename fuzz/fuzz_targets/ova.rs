//! Whatever an archive begins with, and whatever a descriptor says: names of disks come of it, or a refusal of one line.
#![no_main]

use blockferry_format::ova::{descriptor_name, disks};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Some(name) = descriptor_name(data) {
        assert!(name.len() >= 4 && name.len() <= 100 && !name.contains(&0));
    }
    match disks(data) {
        Ok(disks) => {
            for (at, disk) in disks.iter().enumerate() {
                assert!(!disks[..at].contains(disk));
                assert_ne!(disk.compression.as_deref(), Some("identity"));
            }
        }
        Err(error) => {
            let text = error.to_string();
            assert!(!text.contains(char::is_control), "{text}");
        }
    }
});
