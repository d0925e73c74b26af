//! The sources that are no file and no server: beside nbdkit's plugins where it has them, and against names
//! that mean no good.

use std::{
    fs::{self, File},
    os::{
        fd::AsRawFd,
        unix::{fs::symlink, net::UnixListener},
    },
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::tempdir;

use crate::support::{
    Peer, assert_same, blockferry, images::random_bytes, random_image, run, run::tool, sparse_image,
};

/// What the export of an nbdkit with `arguments` holds.
fn from_nbdkit(arguments: &[&str]) -> Vec<u8> {
    // Without extents: nbdkit 1.32 crashes when it is asked for those of joined files of odd sizes.
    let nbdcopy = ["--run", "nbdcopy --no-extents \"$uri\" -"];
    let mut command = Command::new("nbdkit");
    command.args(["-U", "-"]).args(arguments).args(nbdcopy);
    run(&mut command).success().stdout
}

/// What an endpoint holds.
#[track_caller]
fn from_us(endpoint: &str) -> Vec<u8> {
    run(&mut blockferry(["copy", endpoint, "-"]))
        .success()
        .stdout
}

fn escaped(text: &str) -> String {
    text.replace(',', ",,")
}

#[test]
fn data_is_what_nbdkit_makes_of_it() {
    let dir = tempdir().expect("a directory");
    let path = dir.path().join("file");
    fs::write(&path, "contents of a file").expect("written");
    let path = path.display();
    let expressions = [
        "0 1 2 3 @0x1fe 0x55 0xaa",
        "0 1 2 3 @^0x200 @-2 le16:0xaa55",
        "( 0x55 0xAA )*2048",
        "0x55*4 @+3 1",
        "\"ab\"*3",
        "1*0 2",
        "(1 2)*2*3 1*2*3",
        "\"abcdef\"[1:3] (1 2 3) [0:1] 1*10[2:4] \"abc\"[1:] \"abc\"[:2] \"abc\"[:] \"abc\"[3:]",
        "(1 2)[1:2]*3 1 [0:1] * 2 [1:2]",
        "@4",
        "@10 @2 1",
        "1 2 3 @0 (@2)",
        "1 2 3 @0 (@2 5)",
        "(@4)*2 1",
        "1 2 @-1 3",
        "1 @^8 @^4 2",
        "(1 2)->\\a \\a \\a*2",
        "(1 2) -> \\a (3->\\a \\a) \\a",
        "1 -> \\a 2 -> \\a \\a",
        "1 -> \\a (\\a 2 -> \\a \\a) \\a",
        "1 -> \\a-b_9 \\a-b_9\\a-b_9",
        "( 0x55 0xAA ) -> \\boot-signature ( @0x1fe \\boot-signature ) -> \\sector \\sector \\sector",
        "( @0x10 )->\\a \\a*3 \\a[2:5] 1",
        "1 (2 (3 4)*2)*2",
        "le16:0x102 be16:0x102 le32:1 be32:1 le64:0xffffffffffffffff be64:010",
        "010 0x 08 255",
        "0x55*0x4 0x55*010",
        "1 #c\n2 (3 #)\n)",
        "\"a\\n\\x41\\\"\\\\\\q#,\"",
        "\"\" \"é\"",
        "1\"a\"2 1@2 3",
        "\"abc\" @0 \"x\"",
        "<(printf 'a(b)')*2 <(echo '#') #x",
        "<( (echo -n a) )*2",
        "</dev/zero[:4] </dev/zero[1:4] 1",
        "<(yes)[:5] 1",
        "$x*2 ($x)[1:]",
        "@0x1000000 \"far\" @-0x1000 1*100",
        "",
    ];
    for expression in expressions {
        let data = format!("data={expression}");
        let expected = from_nbdkit(&["data", &data, "x=1 2"]);
        let found = from_us(&format!("data:data={},x=1 2", escaped(expression)));
        assert!(
            found == expected,
            "{expression}: {found:x?}, not {expected:x?}"
        );
    }
    for expression in [
        format!("<{path} 1"),
        format!("(<{path}) <{path}[:4]*2 <{path}*2 @^512"),
    ] {
        let expected = from_nbdkit(&["data", &format!("data={expression}")]);
        assert!(
            from_us(&format!("data:{expression}")) == expected,
            "{expression}"
        );
    }
    for (parameters, endpoint) in [
        (&["raw=a,b", "size=9"][..], "data:raw=a,,b,size=9"),
        (
            &["base64=aGVsbG8gbmJka2l0IHVzZXI="],
            "data:base64=aGVsbG8gbmJka2l0IHVzZXI=",
        ),
        (&["data=1 2 3", "size=2"], "data:1 2 3,size=2"),
        (&["data=1", "size=1025"], "data:data=1,size=1025"),
    ] {
        let expected = from_nbdkit(&[&["data"], parameters].concat());
        assert!(from_us(endpoint) == expected, "{endpoint}");
    }
}

#[test]
fn data_takes_variables_of_the_environment() {
    let mut copy = blockferry(["copy", "data:$bytes_of_this_test*2 $other,other=9", "-"]);
    copy.env("bytes_of_this_test", "7 8").env("other", "1");
    assert_eq!(run(&mut copy).success().stdout, [7, 8, 7, 8, 9]);
}

#[test]
fn what_is_no_data_is_refused_with_its_place() {
    for (text, code, part) in [
        ("data:1 2 x", 2, "at byte 4: this is not a field"),
        ("data:(1", 2, "without a ')'"),
        ("data:1*1000000000000", 1, "1.0 GiB of memory"),
        ("data:\"abc\"[2:9]", 1, "[2:9] is not a part of 3 bytes"),
        ("data:$no_such_variable_anywhere", 1, "is not defined"),
        ("data:</no/such/file", 1, "/no/such/file: No such file"),
        ("data:<(exit 3)", 1, "the script failed"),
        ("data:raw=1,base64=1", 2, "one of data, raw and base64"),
    ] {
        let outcome = run(&mut blockferry(["copy", text, "null:"]));
        outcome.failure(code, &[text, part]);
    }
}

#[test]
fn a_pattern_is_that_of_nbdkit() {
    for size in ["0", "1", "20", "1M", "1048579"] {
        let expected = from_nbdkit(&["pattern", size]);
        assert!(from_us(&format!("pattern:{size}")) == expected, "{size}");
    }
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image");
    let image_text = image.to_str().expect("UTF-8");
    run(&mut blockferry(["copy", "pattern:3M", image_text])).success();
    assert_eq!(
        fs::read(&image).expect("read"),
        from_nbdkit(&["pattern", "3M"])
    );
    run(&mut blockferry(["compare", "pattern:3M", image_text])).success();
    run(&mut blockferry(["copy", image_text, "pattern:3M"])).failure(2, &["only be a source"]);
}

#[test]
fn joined_files_are_read_and_written_as_nbdkit_does() {
    let dir = tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    let text = |name: &str| path(name).to_str().expect("UTF-8").to_owned();
    random_image(&path("a"), 300_001);
    sparse_image(&path("b"), 5 << 20);
    fs::write(path("c"), "").expect("written");
    fs::write(path("d,e"), "the end").expect("written");
    let names = ["a", "b", "c", "d,e"].map(text);
    let [a, b, c, d] = &names;
    let joined = format!("split:{a},{b},{c},{}", escaped(d));
    let expected = from_nbdkit(&["split", a, b, c, d]);
    assert!(from_us(&joined) == expected);
    let whole = [a, b, c, d]
        .map(|name| fs::read(name).expect("read"))
        .concat();
    assert!(whole == expected);

    let other = random_bytes(whole.len(), 7);
    fs::write(path("other"), &other).expect("written");
    run(&mut blockferry(["copy", &text("other"), &joined])).success();
    assert!(from_us(&joined) == other);
    let sizes = [a, b, c, d].map(|name| fs::metadata(name).expect("there").len());
    assert_eq!(sizes, [300_001, 5 << 20, 0, 7]);
    // One byte more than there is room for.
    fs::write(path("other"), [&other[..], b"x"].concat()).expect("written");
    run(&mut blockferry(["copy", &text("other"), &joined])).failure(1, &[&joined]);
    run(&mut blockferry(["copy", &joined, a])).failure(1, &["the same image"]);
    run(&mut blockferry(["copy", a, &joined])).failure(1, &["the same image"]);
    let missing = format!("split:{a},{}", text("missing"));
    run(&mut blockferry(["copy", &missing, "null:"])).failure(1, &["missing", "No such file"]);
}

#[test]
fn holes_of_joined_files_are_known() {
    let dir = tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
    let file = File::create(path("hole")).expect("made");
    file.set_len(1 << 20).expect("sized");
    fs::write(path("data"), vec![1; 1 << 20]).expect("written");
    let joined = format!("split:{},{}", path("hole"), path("data"));
    let map = run(&mut blockferry(["map", &joined])).success();
    let rows: Vec<Vec<&str>> = map
        .text()
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        rows,
        [
            ["0", "1048576", "3", "hole,zero"],
            ["1048576", "1048576", "0", "data"]
        ]
    );
}

