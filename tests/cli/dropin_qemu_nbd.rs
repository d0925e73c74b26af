//! Under the name qemu-nbd the program speaks its command line: each option beside the real tool, looked at by
//! other people's clients.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tempfile::{TempDir, tempdir};

use crate::support::{
    Outcome, allocated, assert_same,
    certificates::Flaw,
    dropin::{BOTH, Who, words},
    random_image,
    realm::{Realm, secure},
    run,
    run::{signal, tool, until, wait},
    sparse_image,
};

/// A server on a unix socket in a directory of its own.
struct Served {
    child: Child,
    dir: TempDir,
}

impl Served {
    /// `qemu-nbd` with `arguments`, in which IMAGE is a sparse image of 6 MiB in the directory.
    fn start(who: Who, arguments: &str) -> Self {
        let dir = tempdir().expect("a directory");
        let image = dir.path().join("image");
        sparse_image(&image, 6 << 20);
        let arguments = arguments.replace("IMAGE", image.to_str().expect("UTF-8"));
        let socket = dir.path().join("socket");
        let child = who
            .tool("qemu-nbd", ["-k".as_ref(), socket.as_os_str()])
            .args(words(&arguments))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a program");
        let served = Self { child, dir };
        // A connection that says nothing is no client that it would end with.
        until("the server", || UnixStream::connect(&socket).is_ok());
        served
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn uri(&self, export: &str) -> String {
        format!(
            "nbd+unix:///{export}?socket={}",
            self.path("socket").display()
        )
    }

    /// What `nbdinfo` says.
    fn info(&self, arguments: &str, export: &str) -> Outcome {
        let mut command = Command::new("nbdinfo");
        command.args(words(arguments)).arg(self.uri(export));
        run(&mut command)
    }

    fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child of ours").is_none()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run_as(who: Who, arguments: &str) -> Outcome {
    run(&mut who.tool("qemu-nbd", words(arguments)))
}

#[test]
fn an_image_is_read_and_written() {
    for who in BOTH {
        let served = Served::start(who, "-f raw IMAGE");
        let (image, copy) = (served.path("image"), served.path("copy"));
        let before = fs::read(&image).expect("there");
        let copy = copy.to_str().expect("UTF-8");
        tool("nbdcopy", &[&served.uri(""), copy]);
        assert!(fs::read(copy).expect("there") == before);
    }
    for who in BOTH {
        let served = Served::start(who, "-f raw IMAGE");
        let new = served.path("new");
        random_image(&new, 6 << 20);
        tool(
            "nbdcopy",
            &["--flush", new.to_str().expect("UTF-8"), &served.uri("")],
        );
        assert_same(&new, &served.path("image"));
    }
}

#[test]
fn what_an_export_is_and_can_agrees() {
    for arguments in [
        "-f raw -t IMAGE",
        "-f raw -t -r IMAGE",
        "-f raw -t -e 3 IMAGE",
        "-f raw -t --shared=0 --read-only IMAGE",
        "-t --image-opts driver=raw,file.driver=file,file.filename=IMAGE",
        "-t --image-opts driver=raw,read-only=on,file.filename=IMAGE -r",
        "-t -f raw --discard=unmap --cache=none --aio=threads file:IMAGE",
        "-tnf raw IMAGE",
    ] {
        let [theirs, ours] = BOTH.map(|who| {
            let served = Served::start(who, arguments);
            let is = |what: &str| served.info(&format!("--{what}"), "").code;
            [
                is("size"),
                is("is read-only"),
                is("can write"),
                is("can trim"),
                is("can zero"),
                is("can df"),
                is("can multi-conn"),
                is("is tls"),
            ]
        });
        assert_eq!(ours, theirs, "{arguments}");
    }
}

#[test]
fn an_export_has_the_name_and_the_description_that_it_was_given() {
    for who in BOTH {
        let served = Served::start(who, "-t -f raw -x the/disk -D a~description IMAGE");
        let list = served.info("--list --json", "").success();
        assert!(list.text().contains("\"the/disk\""), "{}", list.text());
        assert!(list.text().contains("a~description"), "{}", list.text());
        assert_eq!(
            served.info("--size", "the/disk").success().text(),
            "6291456\n"
        );
        assert_eq!(served.info("--size", "another").code, 1);
    }
}

#[test]
fn a_part_of_an_image_is_served_alone() {
    for arguments in [
        "-t -f raw -o 3145728 IMAGE",
        "-t -f raw --offset=0x300000 IMAGE",
        "-t --image-opts driver=raw,offset=3M,file.driver=file,file.filename=IMAGE",
        "-t --image-opts driver=raw,offset=3M,size=1M,file.filename=IMAGE",
        "-t -o 1M --image-opts driver=raw,offset=2M,file.filename=IMAGE",
    ] {
        let arguments = arguments.replace("-o 1M", "-o 1048576");
        let [theirs, ours] = BOTH.map(|who| {
            let served = Served::start(who, &arguments);
            let (copy, new) = (served.path("copy"), served.path("new"));
            tool("nbdcopy", &[&served.uri(""), copy.to_str().expect("UTF-8")]);
            let before = fs::read(&copy).expect("there");
            random_image(&new, before.len());
            tool("nbdcopy", &[new.to_str().expect("UTF-8"), &served.uri("")]);
            (before, fs::read(served.path("image")).expect("there"))
        });
        assert_eq!(ours.0.len(), theirs.0.len(), "{arguments}");
        assert!(ours == theirs, "{arguments}");
    }
}

#[test]
fn tls_is_demanded_where_credentials_are_given() {
    let realm = Realm::new();
    let image = realm.image();
    let server = realm.server(Flaw::None);
    let (trust, member) = (realm.trust(), realm.member());
    for who in BOTH {
        for (verify, stranger_may) in [("yes", false), ("no", true)] {
            let socket = realm.path("tls.sock");
            let object = format!(
                "tls-creds-x509,id=tls0,endpoint=server,verify-peer={verify},dir={}",
                server.display()
            );
            let child = who
                .tool("qemu-nbd", ["-t", "-f", "raw", "--object", &object])
                .args(["--tls-creds", "tls0", "-k"])
                .arg(&socket)
                .arg(&image)
                .stderr(Stdio::null())
                .spawn()
                .expect("a program");
            let _served = Served {
                child,
                dir: tempdir().expect("a directory"),
            };
            until("the server", || UnixStream::connect(&socket).is_ok());
            let plain = format!("nbd+unix:///?socket={}", socket.display());
            let size = |uri: &str| {
                let outcome = run(Command::new("nbdinfo").args(["--size", uri]));
                (outcome.code == 0).then(|| outcome.text().trim().to_owned())
            };
            let known = Some((24 << 20).to_string());
            assert_eq!(size(&plain), None, "{who:?}");
            assert_eq!(size(&secure(&plain, &member)), known, "{who:?} {verify}");
            let stranger = size(&secure(&plain, &trust));
            assert_eq!(stranger, known.filter(|_| stranger_may), "{who:?} {verify}");
            // Both as clients of this server.
            let directory = member.replace("tls-certificates=", "");
            let lists = BOTH.map(|who| {
                let object = format!("tls-creds-x509,id=c,endpoint=client,dir={directory}");
                let mut list =
                    who.tool("qemu-nbd", ["-L", "--object", &object, "--tls-creds", "c"]);
                let list = list
                    .args(["--tls-hostname", "localhost", "-k"])
                    .arg(&socket);
                run(list).success().text().to_owned()
            });
            assert_eq!(lists[1], lists[0]);
            drop(fs::remove_file(&socket));
        }
    }
}

#[test]
fn it_ends_with_its_last_client_and_not_before_there_was_one() {
    for who in BOTH {
        let mut served = Served::start(who, "-f raw IMAGE");
        // A list uses no export.
        served.info("--list", "").success();
        assert!(served.is_running());
        served.info("--size", "").success();
        assert_eq!(wait(&mut served.child), 0, "{who:?}");
        assert!(!served.path("socket").exists(), "{who:?}");
    }
}

#[test]
fn it_stays_where_it_is_told_to_until_it_is_asked_to_end() {
    for who in BOTH {
        let mut served = Served::start(who, "--persistent -f raw IMAGE");
        for _ in 0..3 {
            served.info("--size", "").success();
        }
        assert!(served.is_running());
        signal(&served.child, "TERM");
        assert_eq!(wait(&mut served.child), 0, "{who:?}");
        assert!(!served.path("socket").exists(), "{who:?}");
    }
}

/// Whether a server says something to a client within a moment.
fn is_greeted(socket: &Path) -> Option<UnixStream> {
    use std::{io::Read, time::Duration};
    let mut client = UnixStream::connect(socket).ok()?;
    let moment = Some(Duration::from_millis(300));
    client.set_read_timeout(moment).expect("an option");
    client.read_exact(&mut [0; 18]).ok()?;
    Some(client)
}

#[test]
fn no_more_clients_are_served_at_a_time_than_it_shares_with() {
    for who in BOTH {
        for (option, count) in [("", 1), ("-e 2", 2), ("--shared=3", 3)] {
            let served = Served::start(who, &format!("-t -f raw {option} IMAGE"));
            let socket = served.path("socket");
            let mut clients: Vec<_> = Vec::new();
            until("all clients", || is_greeted(&socket).is_some());
            while let Some(client) = is_greeted(&socket) {
                clients.push(client);
                assert!(clients.len() <= count, "{who:?} {option}");
            }
            // One that was tried before may not have been given up yet.
            assert!(!clients.is_empty(), "{who:?} {option}");
            clients.clear();
            until("a place", || is_greeted(&socket).is_some());
        }
    }
}

#[test]
fn trims_and_zeroes_give_space_back_only_where_they_may() {
    for who in BOTH {
        for (option, gives_back) in [
            ("", false),
            ("--discard=ignore", false),
            ("--discard=unmap", true),
        ] {
            let served = Served::start(who, &format!("-t -f raw {option} IMAGE"));
            let image = served.path("image");
            random_image(&image, 6 << 20);
            let full = allocated(&image);
            let uri = served.uri("");
            tool(
                "qemu-io",
                &[
                    "-f",
                    "raw",
                    "-c",
                    "discard 0 2M",
                    "-c",
                    "write -z -u 2M 2M",
                    "-c",
                    "flush",
                    &uri,
                ],
            );
            let left = allocated(&image);
            match gives_back {
                true => assert!(left <= full - (4 << 20), "{who:?}: {left}"),
                false => assert!(left >= full - (2 << 20), "{who:?} {option}: {left}"),
            }
            let bytes = fs::read(&image).expect("there");
            assert!(bytes[2 << 20..4 << 20].iter().all(|byte| *byte == 0));
        }
    }
}

#[test]
fn formats_that_are_not_read_are_refused_by_name_and_not_served_as_bytes() {
    let dir = tempdir().expect("a directory");
    for format in ["qed", "luks", "parallels"] {
        let image = dir.path().join(format);
        let name = image.to_str().expect("UTF-8");
        let secret = ["--object", "secret,id=s,data=x"];
        let options = match format {
            "luks" => &["-o", "key-secret=s,iter-time=10"][..],
            _ => &[],
        };
        let mut create = Command::new("qemu-img");
        create
            .args(["create", "-q", "-f", format])
            .args(secret)
            .args(options);
        run(create.args([name, "4M"])).success();
        let refused = |arguments: &str| {
            run_as(Who::Ours, arguments)
                .failure(1, &["qemu-nbd: ", &format!("{format} is not supported")]);
        };
        let socket = dir.path().join("socket");
        refused(&format!("-k {} {name}", socket.display()));
        refused(&format!("-k {} -f {format} {name}", socket.display()));
        assert!(!socket.exists());
    }
}

#[test]
fn an_image_without_a_format_is_served_as_bytes_with_a_warning() {
    for who in BOTH {
        let dir = tempdir().expect("a directory");
        let (image, socket) = (dir.path().join("image"), dir.path().join("socket"));
        sparse_image(&image, 1 << 20);
        let child = who
            .tool(
                "qemu-nbd",
                ["-k".as_ref(), socket.as_os_str(), image.as_os_str()],
            )
            .stderr(Stdio::piped())
            .spawn()
            .expect("a program");
        until("the server", || socket.exists());
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        assert_eq!(tool("nbdinfo", &["--size", &uri]), "1048576\n");
        let outcome = crate::support::run::finish(child).success();
        assert!(
            outcome.stderr.to_lowercase().contains("warning: "),
            "{}",
            outcome.stderr
        );
    }
}

#[test]
fn it_goes_to_the_background_and_writes_its_number() {
    for who in BOTH {
        let dir = tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
        sparse_image(path("image").as_ref(), 1 << 20);
        let (socket, pidfile) = (path("socket"), path("pid"));
        let arguments = format!(
            "--fork --pid-file={pidfile} -t -f raw -k {socket} {}",
            path("image")
        );
        // It can be used as soon as the command has ended.
        run_as(who, &arguments).success();
        let number = fs::read_to_string(&pidfile).expect("there");
        let number: i32 = number.trim().parse().expect("a number");
        let uri = format!("nbd+unix:///?socket={socket}");
        assert_eq!(tool("nbdinfo", &["--size", &uri]), "1048576\n");
        tool("kill", &[&number.to_string()]);
        until("the end", || !Path::new(&socket).exists());
    }
}

#[test]
fn the_exports_of_a_server_are_listed_in_the_same_words() {
    let dir = tempdir().expect("a directory");
    let files = dir.path().join("files");
    fs::create_dir(&files).expect("a directory");
    sparse_image(&files.join("one"), 1 << 20);
    sparse_image(&files.join("two"), 2 << 20);
    let directory = format!("dir={}", files.display());
    let image = files.join("one");
    let image = image.to_str().expect("UTF-8");
    let socket = dir.path().join("a.sock");
    let socket = socket.to_str().expect("UTF-8");
    let policy = "-f -U SOCKET --filter=blocksize-policy memory 10M blocksize-minimum=512 \
                  blocksize-preferred=4096 blocksize-maximum=1M"
        .replace("SOCKET", socket);
    for (program, arguments) in [
        ("nbdkit", vec!["-f", "-U", socket, "file", &*directory]),
        (
            "nbdkit",
            vec!["-f", "-r", "-U", socket, "--no-sr", "null", "1T"],
        ),
        ("nbdkit", words(&policy)),
        (
            "qemu-nbd",
            vec![
                "-t",
                "-k",
                socket,
                "-x",
                "a b",
                "-D",
                "some words",
                "-A",
                "-f",
                "raw",
                image,
            ],
        ),
        (
            "qemu-nbd",
            vec!["-t", "-k", socket, "-r", "-e0", "-f", "raw", image],
        ),
    ] {
        let child = Command::new(program)
            .args(&arguments)
            .stdout(Stdio::null())
            .spawn()
            .expect("a program");
        let mut served = Served {
            child,
            dir: tempdir().expect("a directory"),
        };
        until("the server", || UnixStream::connect(socket).is_ok());
        let [theirs, ours] = BOTH.map(|who| run_as(who, &format!("-L -k {socket}")).success());
        assert_eq!(ours.text(), theirs.text(), "{arguments:?}");
        assert!(ours.text().starts_with("exports available: "));
        let _ = served.child.kill();
        let _ = served.child.wait();
        let _ = fs::remove_file(socket);
    }
}

#[test]
fn command_lines_that_make_no_sense_are_refused_by_both() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image");
    sparse_image(&image, 1 << 20);
    let nobody = dir.path().join("nobody");
    for arguments in [
        "",
        "IMAGE IMAGE",
        "--bogus IMAGE",
        "-Z IMAGE",
        "-e x IMAGE",
        "-e -1 IMAGE",
        "-o x IMAGE",
        "-o 20M IMAGE",
        "-o -1 -f raw IMAGE",
        "-p x -f raw IMAGE",
        "-k relative -f raw IMAGE",
        "/nonexistent -k NOBODY",
        "-f bogus IMAGE",
        "-f raw -B bitmap -k NOBODY IMAGE",
        "--cache=bogus IMAGE",
        "-n --cache=none IMAGE",
        "--cache=none --cache=none IMAGE",
        "--aio=bogus IMAGE",
        "--discard=bogus IMAGE",
        "--detect-zeroes=bogus IMAGE",
        "--detect-zeroes=unmap IMAGE",
        "--image-opts -f raw driver=raw,file.filename=IMAGE",
        "--image-opts driver=bogus,file.filename=IMAGE",
        "--image-opts driver=raw,file.filename=IMAGE,bogus=1",
        "--tls-creds nobody IMAGE",
        "--tls-hostname host IMAGE",
        "--tls-authz auth IMAGE",
        "--object tls-creds-x509,id=t -f raw IMAGE",
        "--object tls-creds-x509 -f raw IMAGE",
        "--object bogus,id=t -f raw IMAGE",
        "--handshake-limit=x IMAGE",
        "-L IMAGE",
        "-L -x name",
        "-L -f raw",
        "-L -r",
        "-L -k NOBODY",
        "-c /dev/nonexistent -f raw IMAGE",
        "-d",
        "-d /dev/nonexistent",
        "-l snapshot -f raw IMAGE",
        "--pid-file",
        "-k /nonexistent/socket -f raw IMAGE",
    ] {
        let arguments = arguments
            .replace("IMAGE", image.to_str().expect("UTF-8"))
            .replace("NOBODY", nobody.to_str().expect("UTF-8"));
        for who in BOTH {
            let outcome = run_as(who, &arguments);
            assert_eq!(outcome.code, 1, "{who:?} {arguments}: {}", outcome.stderr);
            assert!(
                outcome.stderr.contains("qemu-nbd: "),
                "{who:?} {arguments}: {}",
                outcome.stderr
            );
        }
    }
}

