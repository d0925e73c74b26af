//! Under the name nbdkit the program speaks its command line: options, probing, captive and background servers,
//! each beside the real one.

use std::{
    fs,
    io::{Read, Write},
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::CommandExt},
    },
    path::Path,
    process::{Child, Command, Stdio},
};

use tempfile::tempdir;

use crate::support::{
    Outcome,
    certificates::Flaw,
    dropin::{BOTH, Who, captive, words},
    random_image,
    realm::Realm,
    run,
    run::{finish, until, wait},
};

fn nbdkit(who: Who, arguments: &str) -> Outcome {
    run(&mut who.tool("nbdkit", words(arguments)))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// The lines of `text` up to their `=`.
fn keys(text: &str) -> Vec<&str> {
    let lines = text.lines();
    lines
        .map(|line| line.split_once('=').map_or(line, |(key, _)| key))
        .collect()
}

#[test]
fn versions_have_the_same_shape() {
    for (arguments, tools) in [
        ("--version", &["nbdkit"][..]),
        ("-V", &["nbdkit"]),
        ("memory --version", &["nbdkit", "memory"]),
        ("--exit-with-parent --version", &["nbdkit"]),
        ("--version null", &["nbdkit", "null"]),
    ] {
        for who in BOTH {
            let outcome = nbdkit(who, arguments).success();
            let lines: Vec<_> = outcome.text().lines().collect();
            assert_eq!(lines.len(), tools.len(), "{who:?}: {lines:?}");
            for (line, tool) in lines.iter().zip(tools) {
                let version = line.strip_prefix(&format!("{tool} ")).expect(line);
                let numbers: Vec<u32> = version.split('.').flat_map(str::parse).collect();
                assert!(numbers >= vec![1, 32] && numbers.len() == 3, "{version}");
            }
        }
    }
}

#[test]
fn every_option_of_theirs_is_listed_and_explained() {
    let help = nbdkit(Who::Ours, "--help").success();
    for list in ["--long-options", "--short-options"] {
        let theirs = nbdkit(Who::Theirs, list).success();
        let ours = nbdkit(Who::Ours, list).success();
        let ours: Vec<_> = ours.text().lines().collect();
        for option in theirs.text().lines() {
            assert!(ours.contains(&option), "{option}");
        }
        for option in ours {
            assert!(help.text().contains(option), "{option} is not explained");
        }
    }
}

#[test]
fn probing_finds_the_keys_that_scripts_look_for() {
    let theirs = nbdkit(Who::Theirs, "--dump-config").success();
    let ours = nbdkit(Who::Ours, "--dump-config").success();
    assert_eq!(keys(ours.text()), keys(theirs.text()));
    let lines: Vec<_> = ours.text().lines().collect();
    for line in [
        "name=nbdkit",
        "selinux=yes",
        "tls=yes",
        "exit_with_parent=yes",
    ] {
        assert!(lines.contains(&line), "{line}");
    }
    for plugin in words("file memory null pattern data split nbd sh eval sparse-random zero") {
        let [theirs, ours] = BOTH.map(|who| {
            let outcome = nbdkit(who, &format!("{plugin} --dump-plugin")).success();
            outcome.text().to_owned()
        });
        let wanted = words("path name version api_version max_thread_model thread_model");
        let ours = keys(&ours);
        for key in wanted {
            assert!(ours.contains(&key), "{plugin}: {key}");
        }
        let magic = |keys: &[&str]| keys.contains(&"magic_config_key");
        assert_eq!(magic(&ours), magic(&keys(&theirs)), "{plugin}");
        let help = nbdkit(Who::Ours, &format!("{plugin} --help")).success();
        assert!(help.text().contains(&format!("plugin: {plugin}\n")));
    }
}

#[test]
fn what_both_refuse_ends_with_1_and_an_error() {
    let room = tempdir().expect("a directory");
    let missing = room.path().join("missing/x");
    let missing = text(&missing);
    for arguments in [
        "",
        "--bogus",
        "--dump-plugin",
        "bogus",
        "./nbdkit-bogus-plugin.so",
        "bogus --version",
        "--version --filter=bogus null",
        "-f -U - file",
        "-f -U - file bogus=1",
        &format!("-f -U - file {missing}"),
        &format!("-f -U - file dir={missing}"),
        "-f -U - file /etc/passwd dir=/etc",
        "-f -U - file /etc/passwd fadvise=x",
        "-f -U - memory",
        "-f -U - memory 1x",
        "-f -U - memory -1",
        "-f -U - memory 1M extra",
        "-f -U - memory 1M allocator=x",
        "-f -U - null 1M bogus=1",
        "-f -U - data",
        "-f -U - data 1 raw=x",
        "-f -U - data <",
        "-f -U - sparse-random 1M percent=101",
        "-f -U - nbd",
        "-f -U - nbd socket=/x uri=nbd://x",
        "-f -U - nbd socket=/x port=1",
        "-f -U - nbd socket=/x tls=x",
        "-f -U - sh",
        &format!("-f -U - sh {missing}"),
        "-f -U - eval x=1",
        "-D foo -f -U - null",
        "--log=x null",
        "--tls=x null",
        "--tls=require --tls-certificates=/nonexistent -f -U - null",
        "-s -U x null",
        "-s -p 1 null",
        "-U - -p 1234 null",
        "--vsock -U x null",
        "-t x null",
        "-t -1 null",
        "--mask-handshake=zz null",
        "--vsock -p x null",
        "-u no-such-user -f -U - null",
        "-g no-such-group -f -U - null",
        &format!("-f -U {missing} null"),
        &format!("-f -U - -P {missing} null"),
    ] {
        for who in BOTH {
            let outcome = nbdkit(who, arguments);
            assert_eq!(outcome.code, 1, "{who:?} {arguments}: {}", outcome.stderr);
            assert!(outcome.stderr.starts_with("nbdkit: ") || who == Who::Theirs);
        }
        let ours = nbdkit(Who::Ours, arguments);
        assert!(
            ours.stderr.starts_with("nbdkit: error: "),
            "{arguments}: {}",
            ours.stderr
        );
        assert!(ours.stdout.is_empty(), "{arguments}: {}", ours.text());
    }
}

#[test]
fn what_is_not_there_is_refused_by_name() {
    for (arguments, name) in [
        ("-o null", "oldstyle"),
        ("--tls-psk=/x null", "--tls-psk"),
        ("--filter=ext2 null", "'ext2'"),
        ("curl http://example.com/", "'curl'"),
        ("nbd socket=/x tls-psk=/y", "tls-psk"),
    ] {
        nbdkit(Who::Ours, arguments).failure(1, &["nbdkit: error: ", name]);
    }
}

#[test]
fn sockets_are_labelled_or_it_fails_where_the_kernel_has_no_such_labels() {
    if std::path::Path::new("/sys/fs/selinux/policy").exists() {
        return;
    }
    for who in [Who::Theirs, Who::Ours] {
        let label = "--selinux-label=system_u:object_r:svirt_socket_t:s0";
        let outcome = nbdkit(who, &format!("{label} -U - null --run true"));
        outcome.failure(1, &["Invalid argument"]);
    }
}

#[test]
fn a_captive_command_finds_the_server_in_its_variables() {
    let room = tempdir().expect("a directory");
    let socket = room.path().join("a socket");
    let tell = "echo \"$port\"; echo \"$exportname\"; echo \"$tls\"; nbdinfo --size \"$uri\"; \
                nbdinfo --size \"$nbd\"; test -z \"$unixsocket\" || test -S \"$unixsocket\"; exit 7";
    for (place, name) in [
        (&["-U", "-"][..], ""),
        (&["-U", text(&socket)], "a b"),
        (&["-U", "-"], "it's $(x) \"y\" %?&"),
    ] {
        let [theirs, ours] = BOTH.map(|who| {
            let _ = fs::remove_file(&socket);
            let rest = ["-e", name, "null", "1M", "--run", tell];
            let outcome = run(&mut who.tool("nbdkit", [place, &rest].concat()));
            assert_eq!(outcome.code, 7, "{who:?}: {}", outcome.stderr);
            outcome.text().to_owned()
        });
        assert_eq!(ours, theirs);
        assert_eq!(ours, format!("\n{name}\n\n1048576\n1048576\n"));
    }
    // On a free port, which theirs does not have yet.
    let words = ["-p", "0", "-i", "127.0.0.1", "null", "1M", "--run", tell];
    let ours = run(&mut Who::Ours.tool("nbdkit", words));
    assert_eq!(ours.code, 7, "{}", ours.stderr);
    let mut lines = ours.text().lines();
    let port = lines.next().and_then(|port| port.parse::<u16>().ok());
    assert!(port.is_some_and(|port| port > 0), "{}", ours.text());
    assert_eq!(lines.last(), Some("1048576"));
}

#[test]
fn the_exit_code_of_the_command_is_the_servers() {
    for who in BOTH {
        for (command, code) in [("true", 0), ("exit 3", 3), ("kill -9 $$", 137)] {
            let outcome = captive(who, &["null"], command);
            assert_eq!(outcome.code, code, "{who:?}: {command}");
        }
    }
}

#[test]
fn what_is_offered_can_be_restricted() {
    let facts = "nbdinfo --json \"$uri\" | grep -e structured -e read_only -e base:allocation";
    for arguments in [
        &["memory", "1M"][..],
        &["-r", "memory", "1M"],
        &["--no-sr", "memory", "1M"],
        &["--mask-handshake=0", "memory", "1M"],
        &["-t", "1", "memory", "1M"],
        &["-n", "-D", "memory.x=1", "--log=stderr", "memory", "1M"],
    ] {
        let [theirs, ours] = BOTH.map(|who| captive(who, arguments, facts).text().to_owned());
        assert_eq!(ours, theirs, "{arguments:?}");
        assert!(ours.contains("is_read_only"), "{ours}");
    }
    for option in ["--no-mc", "--no-meta-contexts"] {
        let outcome = captive(Who::Ours, &[option, "memory", "1M"], facts);
        assert!(outcome.text().contains("\"structured\": true"));
        assert!(!outcome.text().contains("base:allocation"));
    }
    let words = [
        "--keepalive",
        "--timeout=5s",
        "--no-structured-replies",
        "null",
    ];
    let outcome = captive(Who::Ours, &words, facts);
    assert!(outcome.text().contains("\"structured\": false"));
}

#[test]
fn a_plain_export_is_every_clients_whatever_its_name() {
    let ask = "nbdinfo --size \"nbd+unix:///any/name?socket=$unixsocket\"; nbdinfo --list \"$uri\" \
               | grep export=";
    for who in BOTH {
        let outcome = captive(who, &["memory", "64k"], ask).success();
        assert_eq!(outcome.text(), "65536\nexport=\"\":\n", "{who:?}");
    }
}

/// Speaks with a server on standard input and output: its flags, and the answers to
/// `NBD_OPT_EXPORT_NAME`, a read of 4 bytes, and a goodbye.
fn conversation(mut input: impl Write, mut output: impl Read) -> (u16, Vec<u8>) {
    let mut greeting = [0; 18];
    output.read_exact(&mut greeting).expect("a greeting");
    assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
    let flags = u16::from_be_bytes([greeting[16], greeting[17]]);
    let mut say = |bytes: &[u8]| input.write_all(bytes).expect("it listens");
    say(&u32::from(flags).to_be_bytes());
    say(b"IHAVEOPT\0\0\0\x01\0\0\0\0");
    say(b"\x25\x60\x95\x13\0\0\0\0\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x0c\0\0\0\x04");
    say(b"\x25\x60\x95\x13\0\0\0\x02\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\0\0\0\0\0");
    let mut answers = Vec::new();
    // It hangs up by itself.
    output.read_to_end(&mut answers).expect("answers");
    (flags, answers)
}

fn single(who: Who, options: &[&str], socket: Option<UnixStream>) -> Child {
    let arguments = [&["-s"], options, &["pattern", "size=1M"]].concat();
    let mut command = who.tool("nbdkit", arguments);
    command.stderr(Stdio::null());
    match socket {
        Some(socket) => {
            let again = socket.try_clone().expect("a descriptor");
            command.stdin(OwnedFd::from(socket));
            command.stdout(OwnedFd::from(again))
        }
        None => command.stdin(Stdio::piped()).stdout(Stdio::piped()),
    };
    command.spawn().expect("it starts")
}

#[test]
fn a_single_client_is_served_on_standard_input_and_output() {
    let data = |answers: &[u8], length: usize| {
        assert_eq!(answers.len(), length);
        assert_eq!(answers[..8], (1_u64 << 20).to_be_bytes(), "the size");
        assert_eq!(answers[length - 4..], [0, 0, 0, 8], "the pattern");
    };
    for who in BOTH {
        for (mask, padding) in [("3", 0), ("2", 0), ("1", 124), ("0", 124)] {
            let (ours, its) = UnixStream::pair().expect("a pair");
            let mask_option = format!("--mask-handshake={mask}");
            let mut child = single(who, &[&mask_option], Some(its));
            let (flags, answers) = conversation(&ours, &ours);
            assert_eq!(flags.to_string(), mask, "{who:?}");
            data(&answers, 10 + padding + 20);
            drop(ours);
            assert_eq!(wait(&mut child), 0);
        }
        let mut child = single(who, &["--exit-with-parent", "-v"], None);
        let input = child.stdin.take().expect("a pipe");
        let output = child.stdout.take().expect("a pipe");
        let (_, answers) = conversation(input, output);
        data(&answers, 30);
        assert_eq!(wait(&mut child), 0, "{who:?}");
    }
}

#[test]
fn a_single_client_and_a_script_cannot_both_have_standard_input() {
    for who in BOTH {
        let mut command = who.tool("nbdkit", ["-s", "sh", "-"]);
        let output = command.stdin(Stdio::null()).output().expect("it runs");
        assert_eq!(output.status.code(), Some(1), "{who:?}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(
            text.contains("inline script is incompatible with -s"),
            "{who:?}: {text}"
        );
        assert!(output.stdout.is_empty(), "{who:?}");
    }
}

/// Whether the process is there and has not ended.
fn lives(pid: &str) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/stat"));
    status.is_ok_and(|status| !status.contains(") Z "))
}

