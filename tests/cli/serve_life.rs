//! How long a server lives, what it says of itself, and what it leaves behind.

use std::{
    cell::RefCell,
    fs::{self, File},
    io::{Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use blockferry::{
    block::{ErrorKind, WriteFlags},
    client::blocking::Client,
};
use serde_json::Value;
use tempfile::tempdir;

use crate::support::{
    Served, blockferry, run,
    run::{Outcome, tool, until, wait},
};

fn uri(socket: &Path) -> String {
    format!("nbd+unix:///?socket={}", socket.display())
}

fn client(socket: &Path) -> Client {
    Client::connect(&uri(socket)).expect("a connection")
}

fn serve(arguments: &[&str]) -> Outcome {
    run(blockferry(["serve"]).args(arguments))
}

fn lives(pid: &str) -> bool {
    Path::new("/proc").join(pid).join("fd").exists()
}

#[test]
fn a_command_finds_the_server_and_its_exit_code_is_handed_on() {
    let script = r#"
        nbdinfo --size "$uri" && nbdinfo --size "nbd+unix:///?socket=$unixsocket"
        test -z "$port$exportname$tls" || echo wrong
        printf '%s\n' "$unixsocket"
        exit 7"#;
    let outcome = serve(&["memory:3M", "--run", script]);
    assert_eq!(outcome.code, 7, "{}", outcome.stderr);
    let lines: Vec<_> = outcome.text().lines().collect();
    let [size, again, socket] = lines[..] else {
        panic!("{lines:?}");
    };
    assert_eq!((size, again), ("3145728", "3145728"));
    let socket = PathBuf::from(socket);
    let directory = socket.parent().expect("a directory");
    assert!(!directory.exists(), "{} is left", directory.display());
    let killed = serve(&["memory:3M", "--run", "kill -9 $$"]);
    assert_eq!(killed.code, 128 + 9);
    assert!(
        killed.stderr.contains("killed by signal 9"),
        "{}",
        killed.stderr
    );
}

#[test]
fn a_command_on_tcp_gets_the_port_and_an_export_by_its_name() {
    let script = r#"test "$uri" = "nbd://127.0.0.1:$port/it's" && nbdinfo --size "$uri""#;
    let arguments = [
        "-e",
        "it's=memory:2M",
        "--listen",
        "127.0.0.1:0",
        "--run",
        script,
    ];
    let outcome = serve(&arguments).success();
    assert_eq!(outcome.text(), "2097152\n");
}

#[test]
fn several_exports_are_listed_and_served_by_name() {
    let dir = tempdir().expect("a directory");
    let socket = dir.path().join("s");
    let file = dir.path().join("disk.raw");
    fs::write(&file, [1; 8192]).expect("written");
    let named = format!("disk={}", file.display());
    let arguments = [
        "memory:1M",
        "--description",
        "the default",
        "-e",
        &named,
        "-e",
        "zeroes=null:2M",
    ];
    let server = Served::at(&socket, &arguments);
    let list = tool("nbdinfo", &["--list", "--json", &uri(&socket)]);
    let list: Value = serde_json::from_str(&list).expect("JSON");
    let facts = |export: &Value| {
        let size = export["export-size"].as_u64();
        let text = |key: &str| export[key].as_str().unwrap_or_default().to_owned();
        (text("export-name"), size, text("description"))
    };
    let exports: Vec<_> = list["exports"]
        .as_array()
        .expect("a list")
        .iter()
        .map(facts)
        .collect();
    let expected = [
        ("", 1 << 20, "the default"),
        ("disk", 8192, ""),
        ("zeroes", 2 << 20, ""),
    ];
    let expected: Vec<_> = expected
        .map(|(name, size, text)| (name.to_owned(), Some(size), text.to_owned()))
        .into();
    assert_eq!(exports, expected);
    let disk = format!("nbd+unix:///disk?socket={}", socket.display());
    let copy = dir.path().join("copy");
    run(blockferry(["copy", &disk]).arg(&copy)).success();
    assert_eq!(fs::read(&copy).expect("copied"), [1; 8192]);
    let missing = format!("nbd+unix:///other?socket={}", socket.display());
    run(&mut blockferry(["info", &missing])).failure(1, &["no such export"]);
    server.terminate().success();
}

#[test]
fn a_daemon_is_there_when_its_starter_returns_and_leaves_nothing_behind() {
    let dir = tempdir().expect("a directory");
    let (socket, pidfile) = (dir.path().join("s"), dir.path().join("pid"));
    let mut command = blockferry(["serve", "memory:1M", "--daemon", "--unix"]);
    let outcome = run(command.arg(&socket).arg("--pidfile").arg(&pidfile)).success();
    assert!(
        outcome.stderr.contains("serving memory:1M"),
        "{}",
        outcome.stderr
    );
    let pid = fs::read_to_string(&pidfile).expect("a pidfile");
    let pid = pid.trim();
    assert_eq!(tool("nbdinfo", &["--size", &uri(&socket)]), "1048576\n");
    // A session of its own, and no terminal to write to.
    let session = tool("ps", &["-o", "sid=", "-p", pid]);
    assert_eq!(session.trim(), pid);
    let output = fs::read_link(format!("/proc/{pid}/fd/2")).expect("a standard error");
    assert_eq!(output, Path::new("/dev/null"));
    tool("kill", &[pid]);
    until("the end", || !lives(pid));
    assert!(!socket.exists() && !pidfile.exists());
}

#[test]
fn a_daemon_that_cannot_begin_says_so_before_its_starter_returns() {
    let dir = tempdir().expect("a directory");
    let (socket, pidfile) = (dir.path().join("s"), dir.path().join("pid"));
    let mut command = blockferry(["serve", "/does/not/exist", "--daemon", "--unix"]);
    let outcome = run(command.arg(&socket).arg("-P").arg(&pidfile));
    outcome.failure(1, &["/does/not/exist", "No such file"]);
    assert!(!socket.exists() && !pidfile.exists());
}

#[test]
fn a_server_for_one_visit_ends_with_its_last_client() {
    let dir = tempdir().expect("a directory");
    let socket = dir.path().join("s");
    let server = Served::at(&socket, &["memory:1M", "--once"]);
    // A look at the list is no visit, nor is a connection that comes to nothing.
    tool("nbdinfo", &["--list", &uri(&socket)]);
    drop(UnixStream::connect(&socket).expect("still there"));
    let commands = ["-f", "raw", "-c", "write 0 64k", "-c", "read 0 64k"];
    tool("qemu-io", &[&commands[..], &[&uri(&socket)]].concat());
    server.finish().success();
    assert!(!socket.exists());
}

#[test]
fn a_server_ends_with_the_process_that_started_it() {
    let dir = tempdir().expect("a directory");
    let socket = dir.path().join("s");
    let mut starter = Command::new("/bin/sh")
        .args([
            "-c",
            r#""$0" serve memory:1M --exit-with-parent -U "$1" -P "$2" & wait"#,
        ])
        .arg(env!("CARGO_BIN_EXE_blockferry"))
        .arg(&socket)
        .arg(dir.path().join("pid"))
        .stderr(Stdio::null())
        .spawn()
        .expect("a shell");
    until("the server", || dir.path().join("pid").exists());
    let pid = fs::read_to_string(dir.path().join("pid")).expect("a pid");
    starter.kill().expect("killed");
    wait(&mut starter);
    until("the end", || !lives(pid.trim()));
    until("its socket to go", || !socket.exists());
}

#[test]
fn a_silent_client_is_disconnected_and_others_are_not() {
    let dir = tempdir().expect("a directory");
    let socket = dir.path().join("s");
    let log = dir.path().join("log");
    let log_path = log.to_str().expect("UTF-8");
    let arguments = ["memory:1M", "--idle-timeout", "0.2", "--log", log_path];
    let server = Served::at(&socket, &arguments);
    let mut silent = client(&socket);
    silent.read(0, &mut [0; 512]).expect("read");
    // Another one that has something to say again and again.
    let busy = RefCell::new(client(&socket));
    until("the end of the silent one", || {
        let closed = fs::read_to_string(&log).is_ok_and(|log| log.contains("kept silent"));
        let mut buffer = [0; 512];
        busy.borrow_mut()
            .read(0, &mut buffer)
            .expect("not disconnected");
        closed
    });
    let error = silent.read(0, &mut [0; 512]).expect_err("gone");
    assert_eq!(error.kind(), ErrorKind::ConnectionLost);
    server.terminate().success();
}

#[test]
fn a_log_has_a_line_of_json_for_each_connection_and_request() {
    let dir = tempdir().expect("a directory");
    let (socket, log) = (dir.path().join("s"), dir.path().join("log"));
    let log_path = log.to_str().expect("UTF-8");
    let server = Served::at(
        &socket,
        &[
            "memory:1M",
            "--read-only",
            "--log",
            log_path,
            "--log-requests",
        ],
    );
    client(&socket).read(8192, &mut [0; 4096]).expect("read");
    server.terminate().success();
    let text = fs::read_to_string(&log).expect("a log");
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let of = |event: &str| {
        lines
            .iter()
            .filter(|line| line["event"] == event)
            .collect::<Vec<_>>()
    };
    assert_eq!(of("listening").len(), 1);
    let [serving] = of("serving")[..] else {
        panic!("{text}")
    };
    assert_eq!(
        (&serving["size"], &serving["read_only"]),
        (&(1 << 20).into(), &true.into())
    );
    let [read] = of("request")[..] else {
        panic!("{text}")
    };
    assert_eq!(read["command"], "read");
    assert_eq!(
        (&read["offset"], &read["length"]),
        (&8192.into(), &4096.into())
    );
    assert!(read["error"].is_null() && read["seconds"].as_f64().is_some());
    assert_eq!(read["connection"], serving["connection"]);
    let clean = of("closed")
        .iter()
        .any(|line| line["connection"] == read["connection"] && line["clean"] == true);
    assert!(clean, "{text}");
    assert_eq!(of("stopped").len(), 1);
    assert!(lines.iter().all(|line| {
        line["time"]
            .as_str()
            .is_some_and(|time| time.ends_with('Z'))
    }));
}

#[test]
fn a_log_without_requests_has_the_failures_only() {
    let dir = tempdir().expect("a directory");
    let (socket, log) = (dir.path().join("s"), dir.path().join("log"));
    let file = dir.path().join("disk");
    File::create(&file)
        .and_then(|file| file.set_len(1 << 20))
        .expect("a file");
    let arguments = [
        file.to_str().expect("UTF-8"),
        "-r",
        "--log",
        log.to_str().expect("UTF-8"),
        "-q",
    ];
    let server = Served::at(&socket, &arguments);
    let mut reader = client(&socket);
    reader.read(0, &mut [0; 512]).expect("read");
    let shrunk = File::options().write(true).open(&file);
    shrunk.and_then(|file| file.set_len(4096)).expect("shrunk");
    reader
        .read(8192, &mut [0; 512])
        .expect_err("behind the end");
    drop(reader);
    let outcome = server.terminate().success();
    assert_eq!(outcome.stderr, "", "quiet");
    let text = fs::read_to_string(&log).expect("a log");
    assert!(!text.contains("\"event\":\"request\""), "{text}");
    assert!(
        text.contains("\"event\":\"request-failed\"") && text.contains("8192"),
        "{text}"
    );
}

/// What is at `path` of the HTTP server, headers and all.
fn fetch(port: u16, path: &str) -> String {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    write!(socket, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("asked");
    let mut reply = String::new();
    socket.read_to_string(&mut reply).expect("a reply");
    reply
}

#[test]
fn metrics_count_connections_requests_and_bytes() {
    let dir = tempdir().expect("a directory");
    let socket = dir.path().join("s");
    let port = {
        // Free a moment ago; nobody else on this machine takes ports by number.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.local_addr().expect("an address").port()
    };
    let address = format!("127.0.0.1:{port}");
    let arguments = ["-e", "a\"b=memory:1M", "--metrics", &address];
    let server = Served::at(&socket, &arguments);
    let mut user = client(&socket);
    user.write(0, &[1; 1000], WriteFlags::empty())
        .expect("written");
    user.read(0, &mut [0; 4096]).expect("read");
    user.read(0, &mut [0; 4096]).expect("read");
    user.flush().expect("flushed");
    drop(user);
    let labels = |command: &str| format!(r#"{{export="a\"b",command="{command}"}}"#);
    let page = || fetch(port, "/metrics");
    until("the connection to be over", || {
        page().contains("blockferry_connections 0\n")
    });
    let page = page();
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
    let has = |name: &str, command: &str, value: u64| {
        let line = format!("blockferry_{name}{} {value}\n", labels(command));
        assert!(page.contains(&line), "{line} is not in {page}");
    };
    has("requests_total", "write", 1);
    has("request_bytes_total", "write", 1000);
    has("requests_total", "read", 2);
    has("request_bytes_total", "read", 8192);
    has("request_errors_total", "read", 0);
    has("requests_total", "flush", 1);
    has("request_duration_seconds_count", "read", 2);
    assert!(fetch(port, "/other").starts_with("HTTP/1.1 404 "));
    // One who asks for nothing, and one who asks for too much.
    drop(TcpStream::connect(("127.0.0.1", port)).expect("a connection"));
    let mut flood = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    let _ = flood.write_all(&[b'x'; 100_000]);
    assert!(fetch(port, "/metrics").contains("blockferry_connections_total"));
    server.terminate().success();
}

#[test]
fn a_source_is_let_go_of_while_nobody_uses_it() {
    let dir = tempdir().expect("a directory");
    let (socket, file) = (dir.path().join("s"), dir.path().join("disk"));
    fs::write(&file, [1; 4096]).expect("written");
    let server = Served::at(&socket, &[file.to_str().expect("UTF-8")]);
    let is_open = || {
        let fds =
            fs::read_dir(format!("/proc/{}/fd", server.child().id())).expect("its descriptors");
        fds.flatten()
            .any(|fd| fd.path().read_link().is_ok_and(|to| to == file))
    };
    until("it to be closed", || !is_open());
    // One that was put in its place is served to the next client.
    let other = dir.path().join("other");
    fs::write(&other, [2; 8192]).expect("written");
    fs::rename(&other, &file).expect("replaced");
    assert_eq!(tool("nbdinfo", &["--size", &uri(&socket)]), "8192\n");
    until("it to be closed again", || !is_open());
    server.terminate().success();
}

#[test]
fn a_file_that_grows_is_longer_for_the_next_client() {
    let dir = tempdir().expect("a directory");
    let (socket, file) = (dir.path().join("s"), dir.path().join("disk"));
    fs::write(&file, [1; 4096]).expect("written");
    let server = Served::at(&socket, &[file.to_str().expect("UTF-8")]);
    let mut first = client(&socket);
    fs::write(&file, [2; 8192]).expect("written");
    let mut second = client(&socket);
    let mut buffer = [0; 8192];
    second.read(0, &mut buffer).expect("the whole");
    assert_eq!(buffer, [2; 8192]);
    second
        .write(0, &[3; 512], WriteFlags::empty())
        .expect("written");
    // Who was there before has the disk that it was told of.
    first.read(0, &mut buffer[..4096]).expect("read");
    assert_eq!((buffer[511], buffer[512]), (3, 2));
    first
        .read(4096, &mut buffer[..1])
        .expect_err("past its end");
    drop((first, second));
    server.terminate().success();
}

#[test]
fn wrong_options_are_refused_with_what_to_do() {
    run(&mut blockferry(["serve", "memory:1M"])).failure(2, &["nowhere to listen", "--unix"]);
    run(&mut blockferry(["serve", "null:", "-U", "s"])).failure(2, &["null:1G"]);
    run(&mut blockferry(["serve", "-e", "x", "-U", "s"])).failure(2, &["NAME=SOURCE"]);
    let bad_log = [
        "serve",
        "memory:1M",
        "-U",
        "/tmp",
        "--log",
        "/does/not/exist/log",
    ];
    run(&mut blockferry(bad_log)).failure(1, &["the log /does/not/exist/log"]);
    let bad_metrics = [
        "serve",
        "memory:1M",
        "--run",
        "true",
        "--metrics",
        "nonsense",
    ];
    run(&mut blockferry(bad_metrics)).failure(2, &["--metrics nonsense", "ADDR:PORT"]);
    let bad_pidfile = [
        "serve",
        "memory:1M",
        "--run",
        "true",
        "-P",
        "/does/not/exist/pid",
    ];
    run(&mut blockferry(bad_pidfile)).failure(1, &["--pidfile /does/not/exist/pid"]);
}
