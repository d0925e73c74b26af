//! Reads, writes and everything else that a client asks of a device.

use std::fs;

use blockferry_block::{
    Buffer, ByteRange, Capabilities, Context, ErrorKind, Extent, Status, WriteFlags, ZeroFlags,
};

use crate::support::{Room, eval};

/// A disk in a file beside the script that can do everything.
const DISK: &str = r#"
open) : > "$here/disk"; truncate -s 16M "$here/disk"; echo h ;;
get_size) stat -c %s "$here/disk" ;;
can_write|can_flush|can_trim|can_zero|can_fast_zero|can_extents|can_multi_conn|is_rotational) exit 0 ;;
can_fua|can_cache) echo native ;;
pread) dd if="$here/disk" iflag=skip_bytes,count_bytes skip="$4" count="$3" bs=1M status=none ;;
pwrite) dd of="$here/disk" oflag=seek_bytes seek="$4" bs=64K conv=notrunc iflag=fullblock status=none ;;
flush|cache) ;;
trim|zero) fallocate -z -o "$4" -l "$3" "$here/disk" ;;
extents) echo "0 1M"; echo "1M 15M hole,zero" ;;
"#;

/// The requests among the calls.
const REQUESTS: [&str; 7] = [
    "pread", "pwrite", "flush", "trim", "zero", "cache", "extents",
];

#[tokio::test]
async fn what_is_written_is_read_again() {
    let room = Room::cases(DISK);
    let (_script, open) = room.open().await;
    let device = open.device;
    let data: Vec<u8> = (0..3_000_000_u32).map(|it| (it % 251) as u8).collect();
    device
        .write(4097, Buffer::from(&data[..]), WriteFlags::empty())
        .await
        .expect("written");
    let back = device.read(4097, Buffer::zeroed(data.len())).await;
    assert!(back.expect("read")[..] == data[..]);
    let zeroes = device.read(0, Buffer::zeroed(4097)).await.expect("read");
    assert_eq!(&zeroes[..], [0; 4097]);
}

#[tokio::test]
async fn each_request_is_a_call_with_its_flags() {
    let room = Room::cases(DISK);
    let (_script, open) = room.open().await;
    let device = open.device;
    let range = ByteRange::between(512, 1536);
    let write = |flags| device.write(512, Buffer::zeroed(100), flags);
    write(WriteFlags::empty()).await.expect("written");
    write(WriteFlags::FUA).await.expect("written");
    device.flush().await.expect("flushed");
    for flags in [WriteFlags::empty(), WriteFlags::FUA] {
        device.trim(range, flags).await.expect("trimmed");
    }
    for bits in 0..8 {
        let flags = ZeroFlags::from_bits_truncate(bits);
        device.zero(range, flags).await.expect("zeroed");
    }
    device.cache(range).await.expect("cached");
    let extents = device.extents(range, &Context::Allocation).await;
    assert_eq!(extents.expect("extents").len(), 1);
    assert_eq!(
        room.calls_of(&REQUESTS),
        [
            "pwrite h 100 512 ",
            "pwrite h 100 512 fua",
            "flush h",
            "trim h 1024 512 ",
            "trim h 1024 512 fua",
            "zero h 1024 512 may_trim",
            "zero h 1024 512 fua,may_trim",
            "zero h 1024 512 ",
            "zero h 1024 512 fua",
            "zero h 1024 512 may_trim,fast",
            "zero h 1024 512 fua,may_trim,fast",
            "zero h 1024 512 fast",
            "zero h 1024 512 fua,fast",
            "cache h 1024 512",
            "extents h 1024 512 ",
        ]
    );
}

#[tokio::test]
async fn durable_writes_are_flushed_where_the_script_leaves_that_to_us() {
    for (cases, offered) in [
        ("can_fua) echo emulate ;;", true),
        ("can_fua) echo none ;;", false),
        ("", true),
    ] {
        let room = Room::cases(&format!(
            "{cases}\ncan_write|can_flush|can_trim|can_zero) ;;\npwrite) cat > /dev/null ;;\ntrim|zero|flush) ;;\n"
        ));
        let (_script, open) = room.open().await;
        let device = open.device;
        assert_eq!(device.info().can(Capabilities::FUA), offered, "{cases}");
        let range = ByteRange::between(0, 4096);
        let data = Buffer::zeroed(1);
        device
            .write(0, data, WriteFlags::FUA)
            .await
            .expect("written");
        device.trim(range, WriteFlags::FUA).await.expect("trimmed");
        device.zero(range, ZeroFlags::FUA).await.expect("zeroed");
        assert_eq!(
            room.calls_of(&REQUESTS),
            [
                "pwrite  1 0 ",
                "flush ",
                "trim  4096 0 ",
                "flush ",
                "zero  4096 0 may_trim",
                "flush "
            ]
        );
    }
}

