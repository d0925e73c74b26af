//! Whatever a script prints is understood or refused, and what is understood keeps its promises.
#![no_main]

use blockferry_block::ByteRange;
use blockferry_script::{
    ThreadModel,
    answers::{self, Complaint, LONGEST_STRING, MOST_EXPORTS, MOST_EXTENTS, Support},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u32, u32, &[u8])| {
    let (start, length, text) = input;
    let (start, length) = (u64::from(start), u64::from(length).max(1));
    let range = ByteRange::between(start, start + length);
    if let Ok(extents) = answers::extents(text, range) {
        assert!(extents.len() <= MOST_EXTENTS);
        let mut next = range.start();
        for extent in &extents {
            assert_eq!(extent.range.start(), next);
            assert!(!extent.range.is_empty() && range.contains(extent.range));
            assert!(extent.status.0 <= 3);
            next = extent.range.end();
        }
        assert!(next > range.start());
        assert!(
            extents
                .windows(2)
                .all(|pair| pair[0].status != pair[1].status)
        );
    }
    if let Ok(list) = answers::exports(text) {
        assert!(list.len() <= MOST_EXPORTS);
    }
    if let Ok(size) = answers::size(text) {
        assert!(i64::try_from(size).is_ok());
    }
    if let Ok(Some(limits)) = answers::block_size(text, 1 << 26) {
        assert!(limits.minimum.is_power_of_two() && limits.preferred.is_power_of_two());
        assert!(limits.minimum <= limits.preferred && limits.maximum <= 1 << 26);
    }
    let complaint = Complaint::parse(text);
    assert!(!complaint.words.chars().any(char::is_control));
    assert!(complaint.words.len() <= 10 * LONGEST_STRING);
    let _ = (Support::parse(text), ThreadModel::parse(text));
});