fn kill(pid: &str) {
    let status = Command::new("kill").arg(pid).status();
    assert!(status.expect("kill runs").success());
}

#[test]
fn it_goes_to_the_background_when_clients_can_connect() {
    for who in BOTH {
        let room = tempdir().expect("a directory");
        let (socket, pidfile) = (room.path().join("s"), room.path().join("pid"));
        let mut command = who.tool("nbdkit", ["-P", "pid", "-U", "s", "memory", "1M"]);
        // What has no end of file would be waited for.
        command
            .current_dir(room.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let status = command.status().expect("it starts");
        assert!(status.success(), "{who:?}");
        let uri = format!("nbd+unix:///?socket={}", text(&socket));
        let size = run(Command::new("nbdinfo").args(["--size", &uri])).success();
        assert_eq!(size.text(), "1048576\n");
        let pid = fs::read_to_string(&pidfile).expect("a number");
        let pid = pid.strip_suffix('\n').expect("a line");
        assert!(lives(pid));
        kill(pid);
        until("the end of the server", || !lives(pid));
    }
}

#[test]
fn a_server_that_fails_before_the_background_says_so() {
    let room = tempdir().expect("a directory");
    let missing = room.path().join("missing");
    let outcome = run(&mut Who::Ours.tool("nbdkit", ["-U", "-", "file", text(&missing)]));
    outcome.failure(1, &["nbdkit: error: ", "missing", "No such file"]);
}

#[test]
fn it_ends_with_its_parent() {
    for who in BOTH {
        let room = tempdir().expect("a directory");
        let pidfile = room.path().join("pid");
        let program = who.path("nbdkit", room.path());
        // A shell that is replaced by one that ends.
        let script =
            "$0 --exit-with-parent -U - -P $1 null 1M & while ! test -s $1; do sleep 0.01; done";
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).arg(&program).arg(&pidfile);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        assert!(command.status().expect("a shell").success());
        let pid = fs::read_to_string(&pidfile);
        // Ours takes the file away with it.
        if let Some(pid) = pid.ok().filter(|pid| !pid.is_empty()) {
            until("its end", || !lives(pid.trim()));
        }
    }
}