#[tokio::test]
async fn what_cannot_be_zeroed_is_written() {
    let written = r#"
can_write|can_flush) ;;
pwrite) wc -c < /dev/stdin >> "$here/lengths"; tr -d '\0' < /dev/null ;;
block_size) echo 512 4096 1M ;;
flush) ;;
get_size) echo 16M ;;
"#;
    let length = (2 << 20) + 512;
    let range = ByteRange::between(1024, 1024 + length);
    for (cases, tried) in [
        ("can_zero) exit 3 ;;", false),
        ("can_zero) ;;\nzero) echo ENOTSUP >&2; exit 1 ;;", true),
        (
            "can_zero) ;;\nzero) echo EOPNOTSUPP no >&2; exit 1 ;;",
            true,
        ),
        ("can_zero) ;;", true),
    ] {
        let room = Room::cases(&format!("{cases}\n{written}"));
        let (_script, open) = room.open().await;
        let device = open.device;
        let fast = device.zero(range, ZeroFlags::FAST).await;
        let fast = fast.expect_err("it would be slow");
        assert_eq!(fast.kind(), ErrorKind::Unsupported);
        let zero = format!("zero  {length} 1024 may_trim,fast");
        let expected = if tried { vec![zero] } else { Vec::new() };
        assert_eq!(room.calls_of(&REQUESTS), expected);

        device.zero(range, ZeroFlags::FUA).await.expect("zeroed");
        let calls = room.calls_of(&["pwrite", "flush"]);
        assert_eq!(
            calls,
            [
                "pwrite  1047552 1024 ",
                "pwrite  1048576 1048576 ",
                "pwrite  1536 2097152 ",
                "flush "
            ]
        );
        let lengths = fs::read_to_string(room.file("lengths")).expect("written");
        assert_eq!(lengths, "1047552\n1048576\n1536\n");
    }
}

#[tokio::test]
async fn a_zero_that_fails_otherwise_is_not_tried_in_another_way() {
    let room = Room::cases("can_write|can_zero) ;;\nzero) echo ENOSPC full >&2; exit 1 ;;\n");
    let (_script, open) = room.open().await;
    let range = ByteRange::between(0, 4096);
    let error = open.device.zero(range, ZeroFlags::empty()).await;
    let error = error.expect_err("full");
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert_eq!(
        error.to_string(),
        "sh:script: zero of 4096 bytes at offset 0: zero: full"
    );
    assert_eq!(room.calls_of(&["pwrite"]), [""; 0]);
}

#[tokio::test]
async fn caching_reads_and_forgets_where_the_script_leaves_that_to_us() {
    let room = Room::cases("can_cache) echo emulate ;;\nblock_size) echo 1 4096 64K ;;\n");
    let (_script, open) = room.open().await;
    let range = ByteRange::between(10, 100_000);
    open.device.cache(range).await.expect("cached");
    let calls = room.calls_of(&REQUESTS);
    assert_eq!(calls, ["pread  65526 10", "pread  34464 65536"]);

    let room = Room::cases("can_cache) echo native ;;\n");
    let (_script, open) = room.open().await;
    open.device
        .cache(range)
        .await
        .expect("no method, no matter");
    assert_eq!(room.calls_of(&REQUESTS), ["cache  99990 10"]);

    let room = Room::cases("");
    let (_script, open) = room.open().await;
    open.device.cache(range).await.expect("a hint");
    assert_eq!(room.calls_of(&REQUESTS), [""; 0]);
}

#[tokio::test]
async fn hints_that_the_script_does_not_know_are_no_failures() {
    let room = Room::cases("can_write|can_trim|can_flush) ;;\n");
    let (_script, open) = room.open().await;
    let range = ByteRange::between(0, 4096);
    open.device.flush().await.expect("nothing to do");
    let trimmed = open.device.trim(range, WriteFlags::empty()).await;
    trimmed.expect("nothing to do");
    assert_eq!(room.calls_of(&REQUESTS), ["flush ", "trim  4096 0 "]);
}

#[tokio::test]
async fn what_is_not_offered_does_not_reach_the_script() {
    let room = Room::cases("");
    let (_script, open) = room.open().await;
    let device = open.device;
    let range = ByteRange::between(0, 4096);
    let kinds = [
        device
            .write(0, Buffer::zeroed(1), WriteFlags::empty())
            .await
            .map(drop),
        device.zero(range, ZeroFlags::empty()).await,
        device.trim(range, WriteFlags::empty()).await,
        device.flush().await,
    ]
    .map(|result| result.err().map(|error| error.kind()));
    let refused = Some(ErrorKind::ReadOnly);
    assert_eq!(kinds, [refused, refused, refused, None]);
    let extents = device.extents(range, &Context::Allocation).await;
    let whole = Extent {
        range,
        status: Status::DATA,
    };
    assert_eq!(extents.expect("all of it is data"), [whole]);
    let other = Context::from("qemu:allocation-depth");
    let error = device.extents(range, &other).await.expect_err("unknown");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(room.calls_of(&REQUESTS), [""; 0]);
}

#[tokio::test]
async fn extents_are_clipped_to_the_request_and_merged() {
    let answer = r"cat <<'END'
# the whole disk

0 100
100 0 hole
100 156 hole
256 256 1
512	1K	hole,zero
1536 100 zero
1636 1M
END";
    let methods = [
        ("get_size", "echo 1M"),
        ("pread", "exit 1"),
        ("extents", answer),
    ];
    let (_script, device) = eval(&methods).await;
    let range = ByteRange::between(50, 4096);
    let extents = device.extents(range, &Context::Allocation).await;
    let extents = extents.expect("extents");
    let found: Vec<_> = extents
        .iter()
        .map(|extent| (extent.range.start(), extent.range.end(), extent.status))
        .collect();
    assert_eq!(
        found,
        [
            (50, 100, Status::DATA),
            (100, 512, Status::HOLE),
            (512, 1536, Status::HOLE_ZERO),
            (1536, 1636, Status::ZERO),
            (1636, 4096, Status::DATA),
        ]
    );
}

#[tokio::test]
async fn a_read_of_32_mib_fills_the_buffer_that_it_was_given() {
    let methods = [
        ("get_size", "echo 64M"),
        ("pread", "yes 0123456789abcde | head -c $3"),
    ];
    let (_script, device) = eval(&methods).await;
    let buffer = Buffer::zeroed(32 << 20);
    let address = buffer.as_ptr();
    let back = device.read(0, buffer).await.expect("read");
    assert_eq!(back.as_ptr(), address);
    assert!(back.chunks(16).all(|line| line == b"0123456789abcde\n"));
}