#[test]
fn every_source_is_served() {
    let dir = tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
    random_image(Path::new(&path("a")), 100_000);
    random_image(Path::new(&path("b")), 50_000);
    for (endpoint, expected) in [
        (format!("split:{},{}", path("a"), path("b")), None),
        ("pattern:100003".to_owned(), None),
        ("data:(\"text\" @^512)*100".to_owned(), None),
        ("sample:1M".to_owned(), None),
        ("memory:64K".to_owned(), Some(vec![0; 64 << 10])),
        ("null:64K".to_owned(), Some(vec![0; 64 << 10])),
        (format!("file:{}", path("a")), None),
        (
            "eval:get_size=echo 1024,pread=yes | head -c $3".to_owned(),
            Some(b"y\n".repeat(512)),
        ),
    ] {
        let expected = expected.unwrap_or_else(|| from_us(&endpoint));
        let served = Peer::blockferry(dir.path(), Path::new(&endpoint));
        let nbdcopy = run(Command::new("nbdcopy").args([&served.uri(), "-"]));
        assert!(nbdcopy.success().stdout == expected, "{endpoint}");
    }
}

#[test]
fn what_is_written_to_memory_stays_while_it_is_served() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image");
    random_image(&image, 1 << 20);
    let image = image.to_str().expect("UTF-8");
    for endpoint in ["memory:1M", "data:0x55*1000 1,size=1M"] {
        let served = Peer::blockferry(dir.path(), Path::new(endpoint));
        tool("nbdcopy", &[image, &served.uri()]);
        // Another client, after the first one has gone.
        run(&mut blockferry([
            "compare",
            "--strict",
            image,
            &served.uri(),
        ]))
        .success();
    }
    run(&mut blockferry(["copy", image, "memory:1M"])).success();
    run(&mut blockferry(["copy", image, "memory:1M", "--verify"])).success();
    run(&mut blockferry(["copy", image, "memory:1000K"])).failure(1, &["memory:1000K"]);
    run(&mut blockferry(["copy", image, "null:"])).success();
}