#[test]
fn sigterm_is_a_success() {
    for who in BOTH {
        let room = tempdir().expect("a directory");
        let pidfile = room.path().join("pid");
        let words = ["-f", "-U", "-", "-P", text(&pidfile), "memory", "1M"];
        let mut command = who.tool("nbdkit", words);
        let child = command.stderr(Stdio::piped()).stdout(Stdio::piped());
        let child = child.spawn().expect("it starts");
        let is_ready = || fs::read_to_string(&pidfile).is_ok_and(|text| text.ends_with('\n'));
        until("the file", is_ready);
        kill(&child.id().to_string());
        let outcome = finish(child);
        assert_eq!((outcome.code, &*outcome.stderr), (0, ""), "{who:?}");
    }
}

#[test]
fn other_tools_start_it_by_socket_activation() {
    let room = tempdir().expect("a directory");
    let image = room.path().join("image.raw");
    random_image(&image, 300_000);
    let copy = room.path().join("copy.raw");
    for who in BOTH {
        let program = who.path("nbdkit", room.path());
        let server = [text(&program), "--exit-with-parent", "file", text(&image)];
        let words = [&["--", "["][..], &server, &["]", text(&copy)]].concat();
        run(Command::new("nbdcopy").args(words)).success();
        assert_eq!(fs::read(&copy).ok(), fs::read(&image).ok(), "{who:?}");
        let words = [&["--size", "--", "["][..], &server, &["]"]].concat();
        let size = run(Command::new("nbdinfo").args(words)).success();
        assert_eq!(size.text(), "300000\n");
        // A place of its own contradicts that.
        let words = [
            &["--size", "--", "["][..],
            &server[..1],
            &["-U", "-", "null", "]"],
        ]
        .concat();
        assert_eq!(run(Command::new("nbdinfo").args(words)).code, 1);
    }
}

