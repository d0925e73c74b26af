//! What a script says of its exports and of the device behind a handle.

use std::sync::Arc;

use blockferry_block::{
    BlockLimits, Capabilities, ClientFacts, Context, DeviceInfo, ErrorKind, Exports as _,
};

use crate::support::{Room, eval, open};

/// The capabilities of a device that answers by `cases`.
async fn info(cases: &str) -> DeviceInfo {
    let room = Room::cases(cases);
    let (_script, export) = room.open().await;
    export.device.info().clone()
}

#[tokio::test]
async fn a_script_that_knows_two_methods_is_a_disk_to_be_read() {
    let info = info("").await;
    assert_eq!(info.size, 1 << 20);
    assert_eq!(info.capabilities, Capabilities::empty());
    assert_eq!(info.contexts, [Context::Allocation]);
    assert_eq!(info.limits.maximum, 64 << 20);
    assert!(!info.rotational && info.description.is_none());
    assert_eq!(&*info.name, "sh:script");
}

#[tokio::test]
async fn each_question_sets_what_it_asks_for() {
    use Capabilities as C;
    for (method, expected) in [
        ("can_write", C::WRITE | C::FAST_ZERO),
        ("can_write|can_zero", C::WRITE | C::ZERO),
        (
            "can_write|can_zero|can_fast_zero",
            C::WRITE | C::ZERO | C::FAST_ZERO,
        ),
        ("can_write|can_trim", C::WRITE | C::FAST_ZERO | C::TRIM),
        (
            "can_write|can_flush",
            C::WRITE | C::FAST_ZERO | C::FLUSH | C::FUA,
        ),
        ("can_flush", C::FLUSH),
        ("can_zero|can_trim|can_fast_zero", C::empty()),
        ("can_multi_conn", C::MULTI_CONN),
    ] {
        let info = info(&format!("{method}) exit 0 ;;\n")).await;
        assert_eq!(info.capabilities, expected, "{method}");
    }
    assert!(info("is_rotational) exit 0 ;;").await.rotational);
    let no = info("can_[efmtwz]*|is_rotational) [ \"$1\" = can_fua ] && exit 2; exit 3 ;;\n").await;
    assert_eq!(no.capabilities, Capabilities::empty());
}

#[tokio::test]
async fn fua_and_cache_are_words() {
    use Capabilities as C;
    let flushable = "can_write|can_flush) exit 0 ;;\n";
    for (word, can) in [("none", false), ("emulate", true), ("NATIVE", true)] {
        let info = info(&format!("{flushable}can_fua|can_cache) echo {word} ;;")).await;
        assert_eq!(info.can(C::FUA), can, "{word}");
        assert_eq!(info.can(C::CACHE), can, "{word}");
    }
}

#[tokio::test]
async fn sizes_have_suffixes_and_need_no_newline() {
    for (answer, size) in [
        ("echo 512", 512),
        ("printf 3s", 1536),
        ("echo 1K", 1024),
        ("echo 10m", 10 << 20),
        ("printf 1E", 1 << 60),
        ("echo 0", 0),
        ("echo 9223372036854775807", i64::MAX as u64),
    ] {
        let (_script, device) = eval(&[("get_size", answer), ("pread", "exit 1")]).await;
        assert_eq!(device.info().size, size, "{answer}");
    }
}

#[tokio::test]
async fn block_sizes_are_taken_over() {
    let limits = |minimum, preferred, maximum| BlockLimits {
        minimum,
        preferred,
        maximum,
    };
    for (answer, expected) in [
        ("512 64K 1M", limits(512, 65536, 1 << 20)),
        ("1 4096 0xffffffff", limits(0, 0, 0)),
        ("1\t4096\n4294967295", limits(1, 4096, 64 << 20)),
        ("0 0 0", limits(1, 4096, 64 << 20)),
    ] {
        let answer = format!("printf '{answer}'");
        let room = Room::cases(&format!("block_size) {answer} ;;"));
        let script = room.start().await;
        match open(&script, "").await {
            Ok(export) => assert_eq!(export.device.info().limits, expected),
            Err(_) => assert_eq!(expected.maximum, 0, "{answer}"),
        }
    }
}