#[test]
fn what_would_change_what_is_served_and_is_not_there_is_refused_by_name() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image");
    sparse_image(&image, 1 << 20);
    for (arguments, named) in [
        ("--cache=writethrough", "--cache=writethrough"),
        ("--cache=directsync", "--cache=directsync"),
    ] {
        let arguments = format!("-f raw {arguments} {}", image.display());
        run_as(Who::Ours, &arguments).failure(1, &["qemu-nbd: ", named, "not supported"]);
    }
}

#[test]
fn it_says_which_version_it_stands_in_for() {
    for who in BOTH {
        let version = run_as(who, "--version").success();
        let first = version.text().lines().next().expect("a line").to_owned();
        assert!(first.starts_with("qemu-nbd 10.0.2 ("), "{first}");
        assert_eq!(run_as(who, "-V").success().text(), version.text());
    }
    let theirs = run_as(Who::Theirs, "--help").success();
    let ours = run_as(Who::Ours, "-h").success();
    for option in theirs
        .text()
        .split([' ', '\n', ',', '=', '['])
        .filter(|word| word.starts_with("--"))
    {
        // What is refused is not advertised.
        let refused = ["--connect", "--disconnect", "--tls-authz"];
        assert_eq!(
            ours.text().contains(option),
            !refused.contains(&option),
            "{option}"
        );
    }
}

#[test]
fn a_socket_may_be_handed_over() {
    for who in BOTH {
        let dir = tempdir().expect("a directory");
        let image = dir.path().join("image");
        sparse_image(&image, 1 << 20);
        let program = who.path("qemu-nbd", dir.path());
        let (program, image) = (
            program.to_str().expect("UTF-8"),
            image.to_str().expect("UTF-8"),
        );
        // It hands its server a socket as systemd does.
        let outcome =
            run(Command::new("nbdinfo")
                .args(["--size", "--", "[", program, "-f", "raw", image, "]"]));
        assert_eq!(outcome.success().text(), "1048576\n");
        let refused = run(Command::new("nbdinfo").args([
            "--size", "--", "[", program, "-p", "1", "-f", "raw", image, "]",
        ]));
        assert!(
            refused.stderr.contains("socket activation"),
            "{}",
            refused.stderr
        );
    }
}