#[test]
fn tls_is_offered_or_required_with_the_same_certificates() {
    let realm = Realm::new();
    let directory = realm.server(Flaw::None);
    let directory = text(&directory);
    let certificates = format!("--tls-certificates={directory}");
    let secure = format!(
        "nbdinfo --size \"nbds+unix:///?socket=$unixsocket&{}\"",
        realm.trust()
    );
    let plain = "nbdinfo --size \"nbd+unix:///?socket=$unixsocket\"";
    for who in BOTH {
        for (mode, plainly, tls) in [
            ("--tls=on", 0, "1"),
            ("--tls=require", 1, "2"),
            ("--tls=off", 0, ""),
        ] {
            let words = [mode, &certificates, "null", "1M"];
            let secure = captive(who, &words, &format!("echo \"$tls\"; {secure}"));
            let is_off = mode == "--tls=off";
            let size = if is_off { "" } else { "1048576\n" };
            assert_eq!(secure.text(), format!("{tls}\n{size}"), "{who:?} {mode}");
            let plain = captive(who, &words, plain);
            assert_eq!(plain.code, plainly, "{who:?} {mode}: {}", plain.stderr);
        }
        // Certificates alone are an offer.
        captive(who, &[&certificates, "null", "1M"], &secure).success();
        captive(who, &[&certificates, "null", "1M"], plain).success();
    }
    // The URI of a captive server has all that is needed.
    let words = ["--tls=require", &certificates, "null", "1M"];
    let outcome = captive(
        Who::Ours,
        &words,
        "nbdinfo --size \"$uri\"; echo $tls_certificates",
    );
    assert_eq!(outcome.text(), format!("1048576\n{directory}\n"));
}

