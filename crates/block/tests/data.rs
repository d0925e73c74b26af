//! Disks that a text describes: what comes of it, and what is too much.

use std::fs;

use blockferry_block::{
    BlockDevice, Buffer, DataContents, DataOptions, ErrorKind, MemoryDevice, Result, WriteFlags,
    decode_base64, testing::check_device,
};
use proptest::prelude::*;

fn options(text: impl AsRef<[u8]>) -> DataOptions {
    DataOptions {
        contents: DataContents::Expression(text.as_ref().to_vec()),
        size: None,
        variables: Vec::new(),
    }
}

fn bytes(text: &str) -> Vec<u8> {
    let opened = options(text).open();
    opened
        .unwrap_or_else(|error| panic!("{text}: {error}"))
        .contents()
}

fn message(opened: Result<MemoryDevice>) -> String {
    let error = opened.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    error.to_string()
}

#[test]
fn fields_put_bytes_and_move_the_offset() {
    for (text, expected) in [
        ("", &b""[..]),
        ("0 1 2 0xff 010", &[0, 1, 2, 255, 8]),
        ("1 @4 2 @+1 3 @-2 4 @^8", &[1, 0, 0, 0, 2, 4, 3, 0]),
        ("@10 @2 1", &[0, 0, 1, 0, 0, 0, 0, 0, 0, 0]),
        ("be16:0x102 le16:0x102 be32:1", &[1, 2, 2, 1, 0, 0, 0, 1]),
        ("\"a\\n\\x41\\\"\\\\\"", b"a\nA\"\\"),
        ("1 # 2\n3", &[1, 3]),
        // What is in parentheses covers what was there, its zeroes too.
        ("1 2 3 @0 (@2)", &[0, 0, 3]),
        ("1 2 3 4 5 @1 (9 9) @4 7", &[1, 9, 9, 4, 7]),
        ("(1 2)*2*2", &[1, 2, 1, 2, 1, 2, 1, 2]),
        ("\"abcdef\"[1:3]*2", b"bcbc"),
        ("(1*100)[10:12] 5*0 (2 3)[1:]", &[1, 1, 3]),
        ("1 -> \\a (\\a 2 -> \\a \\a) \\a", &[1, 2, 1]),
        ("<(printf 'a(b)')[1:]", b"(b)"),
    ] {
        assert_eq!(bytes(text), expected, "{text}");
    }
}

#[test]
fn the_size_cuts_and_extends() {
    let sized = |text, size| {
        let mut options = options(text);
        options.size = Some(size);
        options.open().expect("a disk").contents()
    };
    assert_eq!(sized("1 2 3", 2), [1, 2]);
    assert_eq!(sized("1", 3), [1, 0, 0]);
    assert_eq!(sized("1", 0), []);
    // Never laid out before it is cut.
    assert_eq!(sized("1*1000000000000", 3), [1, 1, 1]);
    assert_eq!(sized("(1 @^0x100000000)*0x10000", 1), [1]);
}

#[test]
fn variables_are_fields_of_their_own_scope() {
    let mut options = options("$x*2 1 -> \\a $y");
    options.variables = vec![
        ("x".to_owned(), b"7 8 -> \\b".to_vec()),
        ("y".to_owned(), b"\\a \\a".to_vec()),
    ];
    let bytes = options.open().expect("a disk").contents();
    assert_eq!(bytes, [7, 7, 1, 1]);
    options.variables[1].1 = b"\\b".to_vec();
    assert!(message(options.open()).contains("\\b is not defined"));
    options.variables[1].1 = b"1 )".to_vec();
    assert!(message(options.open()).contains("in $y: at byte 2"));
}

#[test]
fn files_are_read_as_far_as_they_are_wanted() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), "contents").expect("written");
    let path = file.path().display();
    assert_eq!(
        bytes(&format!("<{path} 1 <{path}[:3]*2")),
        b"contents\x01concon"
    );
    assert_eq!(bytes("</dev/zero[2:5] 1"), [0, 0, 0, 1]);
    assert_eq!(bytes("<(yes)[1:4]"), b"\ny\n");
    assert_eq!(bytes("<(printf 123)[:2]"), b"12");
    for (text, part) in [
        ("</nonexistent/file", "/nonexistent/file: No such file"),
        ("<(exit 3)", "exit 3: the script failed: exit status: 3"),
        ("<(printf 12; exit 1)[:9]", "the script failed"),
        ("<(printf 12)[:9]", "[0:9] is not a part of 2 bytes"),
        ("<(printf 'a\\033[2J'; exit 1)\x1b", "not a field"),
    ] {
        let message = message(options(text).open());
        assert!(message.contains(part), "{text}: {message}");
    }
}

#[test]
fn nothing_outside_is_reached_where_that_is_not_allowed() {
    for text in ["</etc/passwd", "<(echo)", "$PATH", "(1 </dev/zero[:1])*2"] {
        let opened = options(text).open_inside();
        assert!(opened.is_err(), "{text}");
    }
    assert_eq!(
        options("1 2").open_inside().expect("a disk").contents(),
        [1, 2]
    );
}

