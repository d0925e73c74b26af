//! The server under clients that misbehave, are too many, or never leave; and with sources that are slow or
//! shrink. What it holds in memory is bounded, whoever is decent is served, and it ends when it is asked to.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use blockferry::client::blocking::Client;
use tempfile::{TempDir, tempdir};

use crate::support::{
    blockferry, random_image, run,
    run::{Outcome, signal, tool, until, wait},
};

/// `blockferry serve` on a unix socket; it is killed with the value.
struct Server {
    child: Child,
    dir: TempDir,
}

impl Server {
    fn start(arguments: &[&str]) -> Self {
        Self::in_directory(tempdir().expect("a directory"), arguments)
    }

    fn in_directory(dir: TempDir, arguments: &[&str]) -> Self {
        let socket = dir.path().join("socket");
        let child = blockferry(["serve", "--unix"])
            .arg(&socket)
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary");
        let server = Self { child, dir };
        until("the server", || UnixStream::connect(&socket).is_ok());
        server
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket().display())
    }

    /// A client in transmission, by the oldest and shortest way.
    fn connect(&self) -> UnixStream {
        connect(&self.socket()).expect("a client")
    }

    fn still_serves(&self) {
        assert_eq!(tool("nbdinfo", &["--size", &self.uri()]).trim(), "8388608");
    }

    /// The most memory that it has had so far, in KiB.
    fn peak(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("it lives");
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        let number = line.and_then(|line| line.split_whitespace().nth(1));
        number
            .and_then(|number| number.parse().ok())
            .expect("a number")
    }

    /// Asks it to end, and waits until it has.
    fn terminate(mut self) -> Outcome {
        signal(&self.child, "TERM");
        self.outcome()
    }

    fn outcome(&mut self) -> Outcome {
        let code = wait(&mut self.child);
        let mut stderr = String::new();
        let pipe = self.child.stderr.as_mut().expect("a pipe");
        pipe.read_to_string(&mut stderr).expect("text");
        Outcome {
            code,
            stdout: Vec::new(),
            stderr,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How long a client waits for an answer that must come.
const PATIENCE: Duration = Duration::from_secs(100);

fn connect(socket: &Path) -> io::Result<UnixStream> {
    let mut client = UnixStream::connect(socket)?;
    client.set_read_timeout(Some(PATIENCE))?;
    client.read_exact(&mut [0; 18])?;
    // Fixed newstyle without zeroes, NBD_OPT_EXPORT_NAME of the default export.
    client.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\0")?;
    client.read_exact(&mut [0; 10])?;
    Ok(client)
}

fn request(command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = vec![0x25, 0x60, 0x95, 0x13, 0, 0];
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

/// The error number of the next reply.
fn reply(client: &mut UnixStream) -> io::Result<u32> {
    let mut reply = [0; 16];
    client.read_exact(&mut reply)?;
    assert_eq!(reply[..4], [0x67, 0x44, 0x66, 0x98]);
    Ok(u32::from_be_bytes([reply[4], reply[5], reply[6], reply[7]]))
}

const READ: u16 = 0;
const WRITE: u16 = 1;

#[test]
fn a_thousand_clients_at_once_are_all_served() {
    let server = Server::start(&["pattern:8M"]);
    let socket = server.socket();
    let served = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..1000u64)
        .map(|number| {
            let (socket, served) = (socket.clone(), Arc::clone(&served));
            let builder = thread::Builder::new().stack_size(64 << 10);
            let client = builder.spawn(move || {
                let mut client = connect(&socket).expect("a place");
                let offset = number * 8;
                client
                    .write_all(&request(READ, 1, offset, 8))
                    .expect("sent");
                assert_eq!(reply(&mut client).expect("an answer"), 0);
                let mut data = [0; 8];
                client.read_exact(&mut data).expect("data");
                assert_eq!(u64::from_be_bytes(data), offset);
                served.fetch_add(1, Ordering::SeqCst);
            });
            client.expect("a thread")
        })
        .collect();
    for client in clients {
        client.join().expect("served");
    }
    assert_eq!(served.load(Ordering::SeqCst), 1000);
    let peak = server.peak();
    assert!(peak < 100 << 10, "{peak} KiB");
    assert_eq!(server.terminate().code, 0);
}

#[test]
fn clients_that_stop_reading_cost_what_they_may_and_no_more() {
    let dir = tempdir().expect("a directory");
    // Bytes that do not lie in a file are held in memory until they are sent.
    let server = Server::in_directory(dir, &["sample:8M,data=100"]);
    let mut stopped = Vec::new();
    for _ in 0..10 {
        let mut client = server.connect();
        client.set_nonblocking(true).expect("an option");
        for cookie in 0..10_000 {
            if client
                .write_all(&request(READ, cookie, 0, 1 << 20))
                .is_err()
            {
                break;
            }
        }
        stopped.push(client);
    }
    server.still_serves();
    let peak = server.peak();
    // Each may hold 8 MiB, and a request more.
    assert!(peak < (10 * 10 + 60) << 10, "{peak} KiB");
    // Whoever reads after all gets all that was asked for.
    let client = &mut stopped[0];
    client.set_nonblocking(false).expect("an option");
    assert_eq!(reply(client).expect("an answer"), 0);
    assert_eq!(server.terminate().code, 0);
}

#[test]
fn clients_that_announce_payload_and_do_not_send_it_cost_little() {
    let server = Server::start(&["memory:8M"]);
    let mut stopped = Vec::new();
    for _ in 0..90 {
        let mut client = server.connect();
        client
            .write_all(&request(WRITE, 1, 0, 8 << 20))
            .expect("sent");
        client.write_all(&[0; 1000]).expect("sent");
        stopped.push(client);
    }
    server.still_serves();
    let peak = server.peak();
    assert!(peak < 64 << 10, "{peak} KiB");
    drop(stopped);
    server.still_serves();
    assert_eq!(server.terminate().code, 0);
}

#[test]
fn garbage_leaves_the_server_standing() {
    let server = Server::start(&["memory:8M"]);
    for seed in 0..200u64 {
        let garbage = crate::support::images::random_bytes(5000, seed);
        let mut client = match seed % 2 {
            0 => UnixStream::connect(server.socket()).expect("a connection"),
            _ => server.connect(),
        };
        let _ = client.write_all(&garbage);
        let _ = client.shutdown(std::net::Shutdown::Write);
        let _ = client.read_to_end(&mut Vec::new());
    }
    server.still_serves();
    let outcome = server.terminate();
    assert_eq!(outcome.code, 0);
    // Not a line for each: a client could fill a log.
    assert!(outcome.stderr.lines().count() < 40, "{}", outcome.stderr);
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
}

#[test]
fn a_file_that_shrinks_fails_what_lay_behind_its_new_end_and_nothing_else() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image");
    random_image(&image, 8 << 20);
    let expected = fs::read(&image).expect("there");
    let name = image.to_str().expect("UTF-8").to_owned();
    let server = Server::in_directory(dir, &[&name]);
    let mut client = server.connect();
    let uri = server.uri();
    let mut structured = Client::connect(&uri).expect("it listens");
    File::options()
        .write(true)
        .open(&image)
        .and_then(|file| file.set_len(1 << 20))
        .expect("shorter");
    let mut data = vec![0; 4096];
    for length in [512, 4096] {
        client
            .write_all(&request(READ, 1, 0, length))
            .expect("sent");
        assert_eq!(reply(&mut client).expect("an answer"), 0);
        let data = &mut data[..length as usize];
        client.read_exact(data).expect("data");
        assert!(*data == expected[..data.len()]);
        for offset in [2 << 20, (1 << 20) - 1, (8 << 20) - u64::from(length)] {
            client
                .write_all(&request(READ, 2, offset, length))
                .expect("sent");
            // EIO
            assert_eq!(reply(&mut client).expect("an answer"), 5, "{offset}");
        }
    }
    // A long read is sent from the file itself, and has nowhere to tell that it failed but at the end.
    client
        .write_all(&request(READ, 3, 0, 2 << 20))
        .expect("sent");
    match reply(&mut client) {
        Ok(0) => {
            let mut rest = Vec::new();
            client.read_to_end(&mut rest).expect("the end");
            assert!(rest.len() <= 1 << 20 && rest == expected[..rest.len()]);
        }
        other => assert_eq!(other.expect("an answer"), 5),
    }
    // Clients that understand structured replies are told.
    let mut long = vec![0; 2 << 20];
    structured.read(0, &mut long).expect_err("it is shorter");
    structured.read(0, &mut long[..4096]).expect("still there");
    // Those who come now are served what there is now.
    assert_eq!(tool("nbdinfo", &["--size", &uri]).trim(), "1048576");
    assert_eq!(server.terminate().code, 0);
}

/// A server whose reads take so many seconds.
fn slow(seconds: &str) -> Server {
    let dir = tempdir().expect("a directory");
    let begun = dir.path().join("begun");
    let read = format!(
        "eval:get_size=echo 8M,pread=: >> {}; sleep {seconds}; head -c $3 /dev/zero,thread_model=echo parallel",
        begun.display()
    );
    Server::in_directory(dir, &[&read])
}

impl Server {
    /// A client whose read the script works on.
    fn reading(&self) -> UnixStream {
        let mut client = self.connect();
        client.write_all(&request(READ, 1, 0, 512)).expect("sent");
        let begun = self.dir.path().join("begun");
        until("the script", || begun.exists());
        client
    }
}

#[test]
fn a_slow_source_holds_up_its_own_clients_only_and_what_is_in_flight_is_finished() {
    let server = slow("2");
    let mut waiting = server.reading();
    server.still_serves();
    signal(&server.child, "TERM");
    // It had asked before.
    assert_eq!(reply(&mut waiting).expect("an answer"), 0);
    let mut data = vec![1; 512];
    waiting.read_exact(&mut data).expect("data");
    assert!(data.iter().all(|byte| *byte == 0));
    assert_eq!(waiting.read(&mut data).expect("the end"), 0);
    let mut server = server;
    assert_eq!(server.outcome().code, 0);
}

#[test]
fn a_second_signal_does_not_wait_for_a_source_that_hangs() {
    let mut server = slow("1000");
    let _waiting = server.reading();
    signal(&server.child, "TERM");
    thread::sleep(Duration::from_millis(300));
    assert!(server.child.try_wait().expect("a child of ours").is_none());
    signal(&server.child, "TERM");
    // 128 and the signal's number, as a shell says it.
    assert_eq!(server.outcome().code, 143);
}

#[test]
fn a_script_that_hangs_is_given_up_after_the_timeout() {
    let script = "eval:get_size=echo 1M,pread=sleep 1000";
    let server = Server::start(&[script, "--timeout", "1"]);
    let uri = format!("nbd+unix:///?socket={}", server.socket().display());
    let outcome = run(&mut blockferry(["copy", "--retries=0", &uri, "null:"]));
    assert_ne!(outcome.code, 0);
    assert!(outcome.stderr.contains("pread"), "{}", outcome.stderr);
}

#[test]
fn a_script_may_end_the_server_where_nothing_is_open() {
    // 4: all is well, and the server is to shut down.
    let mut server = Server::start(&["eval:get_size=echo 1M,list_exports=exit 4"]);
    let uri = format!("nbd+unix:///?socket={}", server.socket().display());
    run(&mut blockferry(["info", "--list", &uri]));
    assert_eq!(server.outcome().code, 0);
}

#[test]
fn a_second_signal_ends_what_a_script_has_started_too() {
    let dir = tempdir().expect("a directory");
    let (begun, pid) = (dir.path().join("begun"), dir.path().join("pid"));
    // The shell waits for a process of its own, which knows nothing of us.
    let (begun, written) = (begun.display(), pid.display());
    let read = format!(": >> {begun}; sleep 1000 & echo $! > {written}; wait");
    let script = format!("eval:get_size=echo 1M,pread={read}");
    let mut server = Server::in_directory(dir, &[&script]);
    let _waiting = server.reading();
    let started = || std::fs::read_to_string(&pid).is_ok_and(|text| text.ends_with('\n'));
    until("the script to begin", started);
    signal(&server.child, "TERM");
    thread::sleep(Duration::from_millis(100));
    signal(&server.child, "TERM");
    assert_eq!(server.outcome().code, 143);
    let pid = std::fs::read_to_string(&pid).expect("a number");
    let fds = format!("/proc/{}/fd", pid.trim());
    until("its process to go", || std::fs::read_dir(&fds).is_err());
}

#[test]
fn a_client_that_never_hangs_up_does_not_hold_the_end() {
    let server = Server::start(&["memory:8M"]);
    let mut silent = server.connect();
    let mut in_handshake = UnixStream::connect(server.socket()).expect("a connection");
    let mut amid_payload = server.connect();
    amid_payload
        .write_all(&request(WRITE, 1, 0, 4096))
        .expect("sent");
    amid_payload.write_all(&[0; 100]).expect("sent");
    let mut stopped_reading = server.connect();
    stopped_reading.set_nonblocking(true).expect("an option");
    for _ in 0..100 {
        if stopped_reading
            .write_all(&request(READ, 1, 0, 1 << 20))
            .is_err()
        {
            break;
        }
    }
    assert_eq!(server.terminate().code, 0);
    let mut rest = Vec::new();
    for client in [&mut silent, &mut in_handshake, &mut amid_payload] {
        let _ = client.read_to_end(&mut rest);
    }
    assert_eq!(rest.len(), 18);
}

#[test]
fn the_name_of_an_export_is_no_path() {
    let dir = tempdir().expect("a directory");
    let files = dir.path().join("files");
    fs::create_dir_all(files.join("inner")).expect("a directory");
    random_image(&dir.path().join("secret"), 8 << 20);
    random_image(&files.join("public"), 8 << 20);
    random_image(&files.join("inner/file"), 8 << 20);
    let source = format!("dir:{}", files.display());
    let socket = dir.path().join("socket");
    let child = blockferry(["serve", "--unix"])
        .arg(&socket)
        .arg(&source)
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary");
    let server = Server { child, dir };
    until("the server", || UnixStream::connect(&socket).is_ok());
    let size = |name: &str| {
        let uri = format!("nbd+unix:///{name}?socket={}", socket.display());
        run(std::process::Command::new("nbdinfo").args(["--size", &uri])).code
    };
    assert_eq!(size("public"), 0);
    let absolute = server.dir.path().join("secret");
    for name in [
        "../secret",
        "..",
        ".",
        "inner",
        "inner/file",
        "public/",
        "./public",
        "%2e%2e/secret",
        "nothing",
        absolute.to_str().expect("UTF-8"),
    ] {
        assert_eq!(size(name), 1, "{name}");
    }
    assert_eq!(size("public"), 0);
    assert_eq!(server.terminate().code, 0);
}