#[tokio::test]
async fn a_handle_is_what_open_printed_without_its_newline() {
    let room = Room::cases(
        r#"open) printf 'two words\n\n' ;;
get_size) printf '%s' "$2" | od -An -c > "$here/handle"; echo 1M ;;
"#,
    );
    let (_script, _export) = room.open().await;
    let handle = std::fs::read_to_string(room.file("handle")).expect("written");
    let handle: Vec<_> = handle.split_whitespace().collect();
    assert_eq!(handle.concat(), "twowords\\n");
}

#[tokio::test]
async fn a_handle_that_is_of_no_use_after_all_is_closed() {
    let room = Room::cases("open) echo h ;;\nget_size) echo EPERM closed today >&2; exit 1 ;;\n");
    let error = room.refusal().await;
    assert_eq!(error.kind(), ErrorKind::NotPermitted);
    assert_eq!(error.to_string(), "sh:script: open: get_size: closed today");
    assert_eq!(room.calls_of(&["close"]), ["close h"]);

    let room = Room::cases("open) exit 1 ;;\n");
    room.refusal().await;
    assert_eq!(room.calls_of(&["close"]), [""; 0]);
}

#[tokio::test]
async fn the_default_export_has_the_name_that_the_script_says() {
    let room = Room::cases("default_export) echo NAMES; echo the one; echo another ;;\n");
    let (script, export) = room.open().await;
    assert_eq!(export.canonical_name.as_deref(), Some("the one"));
    let other = open(&script, "other").await.expect("an export");
    assert_eq!(other.canonical_name, None);
    let names = room.calls_of(&["open"]);
    assert_eq!(
        names,
        ["open false the one false", "open false other false"]
    );
    // Without a list it is the only one.
    let list = script.list(ClientFacts::default()).await.expect("a list");
    assert_eq!(list.len(), 1);
    assert_eq!(
        (list[0].name.as_str(), &list[0].description),
        ("the one", &None)
    );
}

#[tokio::test]
async fn lists_have_three_forms() {
    for (answer, expected) in [
        ("NAMES\na\nb", "a b"),
        ("a\nb", "a b"),
        ("INTERLEAVED\na\nfirst\nb\nsecond", "a=first b=second"),
        ("INTERLEAVED\na\nfirst\nb", "a=first b"),
        (
            "NAMES+DESCRIPTIONS\na\nb\nfirst\nsecond",
            "a=first b=second",
        ),
        ("NAMES", ""),
        ("", ""),
    ] {
        let answer = answer.replace('\n', "\\n");
        let room = Room::cases(&format!("list_exports) printf '{answer}\\n' ;;"));
        let script = room.start().await;
        let client = ClientFacts {
            read_only: true,
            tls: true,
        };
        let list = script.list(client).await.expect("a list");
        let list: Vec<_> = list
            .into_iter()
            .map(|entry| match entry.description {
                Some(description) => format!("{}={description}", entry.name),
                None => entry.name,
            })
            .collect();
        assert_eq!(list.join(" "), expected, "{answer}");
        assert_eq!(room.calls_of(&["list_exports"]), ["list_exports true true"]);
    }
}

#[tokio::test]
async fn a_description_is_for_the_export_that_was_opened() {
    let room = Room::cases("open) echo \"$3\" ;;\nexport_description) echo \"this is $2\" ;;\n");
    let script = Arc::new(room.start().await);
    for name in ["one", "two"] {
        let export = open(&script, name).await.expect("an export");
        let description = export.device.info().description.clone();
        assert_eq!(description, Some(format!("this is {name}")));
    }
}
