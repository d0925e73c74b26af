//! What scripts print, against slow and simple readings of it.

use blockferry_block::{BlockLimits, ByteRange, ErrorKind, Extent, Status};
use blockferry_script::{
    ThreadModel,
    answers::{self, Complaint, Support},
};
use proptest::{collection::vec, prelude::*};

/// Each byte of a disk of this size is looked at by itself.
const SIZE: u64 = 64;

/// What the lines say of each byte of the disk, or nothing where they break the rules.
fn byte_by_byte(lines: &[(u64, u64, Option<u32>)], start: u64) -> Option<Vec<Option<u64>>> {
    let mut bytes = vec![None; SIZE as usize];
    let mut next = None;
    let mut has_begun = false;
    for (offset, length, kind) in lines {
        if next.is_some_and(|next| next != *offset) {
            return None;
        }
        next = Some(offset + length);
        let reaches = offset + length > start;
        if *length > 0 && !has_begun && *offset > start {
            return None;
        }
        has_begun |= *length > 0 && reaches;
        for byte in *offset..(offset + length).min(SIZE) {
            bytes[byte as usize] = Some(u64::from(kind.unwrap_or(0)) & 3);
        }
    }
    Some(bytes)
}

fn flatten(extents: &[Extent]) -> Vec<(u64, u64)> {
    let bytes = |extent: &Extent| {
        let status = extent.status.0;
        (extent.range.start()..extent.range.end()).map(move |byte| (byte, status))
    };
    extents.iter().flat_map(bytes).collect()
}

/// Lines of which most go on where the last one ended.
fn extent_lines() -> impl Strategy<Value = Vec<(u64, u64, Option<u32>)>> {
    let line = (0..20_u64, prop::option::of(0..8_u32), 0..20_u8);
    (0..16_u64, vec(line, 0..8)).prop_map(|(first, lines)| {
        let mut next = first;
        let mut all = Vec::new();
        for (length, kind, gap) in lines {
            let offset = if gap == 0 { next + 1 } else { next };
            next = offset + length;
            all.push((offset, length, kind));
        }
        all
    })
}

proptest! {
    #[test]
    fn extents_say_of_each_byte_what_their_lines_do(
        lines in extent_lines(),
        start in 0..SIZE,
        length in 1..SIZE,
        words in any::<bool>(),
    ) {
        let range = ByteRange::between(start, (start + length).min(SIZE));
        let mut text = String::from("# comment\n\n");
        for (offset, length, kind) in &lines {
            let kind = match kind {
                None => String::new(),
                Some(kind) if words => {
                    [(1, "hole"), (2, "zero")]
                        .into_iter()
                        .filter(|(bit, _)| kind & bit != 0)
                        .map(|(_, word)| word)
                        .chain(["x"])
                        .collect::<Vec<_>>()
                        .join(",")
                }
                Some(kind) => kind.to_string(),
            };
            text.push_str(&format!("{offset} \t{length} {kind}\n"));
        }
        let expected = byte_by_byte(&lines, start);
        match answers::extents(text.as_bytes(), range) {
            Ok(extents) => {
                let expected = expected.expect("lines that keep the rules");
                let known: Vec<_> = (range.start()..range.end())
                    .map_while(|byte| expected[byte as usize].map(|status| (byte, status)))
                    .collect();
                prop_assert!(!known.is_empty());
                prop_assert_eq!(flatten(&extents), known);
                // Equal neighbours are one.
                prop_assert!(extents.windows(2).all(|pair| pair[0].status != pair[1].status));
            }
            Err(_) => {
                let first = expected.and_then(|bytes| bytes[range.start() as usize]);
                prop_assert_eq!(first, None);
            }
        }
    }

    #[test]
    fn nothing_that_is_printed_does_harm(text in vec(any::<u8>(), 0..200)) {
        let range = ByteRange::between(10, 20);
        if let Ok(extents) = answers::extents(&text, range) {
            prop_assert_eq!(extents[0].range.start(), 10);
        }
        let complaint = Complaint::parse(&text);
        prop_assert!(!complaint.words.chars().any(char::is_control));
        if let Ok(size) = answers::size(&text) {
            prop_assert!(i64::try_from(size).is_ok());
        }
        if let Ok(list) = answers::exports(&text) {
            prop_assert!(list.len() <= text.len());
        }
        if let Ok(Some(limits)) = answers::block_size(&text, 1 << 20) {
            prop_assert!(limits.minimum <= limits.preferred);
        }
        let _ = (Support::parse(&text), ThreadModel::parse(&text));
    }

    #[test]
    fn sizes_are_numbers_and_a_power_of_1024(number in 0..9_u64, power in 0..7_usize, lower in any::<bool>()) {
        let suffix = ["", "K", "M", "G", "T", "P", "E"][power];
        let suffix = if lower { suffix.to_lowercase() } else { suffix.to_owned() };
        let expected = number.checked_mul(1 << (10 * power)).filter(|it| i64::try_from(*it).is_ok());
        let found = answers::size(format!(" {number}{suffix}\n").as_bytes());
        prop_assert_eq!(found.ok(), expected);
    }

    #[test]
    fn lists_are_their_lines(names in vec("[a-z ]{1,8}", 0..6), descriptions in vec("[a-z ]{1,8}", 6)) {
        let pairs = || names.iter().zip(&descriptions);
        let interleaved: Vec<_> = pairs().flat_map(|(name, text)| [name.clone(), text.clone()]).collect();
        let apart: Vec<_> = pairs()
            .map(|(name, _)| name.clone())
            .chain(pairs().map(|(_, text)| text.clone()))
            .collect();
        for (form, lines, described) in [
            ("NAMES", names.clone(), false),
            ("INTERLEAVED", interleaved, true),
            ("NAMES+DESCRIPTIONS", apart, true),
        ] {
            let text = [&[form.to_owned()], &lines[..]].concat().join("\n") + "\n";
            let list = answers::exports(text.as_bytes()).expect("a list");
            let found: Vec<_> = list
                .iter()
                .map(|entry| (entry.name.clone(), entry.description.clone()))
                .collect();
            let expected: Vec<_> = pairs()
                .map(|(name, text)| (name.clone(), described.then(|| text.clone())))
                .collect();
            prop_assert_eq!(&found, &expected, "{}", form);
        }
    }
}