#[test]
fn it_becomes_another_user_when_it_listens() {
    let is_root = run(Command::new("id").arg("-u")).text() == "0\n";
    let nobody = run(Command::new("id").args(["-u", "nobody"]));
    if !is_root || nobody.code != 0 {
        println!("skipped: only root can become nobody");
        return;
    }
    for who in BOTH {
        let room = tempdir().expect("a directory");
        let pidfile = room.path().join("pid");
        let socket = room.path().join("s");
        fs::write(&pidfile, "").expect("a file");
        let words = ["-f", "-u", "nobody", "-U", text(&socket), "null", "1M"];
        let mut child = who.tool("nbdkit", words).spawn().expect("it starts");
        let status = format!("/proc/{}/status", child.id());
        let number = nobody.text().trim();
        until("another user", || {
            let status = fs::read_to_string(&status).unwrap_or_default();
            let line = status.lines().find(|line| line.starts_with("Uid:"));
            line.is_some_and(|line| line.split_whitespace().skip(1).all(|id| id == number))
        });
        kill(&child.id().to_string());
        assert_eq!(wait(&mut child), 0, "{who:?}");
    }
}

#[test]
fn a_name_or_the_file_of_a_plugin_is_its_name() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blockferry"));
    command.arg0("/usr/sbin/nbdkit");
    command.args(["/usr/lib/nbdkit/plugins/nbdkit-file-plugin.so", "--version"]);
    let outcome = run(&mut command).success();
    assert!(outcome.text().contains("\nfile "), "{}", outcome.text());
}