/// A directory of images beside a file that is none of them.
fn images(dir: &Path) -> PathBuf {
    let images = dir.join("images");
    fs::create_dir_all(images.join("sub")).expect("made");
    random_image(&dir.join("secret"), 10_000);
    random_image(&images.join("b.raw"), 100_000);
    random_image(&images.join("a raw,1"), 50_000);
    symlink("../secret", images.join("out")).expect("linked");
    symlink("/etc/passwd", images.join("passwd")).expect("linked");
    symlink("b.raw", images.join("link")).expect("linked");
    tool("mkfifo", &[images.join("pipe").to_str().expect("UTF-8")]);
    drop(UnixListener::bind(images.join("socket")).expect("bound"));
    images
}

#[test]
fn a_directory_serves_its_files_and_nothing_else() {
    let dir = tempdir().expect("a directory");
    let images = images(dir.path());
    let endpoint = format!("dir:{}", images.display());
    let served = Peer::blockferry(dir.path(), Path::new(&endpoint));
    let socket = served.socket().display();
    let uri = |export: &str| format!("nbd+unix:///{export}?socket={socket}");
    let list = tool("nbdinfo", &["--list", "--json", &uri("")]);
    let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
    let exports = list["exports"].as_array().expect("exports");
    let names: Vec<_> = exports
        .iter()
        .map(|export| &export["export-name"])
        .collect();
    assert_eq!(names, ["a raw,1", "b.raw", "link"]);
    for export in [
        "",
        ".",
        "..",
        "sub",
        "out",
        "passwd",
        "pipe",
        "socket",
        "nothing",
        "../secret",
        "%2e%2e%2fsecret",
        "/etc/passwd",
        "./b.raw",
        "b.raw/",
        "sub/../b.raw",
    ] {
        let outcome = run(&mut blockferry(["info", &uri(export)]));
        assert_eq!(outcome.code, 1, "{export}: {}", outcome.stderr);
    }
    let copy = dir.path().join("copy");
    for (export, file) in [
        ("b.raw", "b.raw"),
        ("link", "b.raw"),
        ("a%20raw,1", "a raw,1"),
    ] {
        tool("nbdcopy", &[&uri(export), copy.to_str().expect("UTF-8")]);
        assert_same(&images.join(file), &copy);
    }
    // Written through one name, read through the other.
    random_image(&copy, 100_000);
    tool(
        "nbdcopy",
        &["--flush", copy.to_str().expect("UTF-8"), &uri("link")],
    );
    assert_same(&images.join("b.raw"), &copy);
    // A file that comes later is served too.
    fs::copy(&copy, images.join("new")).expect("copied");
    run(&mut blockferry(["info", &uri("new")])).success();
}

