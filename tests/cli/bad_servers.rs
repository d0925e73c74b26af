//! Servers that are not there, refuse, lie, send garbage or die: one clear error each, the right exit
//! code, no panic, no hang, and nothing left behind.

use std::{
    io::{self, Write},
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

use tempfile::{TempDir, tempdir};

use crate::support::{
    Outcome, Peer, blockferry,
    hostile::{Export, Hostile, chunk, negotiate, simple_reply},
    random_image, run,
};

/// Copies from `uri` to a file, which must not be there afterwards.
#[track_caller]
fn copy_fails(dir: &Path, uri: &str) -> Outcome {
    let copy = dir.join("copy.raw");
    let outcome = run(blockferry(["copy", uri]).arg(&copy));
    assert!(!copy.exists(), "an unfinished file is left behind");
    outcome
}

fn room() -> TempDir {
    tempdir().expect("a directory")
}

#[test]
fn a_wrong_uri_is_wrong_usage() {
    for uri in [
        "nbd+unix:///",
        "nbd://localhost:99999/",
        "nbd+unix:///x?socket=",
    ] {
        run(&mut blockferry(["copy", uri, "null:"])).failure(2, &[uri]);
    }
    run(&mut blockferry([
        "copy",
        "nbd+ssh://-oProxyCommand=x/",
        "null:",
    ]))
    .failure(2, &["nbd+ssh"]);
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let dir = room();
    let uri = format!("nbd+unix:///?socket={}/nothing.sock", dir.path().display());
    copy_fails(dir.path(), &uri).failure(1, &["nothing.sock", "hint:"]);
    // Nobody listens on the port of a socket that was bound and closed.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .expect("a port")
        .local_addr();
    let uri = format!("nbd://{}/", port.expect("ours"));
    copy_fails(dir.path(), &uri).failure(1, &[&uri, "refused"]);
}

#[test]
fn an_export_that_is_not_there_is_named() {
    let dir = room();
    let image = dir.path().join("image.raw");
    random_image(&image, 1 << 20);
    let peer = Peer::qemu_nbd(dir.path(), "raw", &image, &["-x", "disk"]);
    let uri = peer.uri().replace("///", "///elsewhere");
    copy_fails(dir.path(), &uri).failure(1, &["elsewhere"]);
}

#[test]
fn an_old_style_server_is_told_from_garbage() {
    let dir = room();
    let mut greeting = b"NBDMAGIC".to_vec();
    greeting.extend(0x0000_4202_8186_1253_u64.to_be_bytes());
    greeting.extend([0; 136]);
    let server = Hostile::raw(dir.path(), move |stream| stream.write_all(&greeting));
    let named = server.uri().replace("///", "///disk");
    copy_fails(dir.path(), &named).failure(1, &["oldstyle"]);
    // All flags are missing, even the one that says that there are flags.
    copy_fails(dir.path(), &server.uri()).failure(1, &["flags 0x0000"]);
    drop(server);

    let dir = room();
    let server = Hostile::raw(dir.path(), |stream| {
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    });
    copy_fails(dir.path(), &server.uri()).failure(1, &[&server.uri(), "NBD"]);
}

#[test]
fn a_server_that_hangs_up_at_once_is_worth_another_try() {
    let dir = room();
    let server = Hostile::raw(dir.path(), |_| Ok(()));
    copy_fails(dir.path(), &server.uri()).failure(75, &[&server.uri()]);
}

#[test]
fn absurd_sizes_are_refused() {
    for export in [
        Export {
            size: u64::MAX,
            ..Export::default()
        },
        Export {
            size: 1 << 63,
            ..Export::default()
        },
        Export {
            block_sizes: Some([3, 4096, 1 << 20]),
            ..Export::default()
        },
        Export {
            block_sizes: Some([4096, 512, 0]),
            ..Export::default()
        },
        Export {
            flags: 0,
            ..Export::default()
        },
    ] {
        let dir = room();
        let server = Hostile::serving(dir.path(), export, |_, _| Ok(()));
        copy_fails(dir.path(), &server.uri()).failure(1, &[&server.uri()]);
    }
}

#[test]
fn a_server_whose_export_is_shorter_than_it_said_is_named_with_the_offset() {
    let dir = room();
    let server = Hostile::serving(dir.path(), Export::default(), |stream, request| {
        if request.offset + u64::from(request.length) > 512 << 10 {
            return stream.write_all(&simple_reply(request.cookie, 22, &[]));
        }
        stream.write_all(&simple_reply(
            request.cookie,
            0,
            &vec![1; request.length as usize],
        ))
    });
    copy_fails(dir.path(), &server.uri()).failure(1, &[&server.uri(), "offset 524288", "EINVAL"]);
}

#[test]
fn replies_that_break_the_protocol_end_the_copy() {
    type Reply = fn(u64, usize) -> Vec<u8>;
    let cases: [(&str, bool, Reply); 8] = [
        ("a wrong magic", false, |_, _| vec![0x55; 64]),
        ("another's cookie", false, |cookie, length| {
            simple_reply(!cookie, 0, &vec![1; length])
        }),
        (
            "a structured reply that was not negotiated",
            false,
            |cookie, _| chunk(cookie, true, 0, &[]),
        ),
        ("data outside of the request", true, |cookie, _| {
            chunk(
                cookie,
                true,
                1,
                &[&(1_u64 << 40).to_be_bytes()[..], &[1; 512]].concat(),
            )
        }),
        ("too little data", true, |cookie, _| {
            chunk(cookie, true, 0, &[])
        }),
        ("the same data twice", true, |cookie, length| {
            let data = [&0_u64.to_be_bytes()[..], &vec![1; length]].concat();
            [
                chunk(cookie, false, 1, &data),
                chunk(cookie, true, 1, &data),
            ]
            .concat()
        }),
        ("a chunk of 4 GiB", true, |cookie, _| {
            let mut reply = chunk(cookie, true, 0x8001, &[]);
            reply[16..20].fill(0xff);
            reply
        }),
        (
            "an unknown chunk that is not an error",
            true,
            |cookie, _| chunk(cookie, true, 77, &[]),
        ),
    ];
    for (what, structured, reply) in cases {
        let dir = room();
        let export = Export {
            size: 64 << 10,
            structured,
            ..Export::default()
        };
        let server = Hostile::serving(dir.path(), export, move |stream, request| {
            // Without block status everything is data.
            let answer = match request.command {
                7 => chunk(request.cookie, true, 0x8001, &[0, 0, 0, 95, 0, 0]),
                _ => reply(request.cookie, request.length as usize),
            };
            stream.write_all(&answer)
        });
        let outcome = copy_fails(dir.path(), &server.uri());
        assert_eq!(outcome.code, 1, "{what}: {}", outcome.stderr);
        outcome.failure(1, &[&server.uri()]);
    }
}

#[test]
fn a_server_that_dies_in_the_middle_of_a_reply_is_worth_another_try() {
    let dir = room();
    let server = Hostile::serving(dir.path(), Export::default(), |stream, request| {
        stream.write_all(&simple_reply(
            request.cookie,
            0,
            &vec![1; request.length as usize / 2],
        ))?;
        Err(io::ErrorKind::Other.into())
    });
    copy_fails(dir.path(), &server.uri()).failure(75, &[&server.uri(), "offset"]);
}

#[test]
fn a_read_error_names_the_offset() {
    let dir = room();
    let peer = Peer::nbdkit(
        dir.path(),
        &[
            "--filter=error",
            "memory",
            "4M",
            "error-pread=EIO",
            "error-pread-rate=100%",
        ],
    );
    // A memory disk is all holes: only a server that is asked without extents is read.
    let copy = dir.path().join("copy.raw");
    // One request at a time, so that it is the first that fails first.
    run(blockferry(["copy", "--no-extents", "--requests=1", &peer.uri()]).arg(&copy))
        .failure(1, &[&peer.uri(), "offset 0", "EIO"]);
    assert!(!copy.exists());
}

#[test]
fn a_failing_block_status_does_not_fail_the_copy() {
    let dir = room();
    let (image, copy) = (dir.path().join("image.raw"), dir.path().join("copy.raw"));
    random_image(&image, 3 << 20);
    let file = format!("file={}", image.display());
    let peer = Peer::nbdkit(
        dir.path(),
        &[
            "--filter=error",
            "file",
            &file,
            "error-extents=EIO",
            "error-extents-rate=100%",
        ],
    );
    let outcome = run(blockferry(["copy", &peer.uri()]).arg(&copy)).success();
    assert_eq!(
        outcome.stderr.matches("warning").count(),
        1,
        "{}",
        outcome.stderr
    );
    crate::support::assert_same(&image, &copy);
}

#[test]
fn lying_block_status_neither_loops_nor_skips() {
    // Lengths of zero, nothing at all, a wrong context, more than 2^32 in sum.
    let lies: [&[u8]; 4] = [
        b"\0\0\0\x01\0\0\0\0\0\0\0\x03",
        b"\0\0\0\x01",
        b"\0\0\0\x63\0\0\x10\0\0\0\0\x03",
        b"\0\0\0\x01\xff\xff\xff\xff\0\0\0\0\xff\xff\xff\xff\0\0\0\x03",
    ];
    for lie in lies {
        let dir = room();
        let export = Export {
            structured: true,
            ..Export::default()
        };
        let asked = AtomicU32::new(0);
        let server = Hostile::serving(dir.path(), export, move |stream, request| {
            if request.command == 7 {
                assert!(
                    asked.fetch_add(1, Ordering::SeqCst) < 100,
                    "asked without end"
                );
                return stream.write_all(&chunk(request.cookie, true, 5, lie));
            }
            let data = [
                &request.offset.to_be_bytes()[..],
                &vec![7; request.length as usize],
            ]
            .concat();
            stream.write_all(&chunk(request.cookie, true, 1, &data))
        });
        let copy = dir.path().join("copy.raw");
        let outcome = run(blockferry(["copy", &server.uri()]).arg(&copy));
        match outcome.code {
            // Believed as far as it was legal: no byte may be missing.
            0 => assert_eq!(std::fs::read(&copy).expect("a file"), vec![7; 1 << 20]),
            _ => drop(outcome.failure(1, &[&server.uri()])),
        }
    }
}

#[test]
fn what_a_server_says_is_escaped() {
    let dir = room();
    let server = Hostile::serving(
        dir.path(),
        Export {
            structured: true,
            ..Export::default()
        },
        |stream, request| {
            let text = b"\x1b[31mred\x07";
            let mut payload = 5_u32.to_be_bytes().to_vec();
            payload.extend((text.len() as u16).to_be_bytes());
            payload.extend(text);
            stream.write_all(&chunk(request.cookie, true, 0x8001, &payload))
        },
    );
    let outcome = copy_fails(dir.path(), &server.uri()).failure(1, &["red"]);
    assert!(!outcome.stderr.contains('\x1b'), "{:?}", outcome.stderr);
}

#[test]
fn a_destination_that_fails_a_write_or_the_flush_fails_the_copy() {
    let dir = room();
    let image = dir.path().join("image.raw");
    random_image(&image, 3 << 20);
    for (command, word) in [(1, "write"), (3, "flush")] {
        let dir = room();
        let export = Export {
            size: 3 << 20,
            ..Export::default()
        };
        let server = Hostile::serving(dir.path(), export, move |stream, request| {
            let error = if request.command == command { 28 } else { 0 };
            stream.write_all(&simple_reply(request.cookie, error, &[]))
        });
        run(blockferry(["copy"]).arg(&image).arg(server.uri()))
            .failure(1, &[&server.uri(), word, "ENOSPC"]);
    }
}

#[test]
fn a_server_that_dies_before_the_flush_is_no_success() {
    let dir = room();
    let image = dir.path().join("image.raw");
    random_image(&image, 1 << 20);
    let server = Hostile::raw(dir.path(), |stream| {
        negotiate(stream, &Export::default())?;
        // Takes all and says nothing more once a flush comes.
        let mut head = [0; 28];
        loop {
            io::Read::read_exact(stream, &mut head)?;
            match head[7] {
                1 => {
                    let length = u32::from_be_bytes(head[24..].try_into().expect("four bytes"));
                    io::copy(
                        &mut io::Read::take(&mut *stream, length.into()),
                        &mut io::sink(),
                    )?;
                    let cookie = u64::from_be_bytes(head[8..16].try_into().expect("eight bytes"));
                    stream.write_all(&simple_reply(cookie, 0, &[]))?;
                }
                _ => return Ok(()),
            }
        }
    });
    run(blockferry(["copy"]).arg(&image).arg(server.uri())).failure(75, &[&server.uri(), "flush"]);
}
