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
