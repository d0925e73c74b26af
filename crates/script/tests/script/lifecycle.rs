//! From loading to unloading: parameters, the temporary directory, what a script finds around it.

use std::{ffi::OsString, os::fd::AsRawFd as _, path::PathBuf};

use blockferry_block::{Buffer, ClientFacts, ErrorKind, Exports as _};
use blockferry_script::{Program, Script, ScriptOptions, ThreadModel};

use crate::support::{Room, eval, eval_script, lines, open};

fn parameters(list: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    let list = list.iter();
    list.map(|(key, value)| (key.into(), value.into()))
        .collect()
}

#[tokio::test]
async fn a_script_is_called_in_the_order_of_nbdkit() {
    let room = Room::cases("magic_config_key) echo file ;;\nconfig) ;;\nopen) echo h1 ;;\n");
    let mut options = room.options();
    options.parameters = parameters(&[("a", "1"), ("", "x y"), ("script", "z")]);
    let script = Script::start(options).await.expect("a script");
    assert_eq!(script.magic_key(), Some("file".as_ref()));
    let client = ClientFacts {
        read_only: false,
        tls: true,
    };
    script.connecting(client).await.expect("welcome");
    drop(script.open("", client).await.expect("an export"));
    let client = ClientFacts {
        read_only: true,
        ..client
    };
    script.connecting(client).await.expect("welcome");
    drop(script.open("some name", client).await.expect("an export"));
    script.close().await;
    drop(script);
    assert_eq!(
        room.calls(),
        [
            "load",
            "magic_config_key",
            "config a 1",
            "config file x y",
            "config file z",
            "config_complete",
            "thread_model",
            "get_ready",
            "after_fork",
            "preconnect false",
            "default_export false true",
            "open false  true",
            "get_size h1",
            "can_write h1",
            "can_flush h1",
            "is_rotational h1",
            "can_multi_conn h1",
            "can_cache h1",
            "can_extents h1",
            "block_size h1",
            "export_description h1",
            "close h1",
            "preconnect true",
            "open true some name true",
            "get_size h1",
            "can_flush h1",
            "is_rotational h1",
            "can_multi_conn h1",
            "can_cache h1",
            "can_extents h1",
            "block_size h1",
            "export_description h1",
            "close h1",
            "unload",
        ]
    );
}

#[tokio::test]
async fn a_parameter_that_the_script_does_not_take_keeps_it_from_starting() {
    let start = async |cases: &str, key: &str| {
        let room = Room::cases(cases);
        let mut options = room.options();
        options.parameters = parameters(&[(key, "value")]);
        let error = Script::start(options).await.expect_err("not taken");
        assert!(!room.calls().contains(&"unload".to_owned()));
        error
    };
    let error = start("", "key").await;
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(
        error.to_string().contains("no parameter \"key\""),
        "{error}"
    );
    let error = start("config) exit 0 ;;", "").await;
    assert!(
        error.to_string().contains("\"value\" has no key"),
        "{error}"
    );
    let error = start("config) echo EPERM not $2 >&2; exit 1 ;;", "key").await;
    assert_eq!(error.kind(), ErrorKind::NotPermitted);
    assert_eq!(error.to_string(), "sh:script: open: config: not key");
}

#[tokio::test]
async fn each_early_method_can_keep_a_script_from_starting() {
    for method in [
        "load",
        "magic_config_key",
        "config_complete",
        "thread_model",
        "get_ready",
        "after_fork",
    ] {
        for code in [1, 3] {
            let room = Room::cases(&format!("{method}) exit {code} ;;"));
            let error = Script::start(room.options()).await.expect_err(method);
            let text = error.to_string();
            assert!(
                text.starts_with(&format!("sh:script: open: {method}: ")),
                "{text}"
            );
        }
    }
    for method in ["preconnect", "list_exports", "default_export"] {
        let room = Room::cases(&format!("{method}) echo EPERM no >&2; exit 1 ;;"));
        let script = room.start().await;
        let client = ClientFacts::default();
        let failed = match method {
            "preconnect" => script.connecting(client).await.is_err(),
            "list_exports" => script.list(client).await.is_err(),
            _ => script.open("", client).await.is_err(),
        };
        assert!(failed, "{method}");
    }
}

#[tokio::test]
async fn a_script_sees_its_directory_no_signals_and_no_descriptors_of_ours() {
    let cases = r#"
load)
    echo "$tmpdir" > "$here/tmpdir"
    stat -c %a "$tmpdir" > "$here/mode"
    grep -E '^Sig(Blk|Ign)' /proc/self/status > "$here/signals"
    readlink /proc/self/fd/0 > "$here/stdin"
    ls -l /proc/self/fd > "$here/descriptors" ;;
