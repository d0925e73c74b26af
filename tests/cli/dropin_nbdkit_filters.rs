//! Under the name nbdkit, each filter beside the real one: the same parameters, the same disk behind it.

use std::{fs, path::PathBuf};

use tempfile::{TempDir, tempdir};

use crate::support::{
    dropin::{BOTH, FACTS, MAP, READ, Who, assert_alike, captive, words},
    run, sparse_image,
};

/// A place with an image of a few data and holes, of an odd size.
struct Room(TempDir);

const SIZE: u64 = (8 << 20) + 1536;

impl Room {
    fn new() -> Self {
        let room = Self(tempdir().expect("a directory"));
        sparse_image(&room.path("image"), SIZE);
        room
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Words in which `@` is the directory.
    fn fill(&self, text: &str) -> Vec<String> {
        let directory = self.0.path().to_str().expect("UTF-8");
        let words = words(text).into_iter();
        words.map(|word| word.replace('@', directory)).collect()
    }

    /// Fails unless both show the same disk, spread in the same way.
    #[track_caller]
    fn assert_alike(&self, arguments: &str, commands: &[&str]) {
        let arguments = self.fill(arguments);
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        for command in commands {
            assert_alike(&arguments, command);
        }
    }

    /// What `command` comes to with the server of `who`.
    fn captive(&self, who: Who, arguments: &str, command: &str) -> crate::support::Outcome {
        let arguments = self.fill(arguments);
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        captive(who, &arguments, command)
    }
}

#[test]
fn a_disk_is_the_same_through_each_filter() {
    let room = Room::new();
    for arguments in [
        "--filter=nofilter file @/image",
        "--filter=exitlast file @/image",
        "--filter=offset file @/image",
        "--filter=offset file @/image offset=64k",
        "--filter=offset file @/image offset=1M range=2M",
        "--filter=offset file offset=512 range=4k file=@/image",
        "--filter=offset memory 1M offset=1M",
        "--filter=delay file @/image rdelay=1ms wdelay=1ms delay-extents=2ms delay-open=3ms",
        "--filter=delay memory 1M delay-fast-zero=false delay-write=1 delay-zero=1 delay-trim=1 delay-cache=1",
        "--filter=error file @/image",
        "--filter=error file @/image error=ENOSPC error-rate=100% error-file=@/missing",
        "--filter=error file @/image error-pwrite-rate=1 error-pread-rate=0%",
        "--filter=log file @/image",
        "--filter=log file @/image logfile=@/log logappend=true",
        "--filter=stats file @/image statsfile=@/stats statsappend=1 statsthreshold=100",
        "--filter=multi-conn file @/image",
        "--filter=multi-conn memory 1M multi-conn-mode=disable multi-conn-track-dirty=fast",
        "--filter=multi-conn memory 1M multi-conn-mode=plugin multi-conn-exportname=true",
        "--filter=multi-conn memory 1M multi-conn-mode=unsafe multi-conn-track-dirty=off",
        "--filter=nozero file @/image zeromode=plugin fastzeromode=none",
        "--filter=nozero file @/image zeromode=notrim",
        "--filter=nozero file @/image zeromode=emulate",
        "-r --filter=offset file @/image offset=1k",
        "--filter=truncate file @/image",
        "--filter=truncate file @/image truncate=1M",
        "--filter=truncate file @/image truncate=16M",
        "--filter=truncate file @/image round-up=1M",
        "--filter=truncate file @/image round-down=4k",
        "--filter=truncate file @/image truncate=1000 round-up=512 round-down=1024",
        "--filter=blocksize file @/image",
        "--filter=blocksize file @/image minblock=4k maxdata=64k maxlen=1M",
        "--filter=blocksize-policy file @/image blocksize-minimum=1 blocksize-preferred=4k",
        "--filter=cacheextents file @/image",
        "--filter=retry file @/image retries=3 retry-delay=1 retry-exponential=no retry-readonly=yes",
        "--filter=rate file @/image",
        "--filter=rate file @/image rate=100M rate-file=@/missing connection-rate=1G burstiness=4",
        "--filter=readahead file @/image",
        "--filter=fua file @/image",
        "--filter=fua file @/image fuamode=emulate",
        "--filter=fua file @/image fuamode=native",
        "--filter=fua file @/image fuamode=force",
        "--filter=fua file @/image fuamode=pass",
        "--filter=fua file @/image fuamode=discard",
        "--filter=limit file @/image limit=0",
        "--filter=limit file @/image limit=9",
        "--filter=nocache file @/image",
        "--filter=nocache file @/image cachemode=nop",
        "--filter=nocache memory 1M cachemode=emulate",
        "--filter=noparallel file @/image",
        "--filter=noparallel file @/image serialize=requests",
        "--filter=noparallel file @/image serialize=all-requests",
        "--filter=swab file @/image",
        "--filter=swab file @/image swab-bits=8",
        "--filter=swab file @/image swab-bits=32",
        "--filter=swab pattern 65535 swab-bits=64",
    ] {
        room.assert_alike(arguments, &[READ, MAP, FACTS]);
    }
}

#[test]
fn what_is_hidden_is_all_data() {
    let room = Room::new();
    room.assert_alike("--filter=noextents file @/image", &[READ, MAP]);
    room.assert_alike("--filter=nozero file @/image", &[READ, MAP]);
}

#[test]
fn the_first_filter_is_nearest_the_client_and_takes_its_parameters_first() {
    let room = Room::new();
    for arguments in [
        "--filter=offset --filter=noextents file @/image offset=1M",
        "--filter=noextents --filter=offset file @/image offset=1M",
        "--filter=log --filter=offset --filter=stats --filter=nofilter file @/image offset=4k \
         logfile=@/log statsfile=@/stats",
    ] {
        room.assert_alike(arguments, &[READ, MAP]);
    }
}

#[test]
fn the_end_of_a_disk_of_odd_size_is_rounded_up_below_whole_blocks() {
    let room = Room::new();
    // Where theirs rounds what it is told of extents to blocks, ours does not.
    let arguments = "--filter=blocksize --filter=truncate file @/image minblock=4k round-up=4k";
    room.assert_alike(arguments, &[READ]);
}

#[test]
fn a_cache_shows_and_keeps_the_same() {
    let room = Room::new();
    for arguments in [
        "--filter=cache file @/copy",
        "--filter=cache file @/copy cache=writethrough cache-on-read=true",
        "--filter=cache file @/copy cache=unsafe cache-max-size=1M cache-min-block-size=4k \
         cache-high-threshold=90 cache-low-threshold=50",
    ] {
        let after = BOTH.map(|who| {
            fs::copy(room.path("image"), room.path("copy")).expect("room");
            let read = room.captive(who, arguments, CHANGE).success().stdout;
            (read, fs::read(room.path("copy")).expect("a file"))
        });
        assert!(after[0].0 == after[1].0, "{arguments}");
        // What nobody wants to be safe may stay in the cache.
        assert!(
            after[0].1 == after[1].1 || arguments.contains("unsafe"),
            "{arguments}"
        );
    }
}

#[test]
fn extents_come_from_a_file() {
    let room = Room::new();
    let list = "1M 1M\n0 64k hole,zero\n3M 1M zero\n4M 512k hole\n";
    fs::write(room.path("list"), list).expect("room");
    room.assert_alike(
        "--filter=extentlist memory 8M extentlist=@/list",
        &[READ, MAP],
    );
}

#[test]
fn packed_disks_are_unpacked() {
    let room = Room::new();
    let image = room.path("image");
    let pack = |command: &str| {
        let command = format!("cd {} && {command}", room.0.path().display());
        run(std::process::Command::new("sh").args(["-c", &command])).success();
    };
    pack("gzip -k image && xz -k --block-size=1MiB image && tar cf archive image");
    let size = fs::metadata(&image).expect("an image").len();
    for arguments in [
        "--filter=gzip file @/image.gz",
        "--filter=xz file @/image.xz",
        "--filter=xz file @/image.xz xz-max-block=2M xz-max-depth=2",
        "--filter=tar file @/archive tar-entry=image",
        "--filter=cow --filter=xz file @/image.xz cow-on-read=true",
    ] {
        room.assert_alike(arguments, &[READ]);
        let outcome = room.captive(Who::Ours, arguments, "nbdinfo --size \"$uri\"");
        assert_eq!(outcome.success().text().trim(), size.to_string());
    }
}

#[test]
fn the_order_of_cutting_decides() {
    let room = Room::new();
    for (order, size) in [
        ("--filter=offset --filter=truncate", 1 << 20),
        ("--filter=truncate --filter=offset", 2 << 20),
    ] {
        let arguments = format!("{order} file @/image offset=1M truncate=2M");
        room.assert_alike(&arguments, &[READ, MAP]);
        let outcome = room.captive(Who::Ours, &arguments, "nbdinfo --size \"$uri\"");
        assert_eq!(outcome.success().text().trim(), size.to_string());
    }
}

/// Writes, and what is read after that by another client.
const CHANGE: &str = "qemu-io -f raw -c 'write -P 7 5000 70000' -c 'write -z 1M 64k' \
                      -c 'discard 2M 64k' -c flush \"$uri\" >/dev/null && nbdcopy \"$uri\" - | head -c 2M | cat";

#[test]
fn what_is_written_in_front_of_a_disk_is_gone_at_the_end() {
    let room = Room::new();
    let before = fs::read(room.path("image")).expect("an image");
    for arguments in [
        "--filter=cow file @/image",
        "--filter=cow file @/image cow-block-size=4k cow-on-read=true cow-on-cache=true",
        "--filter=cow --filter=truncate file @/image truncate=4M",
        "--filter=truncate --filter=cow file @/image round-up=64k",
    ] {
        room.assert_alike(arguments, &[READ, CHANGE]);
        assert!(fs::read(room.path("image")).expect("an image") == before);
    }
}

#[test]
fn requests_fail_with_the_error_that_was_chosen() {
    let room = Room::new();
    for (error, message) in [
        ("EPERM", "Operation not permitted"),
        ("EIO", "Input/output error"),
        ("ENOMEM", "Cannot allocate memory"),
        ("EINVAL", "Invalid argument"),
        ("ENOSPC", "No space left on device"),
        ("ESHUTDOWN", "Cannot send after transport endpoint shutdown"),
    ] {
        let arguments = format!("--filter=error memory 1M error={error} error-pwrite-rate=100%");
        for who in BOTH {
            let command = "qemu-io -f raw -c 'read 0 512' -c 'write 0 512' \"$uri\"";
            let outcome = room.captive(who, &arguments, command);
            let text = format!("{}{}", outcome.text(), outcome.stderr);
            assert!(text.contains("read 512/512"), "{who:?} {text}");
            assert!(text.contains(message), "{who:?} {error}: {text}");
        }
    }
    for (command, part) in [
        ("read 0 512", "error-pread-rate=1"),
        ("write 0 512", "error-pwrite=EIO error-rate=100%"),
        ("write -z 0 512", "error-zero-rate=100%"),
        ("discard 0 64k", "error-trim-rate=100% error-trim=ENOSPC"),
    ] {
        let arguments = format!("--filter=error memory 1M {part}");
        for who in BOTH {
            let command = format!("qemu-io -f raw -d unmap -c '{command}' \"$uri\"");
            let outcome = room.captive(who, &arguments, &command);
            assert_ne!(outcome.code, 0, "{who:?} {part}: {}", outcome.text());
        }
    }
    // A trigger that comes while it runs.
    let arguments = "--filter=error memory 1M error-rate=100% error-file=@/trigger";
    let trigger = room.path("trigger");
    let trigger = trigger.display();
    let command = format!(
        "nbdinfo --size \"$uri\" && nbdcopy \"$uri\" /dev/null && touch {trigger} && \
         ! nbdcopy \"$uri\" /dev/null && rm {trigger} && nbdcopy \"$uri\" /dev/null"
    );
    for who in BOTH {
        room.captive(who, arguments, &command).success();
    }
}

#[test]
fn the_server_ends_with_its_last_client() {
    let room = Room::new();
    for who in BOTH {
        let socket = room.path(&format!("socket-{who:?}"));
        let socket = socket.to_str().expect("UTF-8");
        let pidfile = room.path(&format!("pid-{who:?}"));
        let written = pidfile.to_str().expect("UTF-8");
        let words = ["-f", "-P", written, "-U", socket];
        let words = [&words[..], &["--filter=exitlast", "memory", "1M"]].concat();
        let mut server = who.tool("nbdkit", words).spawn().expect("a server");
        let uri = format!("nbd+unix:///?socket={socket}");
        // There is a socket before anybody listens at it.
        run::until("a pidfile", || fs::exists(&pidfile).expect("a directory"));
        let size = run(std::process::Command::new("nbdinfo").args(["--size", &uri]));
        assert_eq!(size.success().text().trim(), "1048576");
        assert_eq!(run::wait(&mut server), 0, "{who:?}");
    }
}

#[test]
fn a_log_has_a_line_for_each_request_and_statistics_a_row_for_each_command() {
    let room = Room::new();
    let arguments = "--filter=log --filter=stats memory 1M logfile=@/log statsfile=@/stats";
    let command = "qemu-io -f raw -c 'write 0 4k' -c 'read 512 1k' -c flush \"$uri\"";
    for who in BOTH {
        fs::write(room.path("log"), "old\n").expect("room");
        room.captive(who, arguments, command).success();
        let log = fs::read_to_string(room.path("log")).expect("a log");
        assert!(!log.contains("old"), "{who:?}");
        let stats = fs::read_to_string(room.path("stats")).expect("statistics");
        for text in [
            "\nread: 1 ops, ",
            " s, 1.00 KiB, ",
            "\nwrite: 1 ops, ",
            " s, 4.00 KiB, ",
            "/s op, ",
            "/s total\n",
            "\n  Request size and alignment breakdown:\n",
            "\nflush: ",
        ] {
            assert!(stats.contains(text), "{who:?} {text:?}: {stats}");
        }
        assert!(stats.starts_with("total: "), "{who:?}: {stats}");
        for line in [
            "connection=1 Connect export=\"\" tls=0 size=0x100000",
            "connection=1 Write id=1 offset=0x0 count=0x1000",
            "connection=1 Read id=2 offset=0x200 count=0x400 ...",
            "connection=1 ...Read id=2 return=0",
            "connection=1 Disconnect transactions=",
        ] {
            assert!(log.contains(line), "{who:?}: {log}");
        }
    }
    let append = "--filter=log memory 1M logfile=@/log logappend=yes";
    fs::write(room.path("log"), "old\n").expect("room");
    room.captive(Who::Ours, append, command).success();
    let log = fs::read_to_string(room.path("log")).expect("a log");
    assert!(log.starts_with("old\n20"), "{log}");
}

#[test]
fn clients_are_told_the_block_sizes_of_the_plugin_that_are_not_replaced() {
    let room = Room::new();
    fs::write(room.path("size"), "1M\n").expect("room");
    fs::write(room.path("said"), "512 8k 1M\n").expect("room");
    let plugin = "eval get_size=cat<@/size block_size=cat<@/said";
    // Ours takes longer requests than any plugin, and says so.
    let command = "nbdinfo \"$uri\" | grep -e block_size_min -e block_size_pref";
    for parameters in [
        "",
        "blocksize-minimum=1",
        "blocksize-preferred=4k",
        "blocksize-minimum=4k blocksize-preferred=64k",
    ] {
        let arguments = format!("--filter=blocksize-policy {plugin} {parameters}");
        let [real, ours] = BOTH.map(|who| room.captive(who, &arguments, command).success().stdout);
        assert_eq!(real, ours, "{parameters}");
    }
}

#[test]
fn what_both_refuse_ends_with_1_and_an_error() {
    let room = Room::new();
    for arguments in [
        "--filter=bogus memory 1M",
        "--filter=./nbdkit-bogus-filter.so memory 1M",
        "memory 1M offset=1",
        "--filter=noextents memory 1M offset=1",
        "--filter=offset memory 1M offset=x",
        "--filter=partition memory 1M",
        "--filter=partition memory 1M partition=0",
        "--filter=partition memory 1M partition=x",
        "--filter=delay memory 1M rdelay=x",
        "--filter=delay memory 1M rdelay=-1",
        "--filter=delay memory 1M delay-fast-zero=x",
        "--filter=error memory 1M error=EWHAT",
        "--filter=error memory 1M error-rate=101%",
        "--filter=error memory 1M error-pread-rate=2",
        "--filter=error memory 1M error-rate=x",
        "--filter=log memory 1M logfile=@/missing/log",
        "--filter=log memory 1M logappend=x",
        "--filter=stats memory 1M",
        "--filter=stats memory 1M statsfile=@/missing/stats",
        "--filter=multi-conn memory 1M multi-conn-mode=x",
        "--filter=multi-conn memory 1M multi-conn-track-dirty=x",
        "--filter=nozero memory 1M zeromode=x",
        "--filter=truncate memory 1M truncate=x",
        "--filter=truncate memory 1M round-up=3",
        "--filter=truncate memory 1M round-down=0",
        "--filter=blocksize memory 1M minblock=3",
        "--filter=blocksize memory 1M minblock=128k",
        "--filter=blocksize memory 1M minblock=4k maxdata=5000",
        "--filter=blocksize-policy memory 1M blocksize-minimum=3",
        "--filter=blocksize-policy memory 1M blocksize-minimum=4k blocksize-preferred=1k",
        "--filter=blocksize-policy memory 1M blocksize-error-policy=x",
        "--filter=cache memory 1M cache=x",
        "--filter=cache memory 1M cache-min-block-size=1000",
        "--filter=cache memory 1M cache-max-size=1M cache-low-threshold=99",
        "--filter=extentlist memory 1M",
        "--filter=extentlist memory 1M extentlist=@/missing",
        "--filter=rate memory 1M rate=x",
        "--filter=rate memory 1M connection-rate=-1",
        "--filter=rate memory 1M burstiness=x",
        "--filter=retry memory 1M retries=x",
        "--filter=retry memory 1M retry-delay=0",
        "--filter=retry memory 1M retry-exponential=x",
        "--filter=tar memory 1M",
        "--filter=xz memory 1M xz-max-depth=0",
        "--filter=xz memory 1M xz-max-block=x",
        "--filter=cow memory 1M cow-block-size=1000",
        "--filter=cow memory 1M cow-block-size=512",
        "--filter=cow memory 1M cow-on-read=x",
        "--filter=cow memory 1M cow-on-cache=x",
        "--filter=nozero memory 1M fastzeromode=x",
    ] {
        for who in BOTH {
            let outcome = room.captive(who, arguments, "true");
            assert_eq!(outcome.code, 1, "{who:?} {arguments}: {}", outcome.stderr);
            assert!(
                outcome.stderr.contains("nbdkit: error: "),
                "{}",
                outcome.stderr
            );
        }
    }
}

#[test]
fn what_is_not_there_is_refused_by_name() {
    let room = Room::new();
    for (arguments, name) in [
        ("--filter=ext2 memory 1M", "'ext2'"),
        ("--filter=delay memory 1M delay-close=1", "delay-close"),
        ("--filter=log memory 1M logscript=true", "logscript"),
        (
            "--filter=multi-conn memory 1M multi-conn-mode=emulate",
            "multi-conn-mode=emulate",
        ),
        (
            "--filter=nozero memory 1M fastzeromode=ignore",
            "fastzeromode=ignore",
        ),
    ] {
        let outcome = room.captive(Who::Ours, arguments, "true");
        outcome.failure(1, &["nbdkit: error: ", name]);
    }
}

#[test]
fn filters_are_explained_and_have_versions() {
    for (arguments, name) in [
        ("--filter=delay --filter=log null", "delay"),
        ("--filter=./nbdkit-offset-filter.so null", "offset"),
    ] {
        let words: Vec<_> = words(arguments);
        let ask = |what| run(&mut Who::Ours.tool("nbdkit", [&words[..], &[what]].concat()));
        let help = ask("--help").success();
        let filter = help.text().find(&format!("filter: {name}\n"));
        assert!(filter.expect("a filter") < help.text().find("plugin: null\n").expect("a plugin"));
        let version = ask("--version").success();
        let lines: Vec<_> = version.text().lines().collect();
        assert!(lines[1].starts_with(name), "{lines:?}");
        assert!(lines[lines.len() - 1].starts_with("null "), "{lines:?}");
        assert!(
            ask("--dump-plugin")
                .success()
                .text()
                .contains("name=null\n")
        );
    }
}