#[test]
fn a_list_is_no_longer_than_its_bound() {
    let lines = |count: usize| "x\n".repeat(count);
    assert_eq!(
        answers::exports(lines(answers::MOST_EXPORTS).as_bytes()).map(|list| list.len()),
        Ok(answers::MOST_EXPORTS)
    );
    for count in [answers::MOST_EXPORTS + 1, 5 * answers::MOST_EXPORTS] {
        answers::exports(lines(count).as_bytes()).expect_err("too many");
    }
    answers::exports(&[b'x'; 4097]).expect_err("too long");
}

#[test]
fn extents_are_no_more_than_their_bound() {
    use std::fmt::Write as _;
    let mut text = String::new();
    let count = answers::MOST_EXTENTS as u64 + 10;
    for offset in 0..count {
        writeln!(text, "{offset} 1 {}", offset % 2).expect("room");
    }
    let extents = answers::extents(text.as_bytes(), ByteRange::between(0, count));
    assert_eq!(extents.expect("extents").len(), answers::MOST_EXTENTS);
}

#[test]
fn the_third_word_of_an_extent_is_a_number_or_has_words_in_it() {
    let range = ByteRange::between(0, 10);
    for (word, expected) in [
        ("", Some(Status::DATA)),
        ("0", Some(Status::DATA)),
        ("3", Some(Status::HOLE_ZERO)),
        ("7", Some(Status::HOLE_ZERO)),
        ("1,zero", Some(Status::HOLE)),
        ("zero,hole", Some(Status::HOLE_ZERO)),
        ("unzeroed", Some(Status::ZERO)),
        ("data", Some(Status::DATA)),
        ("4294967295", Some(Status::HOLE_ZERO)),
        ("4294967296", None),
    ] {
        let found = answers::extents(format!("0 10 {word}").as_bytes(), range);
        assert_eq!(found.ok().map(|list| list[0].status), expected, "{word}");
    }
    for wrong in [
        "x 10",
        "0 x",
        "0 9223372036854775807\n9223372036854775807 1",
        "-1 10",
    ] {
        answers::extents(wrong.as_bytes(), range).expect_err(wrong);
    }
}

#[test]
fn block_sizes_that_make_no_sense_are_refused() {
    let limits = |minimum, preferred, maximum| {
        Some(BlockLimits {
            minimum,
            preferred,
            maximum,
        })
    };
    let parse = |text: &str| answers::block_size(text.as_bytes(), 64 << 20);
    assert_eq!(parse("1 512 512"), Ok(limits(1, 512, 512)));
    assert_eq!(parse("64K 64K 1G"), Ok(limits(65536, 65536, 64 << 20)));
    assert_eq!(
        parse("4K 32M 4294967295"),
        Ok(limits(4096, 32 << 20, 64 << 20))
    );
    assert_eq!(parse("0 0 0"), Ok(None));
    for wrong in [
        "",
        "512 512",
        "0 4096 8192",
        "3 4096 8192",
        "128K 128K 1M",
        "1 256 512",
        "1 3000 8192",
        "1 64M 64M",
        "8192 4096 8192",
        "1 4096 2048",
        "4096 4096 6000",
        "1 4096 4294967296",
        "1 4096 x",
    ] {
        parse(wrong).expect_err(wrong);
    }
}

#[test]
fn a_complaint_is_the_name_of_an_error_and_a_line() {
    for (text, kind, words) in [
        ("ENOSPC full", ErrorKind::NoSpace, "full"),
        ("enospc\tvery  full\nmore", ErrorKind::NoSpace, "very  full"),
        ("ENOSPC", ErrorKind::NoSpace, ""),
        ("ENOSPC\nfull", ErrorKind::NoSpace, "full"),
        ("ENOSPC: full", ErrorKind::Io, "ENOSPC: full"),
        ("ENOSPCX full", ErrorKind::Io, "ENOSPCX full"),
        ("full\nENOSPC", ErrorKind::Io, "full"),
        ("\n\n EPERM  no \r\n", ErrorKind::NotPermitted, "no"),
        ("", ErrorKind::Io, ""),
        ("EIO \x1b[31mred\x07", ErrorKind::Io, "\\u{1b}[31mred\\u{7}"),
    ] {
        let words = words.to_owned();
        assert_eq!(Complaint::parse(text.as_bytes()), Complaint { kind, words });
    }
}