"#;
    let room = Room::cases(cases);
    let (ours, _writer) = std::io::pipe().expect("descriptors that are open in the meantime");
    let ours = format!("/proc/self/fd/{}", ours.as_raw_fd());
    let ours = std::fs::read_link(ours)
        .expect("a pipe")
        .display()
        .to_string();
    let script = room.start().await;
    let directory = PathBuf::from(lines(&room.file("tmpdir")).join(""));
    assert!(directory.is_absolute() && directory.is_dir());
    assert_eq!(lines(&room.file("mode")), ["700"]);
    assert_eq!(lines(&room.file("stdin")), ["/dev/null"]);
    let descriptors = lines(&room.file("descriptors"));
    assert!(descriptors.iter().any(|line| line.ends_with("/dev/null")));
    assert!(
        !descriptors.iter().any(|line| line.ends_with(&ours)),
        "{descriptors:?}"
    );
    for line in lines(&room.file("signals")) {
        let mask = line.split_whitespace().nth(1).expect("a mask");
        let mask = u64::from_str_radix(mask, 16).expect("hexadecimal");
        // SIGPIPE is number 13.
        assert_eq!(mask & (1 << 12), 0, "{line}");
        if line.starts_with("SigBlk") {
            assert_eq!(mask, 0, "{line}");
        }
    }
    script.close().await;
    assert!(!directory.exists());
}

#[tokio::test]
async fn a_script_that_is_dropped_is_unloaded_and_its_directory_removed() {
    let room = Room::cases("load) echo \"$tmpdir\" > \"$here/tmpdir\" ;;\n");
    let (script, export) = room.open().await;
    let directory = PathBuf::from(lines(&room.file("tmpdir")).join(""));
    drop(script);
    // The device still needs it.
    assert!(directory.is_dir());
    assert_eq!(room.calls_of(&["close", "unload"]), [""; 0]);
    drop(export);
    assert_eq!(room.calls_of(&["close", "unload"]), ["close ", "unload"]);
    assert!(!directory.exists());
}

#[tokio::test]
async fn a_text_is_run_by_the_shell_or_by_the_interpreter_that_it_names() {
    for (first, shell) in [("", "sh"), ("#!/bin/bash\n", "bash"), ("#!/bin/sh\n", "sh")] {
        let text = format!(
            "{first}case $1 in get_size) echo 7 ;; pread) ;;
             export_description) echo \"$0 $tmpdir $(stat -c %a $0) $(basename $(tr '\\0' ' ' < /proc/$$/cmdline | cut -d' ' -f1))\" ;;
             *) exit 2 ;; esac"
        );
        let program = Program::Inline(text.into_bytes());
        let script = Script::start(ScriptOptions::new(program, "inline")).await;
        let script = script.expect("a script");
        let export = open(&script, "").await.expect("an export");
        let said = export.device.info().description.clone().expect("a text");
        let words: Vec<_> = said.split(' ').collect();
        assert_eq!(words[0], format!("{}/inline-script.sh", words[1]));
        assert_eq!(words[2..], ["500", shell]);
    }
}

#[tokio::test]
async fn a_file_without_an_interpreter_is_run_by_the_shell() {
    let room = Room::new(
        "case $1 in get_size) echo 7 ;; open) echo \"$0\" ;; close) echo \"$2\" > \"$0.closed\" ;; *) exit 2 ;; esac\n",
    );
    let (_script, export) = room.open().await;
    assert_eq!(export.device.info().size, 7);
    drop(export);
    let path = room.script().display().to_string();
    assert_eq!(lines(&room.file("script.closed")), [path]);
}

#[tokio::test]
async fn a_relative_path_becomes_an_absolute_one_without_links() {
    let room = Room::new(
        "#!/bin/sh\ncase $1 in get_size) echo 7 ;; export_description) echo \"$0\" ;; *) exit 2 ;; esac\n",
    );
    std::os::unix::fs::symlink(room.script(), room.file("link")).expect("a link");
    let program = Program::File(room.file("link"));
    let script = Script::start(ScriptOptions::new(program, "link")).await;
    let export = open(&script.expect("a script"), "")
        .await
        .expect("an export");
    let path = room.script().display().to_string();
    assert_eq!(export.device.info().description, Some(path));
}