#[test]
fn what_is_too_much_is_refused_before_it_is_made() {
    let doubled = (0..200).fold("1 -> \\a ".to_owned(), |text, _| text + "(\\a \\a) -> \\a ");
    let tower = (0..300).fold("1 2".to_owned(), |text, _| format!("({text})[0:2]"));
    let chain = (0..300).fold("(1 2) -> \\a ".to_owned(), |text, _| {
        text + "(\\a @100000000) -> \\a (\\a[:2] 3) -> \\a "
    });
    for (text, part) in [
        ("1*9223372036854775807", "of memory"),
        ("1*9223372036854775808", "larger than an image"),
        ("(1*0x7fffffffffffffff)*2", "larger than an image"),
        ("@0x7fffffffffffffff 1", "larger than an image"),
        ("@0x8000000000000000", "larger than an image"),
        ("@0xffffffffffffffff @+1", "larger than an image"),
        ("1 @^0x8000000000000000", "larger than an image"),
        ("(1 @^100000)", "power of two"),
        (&format!("{doubled} \\a"), "larger than an image"),
        (&tower, "nested too deeply"),
        (&format!("{chain} \\a"), "nested too deeply"),
        ("@-1", "would leave"),
        ("\"abc\"[2:1]", "[2:1] is not a part of 3 bytes"),
        ("\"abc\"[:4]", "[0:4] is not a part"),
        ("\\a", "\\a is not defined"),
        ("$surely_not_defined_anywhere", "is not defined"),
    ] {
        let message = message(options(text).open());
        assert!(message.contains(part), "{text}: {message}");
    }
    let mut options = options("$a");
    let twice = |name: &str| format!("${name} ${name}").into_bytes();
    options.variables = ('a'..='y')
        .zip('b'..='z')
        .map(|(one, next)| (one.to_string(), twice(&next.to_string())))
        .collect();
    options.variables.push(("z".to_owned(), b"1".to_vec()));
    assert!(message(options.open()).contains("too many parts"));
    options.variables = vec![("a".to_owned(), b"$a".to_vec())];
    assert!(message(options.open()).contains("nested too deeply"));
}

#[tokio::test]
async fn only_data_takes_memory_and_it_can_be_written() {
    let device = options("1 @0x100000000000 2*65536 @^0x100000")
        .open()
        .expect("a disk");
    assert_eq!(device.info().size, (1 << 44) + (1 << 20));
    assert_eq!(device.allocated(), 3 * (32 << 10));
    let write = device.write(5, Buffer::from(&[9][..]), WriteFlags::empty());
    write.await.expect("written");
    let read = device.read(0, Buffer::zeroed(6)).await.expect("read");
    assert_eq!(read[..], [1, 0, 0, 0, 0, 9]);
    let device = options("(1 2 3 @^512)*500 7").open().expect("a disk");
    check_device(&device, 1, 200).await;
}

#[test]
fn base64_is_read_with_and_without_padding() {
    for text in ["MTI=", "MTI", " MT\nI= "] {
        assert_eq!(decode_base64(text.as_bytes()).expect("base64"), b"12");
    }
    assert!(decode_base64(b"M").is_err());
    assert!(decode_base64(b"M!I=").is_err());
}

/// A text, and the bytes that it must be, made beside it in the plainest way.
fn texts() -> impl Strategy<Value = (String, Vec<u8>)> {
    let byte = any::<u8>().prop_map(|byte| (format!("{byte:#x}"), vec![byte]));
    let hole = (0..200_usize).prop_map(|length| (format!("(@{length})"), vec![0; length]));
    let string = "[a-z]{0,20}".prop_map(|text| (format!("{text:?}"), text.into_bytes()));
    let leaf = prop_oneof![byte, hole, string];
    leaf.prop_recursive(5, 40, 6, |inner| {
        let item = (inner.clone(), 0..4_usize, 0..100_usize, any::<(u8, u8)>());
        prop_oneof![
            (inner.clone(), 0..2000_usize).prop_map(|((text, bytes), count)| {
                let count = count.min(200_000 / bytes.len().max(1));
                (format!("({text})*{count}"), bytes.repeat(count))
            }),
            (inner, any::<(u16, u16)>()).prop_map(|((text, bytes), (one, other))| {
                let cut = |at: u16| usize::from(at) % (bytes.len() + 1);
                let (start, end) = (cut(one).min(cut(other)), cut(one).max(cut(other)));
                (
                    format!("({text})[{start}:{end}]"),
                    bytes[start..end].to_vec(),
                )
            }),
            proptest::collection::vec(item, 0..6).prop_map(|items| {
                let (mut text, mut bytes) = ("(".to_owned(), Vec::new());
                let mut offset = 0;
                for ((part, part_bytes), how, by, _) in items {
                    offset = match how {
                        0 => offset,
                        1 => offset + by,
                        2 => offset - by.min(offset),
                        _ => by,
                    };
                    if how > 0 {
                        text += &format!("@{offset} ");
                    }
                    let end = offset + part_bytes.len();
                    bytes.resize(bytes.len().max(end), 0);
                    bytes[offset..end].copy_from_slice(&part_bytes);
                    text += &format!("{part} ");
                    offset = end;
                }
                (text + ")", bytes)
            }),
        ]
    })
}

proptest! {
    #[test]
    fn every_text_is_the_bytes_that_the_plainest_way_makes((text, expected) in texts()) {
        prop_assert_eq!(bytes(&text), expected, "{}", text);
    }

    #[test]
    fn no_text_does_more_than_fail(text in "[0-9x@+^*()\\[\\]:\\\\a\"$ -]{0,60}") {
        let _ = options(text).open_inside();
    }
}