#[test]
fn a_directory_is_no_image() {
    let dir = tempdir().expect("a directory");
    let endpoint = format!("dir:{}", dir.path().display());
    for words in [
        ["copy", &endpoint, "null:"],
        ["copy", "sample:1M", &endpoint],
        ["compare", &endpoint, "sample:1M"],
    ] {
        let outcome = run(&mut blockferry(words));
        outcome.failure(2, &["several images"]);
    }
    let missing = format!("dir:{}/missing", dir.path().display());
    let mut serve = blockferry(["serve", &missing, "--unix"]);
    serve.arg(dir.path().join("socket"));
    run(&mut serve).failure(1, &["missing", "No such file"]);
}

#[test]
fn an_inherited_descriptor_is_an_image() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image");
    random_image(&image, 100_000);
    let binary = blockferry([] as [&str; 0]).get_program().to_owned();
    let mut shell = Command::new("sh");
    shell.arg("-c").arg("exec \"$0\" copy fd:7 - 7<\"$1\"");
    let copied = run(shell.arg(&binary).arg(&image)).success();
    assert_eq!(copied.stdout, fs::read(&image).expect("read"));
    let mut shell = Command::new("sh");
    shell
        .arg("-c")
        .arg("exec \"$0\" copy pattern:100000 fd:7 7<>\"$1\"");
    run(shell.arg(&binary).arg(&image)).success();
    assert!(fs::read(&image).expect("read") == from_us("pattern:100000"));
    run(&mut blockferry(["copy", "fd:77", "-"])).failure(1, &["fd:77"]);
    // One that is ours, and closed in programs that we start.
    let file = File::open(&image).expect("opened");
    let closed = format!("fd:{}", file.as_raw_fd());
    run(&mut blockferry(["copy", &closed, "-"])).failure(1, &[&closed]);
}

#[test]
fn the_sources_are_listed_for_people_and_for_programs() {
    let text = run(&mut blockferry(["sources"])).success();
    let json = run(&mut blockferry(["sources", "--json"])).success();
    let rows: serde_json::Value = serde_json::from_str(json.text()).expect("JSON");
    let rows = rows.as_array().expect("rows");
    for name in [
        "file", "dir", "memory", "null", "sample", "pattern", "data", "nbd", "split", "sh", "eval",
    ] {
        let row = rows.iter().find(|row| row["name"] == name).expect(name);
        let syntax = row["syntax"].as_str().expect("a syntax");
        assert!(text.text().lines().any(|line| line == syntax), "{syntax}");
    }
    let sample = rows
        .iter()
        .find(|row| row["name"] == "sample")
        .expect("a sample");
    assert_eq!(sample["destination"], false);
    assert_eq!(sample["parameters"][2]["type"], "percent");
    assert_eq!(sample["parameters"][2]["default"], "25");
    let copy = run(&mut blockferry(["copy", "--help"])).success();
    assert!(copy.text().contains("split:FILE,FILE...") && !copy.text().contains("dir:PATH"));
}
