//! Our server through TLS, with other people's clients and our own.

use std::{
    fs,
    io::Read,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::support::{
    assert_same, blockferry,
    certificates::{Authority, Flaw},
    random_image,
    realm::{Realm, SIZE, secure},
    run,
    run::{finish, signal, tool, until},
};

/// `blockferry serve` on a unix socket; it ends with the value.
struct Served {
    child: Child,
    socket: PathBuf,
}

impl Served {
    /// Serves `image` with the certificates of `realm`, and whatever `arguments` say.
    fn start(realm: &Realm, image: &Path, arguments: &[&str]) -> Self {
        let socket = realm.path("serve.sock");
        let child = blockferry(["serve", "--verbose"])
            .args(arguments)
            .arg("--tls-certificates")
            .arg(realm.server(Flaw::None))
            .arg("--unix")
            .arg(&socket)
            .arg(image)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary");
        until("the server", || UnixStream::connect(&socket).is_ok());
        Self { child, socket }
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    /// What it said until it was asked to end.
    fn said(mut self) -> String {
        signal(&self.child, "TERM");
        let mut text = String::new();
        let mut stderr = self.child.stderr.take().expect("a pipe");
        stderr.read_to_string(&mut text).expect("UTF-8");
        assert_eq!(self.child.wait().expect("an end").code(), Some(0), "{text}");
        text
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The exit code and the words of a client that may fail.
fn attempt(program: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), words)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// What qemu-img is to be told to use a server at a unix socket through TLS.
struct Qemu {
    credentials: String,
    image: String,
}

impl Qemu {
    fn new(socket: &Path, directory: &Path) -> Self {
        Self {
            credentials: format!(
                "tls-creds-x509,id=tls0,endpoint=client,dir={}",
                directory.display()
            ),
            image: format!(
                "driver=nbd,server.type=unix,server.path={},tls-creds=tls0,tls-hostname=localhost",
                socket.display()
            ),
        }
    }

    fn compare(&self, image: &Path) -> (bool, String) {
        let local = format!("driver=raw,file.filename={}", image.display());
        let object = ["compare", "--object", &self.credentials];
        let rest = ["--image-opts", &self.image, &local];
        attempt("qemu-img", &[&object[..], &rest].concat())
    }
}

#[test]
fn other_clients_and_ours_read_and_write_through_tls() {
    let realm = Realm::new();
    let (image, copy, disk) = (
        realm.image(),
        realm.path("copy.raw"),
        realm.path("disk.raw"),
    );
    let trust = realm.trust();
    random_image(&disk, SIZE as usize);
    let served = Served::start(&realm, &disk, &["--tls", "require"]);
    let uri = secure(&served.uri(), &trust);
    let qemu = Qemu::new(&served.socket, &realm.path("trust"));

    let info = tool("nbdinfo", &[&uri]);
    assert!(info.contains("protocol: newstyle-fixed with TLS"), "{info}");
    tool("nbdcopy", &[&uri, text(&copy)]);
    assert_same(&disk, &copy);
    tool("nbdcopy", &["--flush", text(&image), &uri]);
    assert_same(&image, &disk);
    let (same, words) = qemu.compare(&image);
    assert!(same, "{words}");

    random_image(&copy, SIZE as usize);
    let local = format!("driver=raw,file.filename={}", copy.display());
    let object = ["convert", "-n", "--object", &qemu.credentials];
    let rest = ["--image-opts", "--target-image-opts", &local, &qemu.image];
    tool("qemu-img", &[&object[..], &rest].concat());
    assert_same(&copy, &disk);

    for connections in ["1", "4"] {
        run(blockferry(["copy", "-C", connections])
            .arg(&image)
            .arg(&uri))
        .success();
        assert_same(&image, &disk);
        run(blockferry(["copy", "-C", connections, &uri]).arg(&copy)).success();
        assert_same(&image, &copy);
        random_image(&copy, SIZE as usize);
        run(blockferry(["copy", "-C", connections]).arg(&copy).arg(&uri)).success();
        assert_same(&copy, &disk);
    }
    let said = served.said();
    assert!(!said.contains("no TLS"), "{said}");
}

#[test]
fn clients_find_us_over_tcp_by_name_and_by_address() {
    let realm = Realm::new();
    let image = realm.image();
    let mut child = blockferry(["serve", "--tls", "require", "--listen", ":0", "--print-uri"])
        .arg("--tls-certificates")
        .arg(realm.server(Flaw::None))
        .arg(&image)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary");
    let mut uri = String::new();
    let mut stdout = std::io::BufReader::new(child.stdout.take().expect("a pipe"));
    std::io::BufRead::read_line(&mut stdout, &mut uri).expect("a URI");
    assert!(uri.starts_with("nbds://localhost:"), "{uri}");
    let uri = uri.trim().split('?').next().expect("a URI");
    let copy = realm.path("copy.raw");
    for host in ["localhost", "127.0.0.1"] {
        let uri = format!("{}?{}", uri.replace("localhost", host), realm.trust());
        tool("nbdcopy", &[&uri, text(&copy)]);
        assert_same(&image, &copy);
        run(blockferry(["copy", &uri]).arg(&copy)).success();
        assert_same(&image, &copy);
    }
    signal(&child, "TERM");
    finish(child).success();
}

#[test]
fn clients_without_tls_are_refused_where_it_is_required_and_served_where_it_is_offered() {
    let realm = Realm::new();
    let image = realm.image();
    let required = Served::start(&realm, &image, &["--tls", "require"]);
    let (succeeded, words) = attempt("nbdinfo", &[&required.uri()]);
    assert!(!succeeded, "{words}");
    let (succeeded, words) = attempt("qemu-img", &["info", &required.uri()]);
    assert!(!succeeded && words.contains("TLS"), "{words}");
    run(&mut blockferry(["info", &required.uri()])).failure(1, &["nbds"]);
    tool("nbdinfo", &[&secure(&required.uri(), &realm.trust())]);
    drop(required);

    let offered = Served::start(&realm, &image, &["--tls", "on"]);
    for uri in [offered.uri(), secure(&offered.uri(), &realm.trust())] {
        tool("nbdinfo", &[&uri]);
        let copy = realm.path("copy.raw");
        run(blockferry(["copy", &uri]).arg(&copy)).success();
        assert_same(&image, &copy);
    }
    tool("qemu-img", &["info", &offered.uri()]);
    let (same, words) = Qemu::new(&offered.socket, &realm.path("trust")).compare(&image);
    assert!(same, "{words}");
}

#[test]
fn clients_prove_who_they_are_where_they_have_to() {
    let realm = Realm::new();
    let image = realm.image();
    let served = Served::start(&realm, &image, &["--tls", "require", "--tls-verify-peer"]);
    let member = secure(&served.uri(), &realm.member());
    let nobody = secure(&served.uri(), &realm.trust());
    // It trusts our authority, and is trusted by another one.
    let stranger = Authority::new().client(realm.room.path(), "stranger");
    fs::copy(
        realm.path("trust/ca-cert.pem"),
        stranger.join("ca-cert.pem"),
    )
    .expect("room");
    let stranger = secure(
        &served.uri(),
        &format!("tls-certificates={}", stranger.display()),
    );

    let qemu = |name: &str| Qemu::new(&served.socket, &realm.path(name)).compare(&image);
    tool("nbdinfo", &[&member]);
    run(&mut blockferry(["info", &member])).success();
    let (same, words) = qemu("member");
    assert!(same, "{words}");
    for refused in [&nobody, &stranger] {
        let (succeeded, words) = attempt("nbdinfo", &[refused]);
        assert!(!succeeded, "{words}");
        let outcome = run(&mut blockferry(["info", refused]));
        assert_eq!(outcome.code, 1, "{}", outcome.stderr);
        assert!(outcome.stderr.contains("certificate"), "{}", outcome.stderr);
    }
    for name in ["trust", "stranger"] {
        assert!(!qemu(name).0, "{name} was let in");
    }
    tool("nbdinfo", &[&member]);
    let said = served.said();
    for words in [
        "the client has no certificate to show",
        "the client's certificate is self-signed, or signed by an authority that is not in",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
}

#[test]
fn clients_that_do_not_trust_us_are_told_of() {
    let realm = Realm::new();
    let image = realm.image();
    let served = Served::start(&realm, &image, &["--tls", "on"]);
    let elsewhere = Authority::new().directory(realm.room.path(), "elsewhere");
    let uri = secure(
        &served.uri(),
        &format!("tls-certificates={}", elsewhere.display()),
    );
    let outcome = run(&mut blockferry(["info", &uri]));
    assert_ne!(outcome.code, 0, "{}", outcome.text());
    // libnbd looks at certificates where there is a host name only.
    assert!(!Qemu::new(&served.socket, &elsewhere).compare(&image).0);
    let said = served.said();
    let words = "the client does not trust this server's certificate";
    assert!(said.contains(words), "{said}");
}

#[test]
fn certificates_that_will_not_do_are_named_before_anybody_can_connect() {
    let realm = Realm::new();
    let image = realm.image();
    let start = |directory: &Path, arguments: &[&str]| {
        let socket = realm.path("serve.sock");
        let mut command = blockferry(["serve", "--tls", "require"]);
        command.args(arguments).arg("--tls-certificates");
        command
            .arg(directory)
            .arg("--unix")
            .arg(&socket)
            .arg(&image);
        let outcome = run(&mut command);
        assert!(!socket.exists(), "it listened");
        outcome
    };
    let server = |name: &str, flaw: Flaw| realm.authority.server(realm.room.path(), name, flaw);
    start(&server("late", Flaw::Expired), &[])
        .failure(1, &["late/server-cert.pem", "expired 3 days ago"]);
    start(&server("early", Flaw::NotYetValid), &[])
        .failure(1, &["early/server-cert.pem", "not valid yet"]);
    start(&realm.path("nowhere"), &[]).failure(1, &["nowhere/server-cert.pem"]);
    let torn = server("torn", Flaw::None);
    fs::copy(
        server("other", Flaw::None).join("server-key.pem"),
        torn.join("server-key.pem"),
    )
    .expect("room");
    start(&torn, &[]).failure(1, &["torn/server-cert.pem", "server-key.pem"]);
    fs::write(torn.join("server-key.pem"), "no key").expect("room");
    start(&torn, &[]).failure(1, &["torn/server-key.pem", "private key"]);
    let alone = server("alone", Flaw::None);
    fs::remove_file(alone.join("ca-cert.pem")).expect("it is there");
    start(&alone, &["--tls-verify-peer"]).failure(1, &["alone/ca-cert.pem"]);
    // Nobody is refused in silence who thought that there was TLS.
    for option in ["--tls-verify-peer", "--tls-certificates=/"] {
        let mut command = blockferry(["serve", option, "--unix"]);
        command.arg(realm.path("serve.sock")).arg(&image);
        run(&mut command).failure(2, &["--tls"]);
    }
}

#[test]
fn certificates_are_renewed_without_a_restart() {
    let realm = Realm::new();
    let image = realm.image();
    let served = Served::start(&realm, &image, &["--tls", "require"]);
    let uri = secure(&served.uri(), &realm.trust());
    let info = || run(&mut blockferry(["info", &uri]));
    info().success();
    let renewed = Authority::new();
    renewed.server(realm.room.path(), "server", Flaw::None);
    assert_ne!(info().code, 0, "the old certificate is still shown");
    renewed.directory(realm.room.path(), "trust");
    info().success();
}
