//! Under the name nbdcopy the program speaks its command line: each option beside the real tool, on the same
//! images and servers.

use std::{
    fs,
    fs::File,
    os::unix::fs::{FileExt, FileTypeExt},
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::{TempDir, tempdir};

use crate::support::{
    Outcome, Peer, allocated, assert_same,
    certificates::Flaw,
    dropin::{BOTH, Who, words},
    images::random_bytes,
    random_image,
    realm::{Realm, secure},
    run,
    run::{run_with_input, tool, wait},
};

const SIZE: u64 = 12 << 20;

/// A directory with an image in it that has data, holes, and zeroes of several lengths in its data.
struct Room {
    dir: TempDir,
    image: PathBuf,
}

impl Room {
    fn new() -> Self {
        let dir = tempdir().expect("a directory");
        let image = dir.path().join("image.raw");
        let file = File::create(&image).expect("a file");
        let put = |bytes: &[u8], offset| file.write_all_at(bytes, offset).expect("room");
        file.set_len(SIZE).expect("room");
        put(&random_bytes(100_000, 1), 0);
        put(&vec![0; 1 << 20], 1 << 20);
        let mut offset = 3 << 20;
        for run in 1..40_u64 {
            put(&random_bytes(4096, run), offset);
            put(&vec![0; 4096 * run as usize % 200_000], offset + 4096);
            offset += 4096 + 4096 * run % 200_000;
        }
        put(&random_bytes(5000, 3), 9 << 20);
        put(b"x", SIZE - 1);
        Self { dir, image }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("UTF-8").to_owned()
    }

    /// The file that a program is to write.
    fn copy_of(&self, who: Who) -> String {
        self.text(&format!("{who:?}.raw"))
    }
}

fn first_line(outcome: &Outcome) -> &str {
    outcome.stderr.lines().next().unwrap_or_default()
}

#[test]
fn the_version_has_the_same_shape() {
    for option in ["--version", "-V", "--vers"] {
        for who in BOTH {
            let outcome = run(&mut who.nbdcopy([option, "--bogus"])).success();
            let lines: Vec<_> = outcome.text().lines().collect();
            let [tool, library] = lines[..] else {
                panic!("{who:?}: {lines:?}")
            };
            let tool = tool.strip_prefix("nbdcopy ").expect("the tool's name");
            let library = library.strip_prefix("libnbd ").expect("the library's name");
            assert_eq!(tool, library);
            let numbers: Vec<u32> = tool.split('.').filter_map(|it| it.parse().ok()).collect();
            assert!(
                numbers.len() == 3 && numbers >= vec![1, 14],
                "{who:?}: {tool}"
            );
            assert_eq!(outcome.stderr, "");
        }
    }
}

#[test]
fn every_option_of_theirs_is_listed_in_their_order_and_explained() {
    let help = run(&mut Who::Ours.nbdcopy(["--help"])).success();
    for list in ["--long-options", "--short-options"] {
        let theirs = run(&mut Who::Theirs.nbdcopy([list])).success();
        let ours = run(&mut Who::Ours.nbdcopy([list])).success();
        let mut rest = ours.text().lines();
        for option in theirs.text().lines() {
            assert!(rest.any(|own| own == option), "{option} in {}", ours.text());
        }
        for option in ours.text().lines() {
            assert!(help.text().contains(option), "{option} is not explained");
        }
    }
}

#[test]
fn values_out_of_range_are_refused_under_the_options_name() {
    for (arguments, name) in [
        ("-C0", "connections"),
        ("-C x", "connections"),
        ("--connections=", "connections"),
        ("-R 0", "requests"),
        ("--requests=x", "requests"),
        ("--request-size=x", "request-size"),
        ("--request-size=5000", "request-size"),
        ("--request-size=2048", "request-size"),
        ("--request-size 67108864", "request-size"),
        ("--queue-size=x", "queue-size"),
        ("-S x", "sparse"),
        ("-S 256", "sparse"),
        ("--sparse 4097", "sparse"),
        ("-T x", "threads"),
        ("--progress=x", "progress"),
        ("--progress=-1", "progress"),
    ] {
        for who in BOTH {
            let arguments = words(arguments)
                .into_iter()
                .chain(["/nonexistent", "null:"]);
            let outcome = run(&mut who.nbdcopy(arguments));
            assert_eq!((outcome.code, outcome.text()), (1, ""), "{who:?} {name}");
            let begin = format!("nbdcopy: --{name}: ");
            assert!(
                first_line(&outcome).starts_with(&begin),
                "{who:?} {name}: {}",
                outcome.stderr
            );
        }
    }
}

#[test]
fn wrong_usage_is_told_in_the_same_words_and_never_ends_with_2() {
    for arguments in [
        "--bogus a b",
        "--bogus=1 a b",
        "-x a b",
        "-pvx a b",
        "-p3 a b",
        "a b -C",
        "a b --connections",
        "--flush=3 a b",
        "--re=1 a b",
        "--s a b",
    ] {
        let [theirs, ours] = BOTH.map(|who| run(&mut who.nbdcopy(words(arguments))));
        assert_eq!((theirs.code, ours.code), (1, 1), "{arguments}");
        assert_eq!(first_line(&ours), first_line(&theirs), "{arguments}");
    }
    for arguments in [
        "",
        "null:",
        "null: null:",
        "/dev/null null: null:",
        "[ a",
        "-- [ nbdkit null",
        "-- [ ] null:",
        "/nonexistent",
    ] {
        for who in BOTH {
            let outcome = run(&mut who.nbdcopy(words(arguments)));
            assert_eq!(
                (outcome.code, outcome.text()),
                (1, ""),
                "{who:?} {arguments}"
            );
            assert!(!outcome.stderr.is_empty(), "{who:?} {arguments}");
        }
    }
}

#[test]
fn every_option_leaves_the_same_image_and_no_more_on_disk() {
    let room = Room::new();
    let image = room.text("image.raw");
    let server = format!("[ nbdkit file {image} ]");
    let whole = |blocks: u64| blocks >= SIZE;
    for (options, sources) in [
        ("", &[&image, &server][..]),
        ("-C1", &[&server]),
        ("-C 4", &[&image]),
        ("--connections=2", &[&server]),
        ("-R 1", &[&server]),
        ("--requests=64 --flush", &[&server]),
        ("--request-size=32768", &[&image]),
        ("--request-size=4096 -R 3", &[&server]),
        ("--queue-size=1048576", &[&server]),
        ("-T1", &[&server]),
        ("--threads 0", &[&image]),
        ("--synchronous", &[&image, &server]),
        ("--synchronous --no-extents", &[&server]),
        ("--no-extents", &[&image, &server]),
        ("--no-extents -S 0", &[&image, &server]),
        ("-S 0", &[&image, &server]),
        ("-S 4096", &[&server]),
        ("-S 65536", &[&image, &server]),
        ("-S 65536 --no-extents", &[&server]),
        ("--sparse=512", &[&server]),
        ("--destination-is-zero", &[&image]),
        ("--target-is-zero", &[&server]),
    ] {
        for source in sources {
            let [theirs, ours] = BOTH.map(|who| {
                let copy = room.copy_of(who);
                let _ = fs::remove_file(&copy);
                let arguments = format!("{options} -- {source} {copy}");
                let outcome = run(&mut who.nbdcopy(words(&arguments))).success();
                assert_eq!((outcome.text(), &*outcome.stderr), ("", ""), "{arguments}");
                assert_same(&room.image, Path::new(&copy));
                allocated(Path::new(&copy))
            });
            assert!(
                ours <= theirs,
                "{options} {source}: {ours}, theirs {theirs}"
            );
            assert_eq!(whole(ours), whole(theirs), "{options} {source}");
        }
    }
}

#[test]
fn a_server_is_sent_what_theirs_sends_when_the_sizes_are_given() {
    let data = "data=1 @1073741823 1 @4294967295 1 @4294967296 1";
    let small = "data=1 @4194303 1";
    for (options, data, size) in [
        ("-S 0 --request-size=32768", data, "7E"),
        ("--allocated --request-size=32768", data, "7E"),
        ("--destination-is-zero --request-size=32768", data, "7E"),
        ("--no-extents -S 0 --request-size=1048576", small, "4M"),
        ("--no-extents --request-size=262144", small, "4M"),
        (
            "--no-extents --synchronous --request-size=262144",
            small,
            "4M",
        ),
    ] {
        let [theirs, ours] = BOTH.map(|who| {
            let dir = tempdir().expect("a directory");
            let log = dir.path().join("log");
            let write = |what: &str| format!("{what} echo \"$@\" >> {}", log.display());
            let (pwrite, zero) = (write("pwrite=cat >/dev/null;"), write("zero="));
            let trim = write("trim=");
            let size = format!("get_size=echo {size}");
            let server = ["--", "[", "nbdkit", "data", data, "]"];
            let eval = ["[", "nbdkit", "eval", &size, &pwrite, &zero, &trim, "]"];
            let all = words(options).into_iter().chain(server).chain(eval);
            run(&mut who.nbdcopy(all)).success();
            let text = fs::read_to_string(&log).expect("requests");
            let mut lines: Vec<_> = text.lines().map(without_handle).collect();
            lines.sort();
            lines
        });
        assert_eq!(ours, theirs, "{options}");
    }
}

/// A line of the log without the number of the connection.
fn without_handle(line: &str) -> String {
    line.split(' ')
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn options_stand_before_between_and_behind_the_operands() {
    let room = Room::new();
    for (template, lines) in [
        ("IN OUT --requests=64 --flush --progress=1", true),
        ("--requests=64 IN --flush OUT --progress=1", true),
        ("--req=64 IN --flu OUT --prog=1", false),
        ("-R64 -C 4 --requ 1 --dest IN OUT", false),
        ("-vvC4 IN OUT", false),
        ("-vR 64 IN -- OUT", false),
        ("--target --synch --al --no IN OUT", false),
    ] {
        for who in BOTH {
            let copy = room.copy_of(who);
            let arguments = template
                .replace("IN", room.image.to_str().expect("UTF-8"))
                .replace("OUT", &copy);
            let outcome = run(&mut who.nbdcopy(words(&arguments)));
            // Both names of a size begin so.
            let ambiguous = template.contains("--req=") || template.contains("--requ ");
            assert_eq!(outcome.code, i32::from(ambiguous), "{who:?}: {arguments}");
            if !ambiguous {
                assert_same(&room.image, Path::new(&copy));
                fs::remove_file(&copy).expect("there");
            }
            assert_eq!(outcome.text().ends_with("100/100\n"), lines, "{arguments}");
        }
    }
}

#[test]
fn what_stands_in_brackets_belongs_to_the_server_with_and_without_two_dashes() {
    let room = Room::new();
    let (image, copy) = (room.text("image.raw"), room.text("copy.raw"));
    for arguments in [
        format!("-- [ nbdkit -r file {image} ] {copy}"),
        format!("[ nbdkit -r file {image} ] {copy} --flush"),
        format!("-- {image} [ nbdkit --exit-with-parent file {copy} ]"),
        format!("-- [ qemu-nbd -r -f raw {image} ] [ nbdkit file {copy} ]"),
    ] {
        let outcome = run(&mut Who::Ours.nbdcopy(words(&arguments))).success();
        assert_eq!(outcome.stderr, "", "{arguments}");
        assert_same(&room.image, Path::new(&copy));
        File::create(&copy)
            .and_then(|file| file.set_len(SIZE))
            .expect("emptied");
    }
}

#[test]
fn an_allocated_copy_has_no_holes() {
    let room = Room::new();
    let (image, copy) = (room.text("image.raw"), room.text("copy.raw"));
    let server = format!("[ nbdkit file {image} ]");
    for source in [&image, &server] {
        let arguments = format!("--allocated -- {source} {copy}");
        run(&mut Who::Ours.nbdcopy(words(&arguments))).success();
        assert_same(&room.image, Path::new(&copy));
        let disk = allocated(Path::new(&copy));
        assert!(disk >= SIZE, "{source}: {disk} bytes on disk");
        fs::remove_file(&copy).expect("there");
    }
}

#[test]
fn zeroes_are_left_alone_in_a_destination_that_is_zero() {
    let room = Room::new();
    let copy = room.text("copy.raw");
    for (options, untouched) in [("--target-is-zero", true), ("", false)] {
        // It is not, so that it can be seen what was left alone.
        fs::write(&copy, vec![0xff; SIZE as usize]).expect("room");
        let peer = Peer::qemu_nbd(room.dir.path(), "raw", Path::new(&copy), &[]);
        let image = room.text("image.raw");
        let uri = peer.uri();
        run(&mut Who::Ours.nbdcopy(words(options).into_iter().chain([&*image, &*uri]))).success();
        drop(peer);
        let _ = fs::remove_file(room.path("qemu-nbd.sock"));
        let bytes = fs::read(&copy).expect("there");
        assert_eq!(bytes[7 << 20] == 0xff, untouched, "{options}");
    }
}

#[test]
fn standard_input_and_output_are_streams_or_files() {
    let room = Room::new();
    let bytes = fs::read(&room.image).expect("readable");
    for who in BOTH {
        let image = room.text("image.raw");
        let outcome = run(&mut who.nbdcopy([&*image, "-"])).success();
        assert!(outcome.stdout == bytes, "{who:?}");
        let (uri, copy) = ("[ nbdkit --exit-with-parent file COPY ]", room.copy_of(who));
        File::create(&copy)
            .and_then(|file| file.set_len(SIZE))
            .expect("a file");
        let arguments = format!("-- - {}", uri.replace("COPY", &copy));
        run_with_input(&mut who.nbdcopy(words(&arguments)), &bytes).success();
        assert_same(&room.image, Path::new(&copy));

        let redirected = room.text("redirected.raw");
        let (from, to) = (File::open(&room.image), File::create(&redirected));
        let mut command = who.nbdcopy(["-", "-"]);
        command
            .stdin(from.expect("readable"))
            .stdout(to.expect("writable"));
        assert!(command.status().expect("it runs").success());
        assert_same(&room.image, Path::new(&redirected));
        assert!(allocated(Path::new(&redirected)) < SIZE / 2, "{who:?}");
    }
    // What stands in the file already stays, and what comes afterwards stands behind the image.
    let script = "{ echo before; NBDCOPY IMAGE -; echo behind; } > OUT; NBDCOPY IMAGE - >> OUT; \\
                  { NBDCOPY IMAGE -; echo end; } > SPARSE";
    let nbdcopy = Who::Ours.path("nbdcopy", room.dir.path());
    let script = script
        .replace("NBDCOPY", nbdcopy.to_str().expect("UTF-8"))
        .replace("IMAGE", &room.text("image.raw"))
        .replace("OUT", &room.text("out"))
        .replace("SPARSE", &room.text("sparse"));
    run(Command::new("sh").args(["-c", &script])).success();
    let all = [b"before\n", &*bytes, b"behind\n", &*bytes].concat();
    assert!(fs::read(room.path("out")).expect("there") == all);
    assert!(fs::read(room.path("sparse")).expect("there") == [&*bytes, b"end\n"].concat());
}

#[test]
fn destinations_are_emptied_written_in_place_or_fed() {
    let room = Room::new();
    let (image, small) = (room.text("image.raw"), room.path("small.raw"));
    random_image(&small, 70_001);
    for who in BOTH {
        let copy = room.copy_of(who);
        run(&mut who.nbdcopy([&image, &copy])).success();
        run(&mut who.nbdcopy([small.as_os_str(), copy.as_ref()])).success();
        assert_same(&small, Path::new(&copy));

        run(&mut who.nbdcopy([&*image, "/dev/null"])).success();
        assert!(
            fs::metadata("/dev/null")
                .expect("there")
                .file_type()
                .is_char_device()
        );
        run(&mut who.nbdcopy([&*image, "null:"])).success();

        let pipe = room.text(&format!("{who:?}.pipe"));
        tool("mkfifo", &[&pipe]);
        let fed = room.path("fed.raw");
        let mut reader = Command::new("cat")
            .arg(&pipe)
            .stdout(File::create(&fed).expect("a file"))
            .spawn()
            .expect("cat");
        run(&mut who.nbdcopy([&image, &pipe])).success();
        assert_eq!(wait(&mut reader), 0);
        assert_same(&room.image, &fed);
    }
}

#[test]
fn an_export_may_be_copied_onto_itself_and_a_file_may_not() {
    let room = Room::new();
    let uri = format!("nbdkit -U - file {} --run", room.image.display());
    for who in BOTH {
        let path = who.path("nbdcopy", room.dir.path());
        let script = format!("{} \"$uri\" \"$uri\"", path.display());
        let (before, mut command) = (fs::read(&room.image), Command::new("nbdkit"));
        let arguments = words(&uri).into_iter().skip(1).chain([&*script]);
        run(command.args(arguments)).success();
        assert!(fs::read(&room.image).expect("there") == before.expect("there"));
    }
    let before = fs::read(&room.image).expect("there");
    let image = room.text("image.raw");
    run(&mut Who::Ours.nbdcopy([&image, &image])).failure(1, &["nbdcopy: ", "same image"]);
    assert!(fs::read(&image).expect("there") == before);
}

#[test]
fn the_same_uris_go_through_tls_and_bad_certificates_are_refused() {
    let realm = Realm::new();
    let image = realm.image();
    let copy = realm.path("copy.raw");
    let server = ["file", image.to_str().expect("UTF-8")];
    for (flaw, code) in [(Flaw::None, 0), (Flaw::Expired, 1), (Flaw::SelfSigned, 1)] {
        let peer = realm.nbdkit(flaw, &server);
        let uri = secure(&peer.uri(), &realm.trust());
        // Old ones of theirs believe any certificate that comes over a unix socket.
        for who in BOTH
            .into_iter()
            .filter(|who| code == 0 || *who == Who::Ours)
        {
            let outcome = run(who.nbdcopy([&uri]).arg(&copy));
            assert_eq!(outcome.code, code, "{who:?}: {}", outcome.stderr);
            if code == 0 {
                assert_same(&image, &copy);
                fs::remove_file(&copy).expect("there");
            }
            assert!(!copy.exists());
        }
        drop(peer);
        fs::remove_file(realm.path("nbdkit.sock")).expect("there");
    }
}