#[tokio::test]
async fn an_eval_is_a_script_for_each_method() {
    let said = "echo \"$(basename $0) $1 $2-$3-$4\"";
    let open_said = format!("{said} | tr ' ' _");
    let methods = [
        ("get_size", "echo 1M"),
        ("pread", "head -c $3 /dev/zero"),
        ("open", open_said.as_str()),
        ("export_description", said),
    ];
    let script = eval_script(&methods).await.expect("a script");
    assert_eq!(script.thread_model(), ThreadModel::SerializeAllRequests);
    let export = open(&script, "that one").await.expect("an export");
    assert_eq!(
        export.device.info().description.as_deref(),
        Some("export_description export_description open_open_false-that_one-false--")
    );
    let read = export.device.read(512, Buffer::zeroed(1000)).await;
    assert_eq!(read.expect("read")[..], [0; 1000]);
}

#[tokio::test]
async fn a_method_of_an_eval_says_that_it_can_be_used() {
    use blockferry_block::Capabilities as C;
    for (method, capability) in [
        ("pwrite", C::WRITE),
        ("flush", C::FLUSH),
        ("trim", C::TRIM),
        ("zero", C::ZERO),
        ("cache", C::CACHE),
    ] {
        let mut methods = vec![
            ("get_size", "echo 1M"),
            ("pread", "exit 1"),
            (method, "exit 0"),
        ];
        if method != "pwrite" {
            methods.push(("can_write", "exit 0"));
        }
        let (_script, device) = eval(&methods).await;
        assert!(device.info().can(capability), "{method}");
        let question = format!("can_{}", if method == "pwrite" { "write" } else { method });
        if method != "cache" && method != "pwrite" {
            methods.push((question.as_str(), "exit 3"));
            let (_script, device) = eval(&methods).await;
            assert!(!device.info().can(capability), "{method}");
        }
    }
}

#[tokio::test]
async fn the_missing_method_of_an_eval_stands_in_for_all_others() {
    let room = Room::new("");
    let log = room.file("log");
    let missing = format!("echo \"$(basename $0) $*\" >> {}; exit 2", log.display());
    let methods = [
        ("get_size", "echo 1M"),
        ("pread", "exit 1"),
        ("flush", "exit 0"),
        ("missing", missing.as_str()),
    ];
    let (script, device) = eval(&methods).await;
    drop(device);
    script.close().await;
    assert_eq!(
        lines(&log),
        [
            "missing config_complete",
            "missing thread_model",
            "missing get_ready",
            "missing after_fork",
            "missing default_export false false",
            "missing open false  false",
            "missing can_write ",
            "missing is_rotational ",
            "missing can_multi_conn ",
            "missing can_cache ",
            "missing can_extents ",
            "missing block_size ",
            "missing export_description ",
            "missing close ",
            "missing unload",
        ]
    );
}

#[tokio::test]
async fn an_eval_takes_no_method_that_is_none_or_given_twice() {
    let error = eval_script(&[("../x", "exit 0")])
        .await
        .expect_err("no method");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let twice = [("pread", "exit 0"), ("pread", "exit 1")];
    let error = eval_script(&twice).await.expect_err("given twice");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[tokio::test]
async fn a_script_can_say_what_it_is() {
    let room = Room::cases(
        "config) ;;\nthread_model) echo parallel ;;\ndump_plugin) echo x=1; echo y=2 ;;\n",
    );
    let mut options = room.options();
    options.parameters = parameters(&[("a", "1")]);
    let dump = Script::dump_plugin(options).await.expect("a script");
    assert_eq!(dump.text, b"x=1\ny=2\n");
    assert_eq!(dump.thread_model, ThreadModel::Parallel);
    assert_eq!(
        room.calls(),
        [
            "load",
            "magic_config_key",
            "config a 1",
            "thread_model",
            "dump_plugin",
            "unload"
        ]
    );
}

#[test]
fn a_script_serves_runtimes_side_by_side_and_outlives_that_which_started_it() {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder
            .enable_io()
            .enable_time()
            .build()
            .expect("a runtime")
    };
    let room = Room::cases("thread_model) echo parallel ;;\n");
    let script = runtime().block_on(room.start());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let runtime = runtime();
                let export = runtime.block_on(open(&script, "")).expect("an export");
                for offset in 0..10 {
                    let read = export.device.read(offset, Buffer::zeroed(4096));
                    assert_eq!(runtime.block_on(read).expect("read")[..], [0; 4096]);
                }
                drop(export);
            });
        }
    });
    runtime().block_on(script.close());
    assert_eq!(room.calls_of(&["pread"]).len(), 40);
    assert_eq!(room.calls_of(&["close", "unload"]).len(), 5);
}
