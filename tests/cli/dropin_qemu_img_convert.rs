//! Under the name qemu-img: conversions beside the real tool, and the command lines of those who call it.

use std::{fs, process::Command};

use crate::{
    dropin_qemu_img::{Twins, converted},
    support::{
        Outcome, allocated,
        dropin::{BOTH, Who, words},
        qemu::{assert_identical, check, qemu_img, qemu_io, text},
        run,
        run::{finish, signal},
    },
};

fn prepared() -> Twins {
    Twins::new(|dir| {
        converted(dir, "disk.qcow2", "qcow2");
        let small = dir.join("small");
        qemu_img(&["create", "-q", "-f", "raw", text(&small), "1M"]);
    })
}

#[test]
fn conversions_end_alike_and_hold_the_same() {
    let twins = prepared();
    for (arguments, format) in [
        ("disk copy", "raw"),
        ("-f raw -O qcow2 disk copy", "qcow2"),
        ("-O qcow2 -c disk copy", "qcow2"),
        ("-O qcow2 -c -W -m 4 disk copy", "qcow2"),
        ("-O qcow2 -o compat=0.10 disk copy", "qcow2"),
        (
            "-O qcow2 -o compat=1.1,cluster_size=4k -o lazy_refcounts=on disk copy",
            "qcow2",
        ),
        ("-O qcow2 -o size=1M disk copy", "qcow2"),
        (
            "-O qcow2 -o compression_type=zstd -c disk.qcow2 copy",
            "qcow2",
        ),
        ("-O raw -o preallocation=falloc disk.qcow2 copy", "raw"),
        ("-f qcow2 -O raw -t none -T none -W disk.qcow2 copy", "raw"),
        ("-f qcow2 -O raw -S 0 disk.qcow2 copy", "raw"),
        ("-S 64k -O qcow2 disk.qcow2 copy", "qcow2"),
        ("-f raw disk.qcow2 copy", "raw"),
        ("-r 1G -U --salvage disk copy", "raw"),
        ("-C disk copy", "raw"),
        ("disk small disk copy", "raw"),
        (
            "--image-opts driver=qcow2,file.filename=disk.qcow2 copy",
            "raw",
        ),
        (
            "--image-opts driver=raw,offset=1M,size=2M,file.filename=disk copy",
            "raw",
        ),
        (
            r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"disk.qcow2"}} copy"#,
            "raw",
        ),
        (
            r#"json:{"file.driver":"file","file.filename":"disk.qcow2"} copy"#,
            "raw",
        ),
        ("file:disk file:copy", "raw"),
    ] {
        twins.remove("copy");
        twins.same(&format!("convert {arguments}"));
        let [theirs, ours] = BOTH.map(|who| twins.path(who, "copy"));
        assert_identical((&theirs, format), (&ours, format));
        if format == "qcow2" {
            check(&ours);
        }
    }
}

#[test]
fn refusals_are_the_same() {
    let twins = prepared();
    for arguments in [
        "-m 0 disk copy",
        "-m 17 disk copy",
        "-m x disk copy",
        "-r x disk copy",
        "-S x disk copy",
        "-S 1000 disk copy",
        "-S 32M disk copy",
        "-t bogus disk copy",
        "-T bogus disk copy",
        "-c disk copy",
        "-C -S 4k disk copy",
        "-C --salvage disk copy",
        "-O bogus disk copy",
        "-O qcow2 -o bogus=1 disk copy",
        "-O raw -o cluster_size=1 disk copy",
        "-n -o size=1 disk small",
        "--target-is-zero disk copy",
        "--target-image-opts disk driver=raw,file.filename=copy",
        "-n --target-image-opts -O raw disk driver=raw,file.filename=small",
        "-B disk -F raw -O raw disk copy",
        "-B disk -O qcow2 disk copy",
        "-F raw -O qcow2 disk copy",
        "--skip-broken-bitmaps disk copy",
        "--bitmaps disk copy",
        "--bitmaps -O raw disk.qcow2 copy",
        "-f bogus disk copy",
        "-f raw --image-opts disk copy",
        "-n disk nofile",
        "nofile copy",
    ] {
        twins.same(&format!("convert {arguments}"));
        assert!(!twins.path(Who::Ours, "copy").exists(), "{arguments}");
    }
    let [_, ours] = twins.alike("convert disk nodir/copy");
    let words = "nodir/copy: error while converting raw: Could not create 'nodir/copy': No such file or directory";
    ours.failure(1, &[words]);
    let [_, ours] = twins.alike("convert disk disk");
    ours.failure(1, &["same image"]);
}

#[test]
fn a_target_that_is_there_is_written_in_place_only_with_n() {
    let twins = prepared();
    for who in BOTH {
        fs::copy(twins.path(who, "disk"), twins.path(who, "there")).expect("room");
    }
    // Emptied, and not only written over.
    twins.same("convert small there");
    assert_eq!(
        fs::metadata(twins.path(Who::Ours, "there"))
            .expect("there")
            .len(),
        1 << 20
    );
    for (arguments, words) in [
        (
            "convert -n disk there",
            "output file is smaller than input file",
        ),
        ("convert -n -O qcow2 disk there", "Could not open 'there'"),
    ] {
        let [_, ours] = twins.alike(arguments);
        ours.failure(1, &[words]);
    }
    for who in BOTH {
        let there = twins.path(who, "there");
        qemu_img(&["create", "-q", "-f", "qcow2", text(&there), "8M"]);
    }
    twins.same("convert -n -O qcow2 --target-is-zero disk there");
    let [theirs, ours] = BOTH.map(|who| twins.path(who, "there"));
    check(&ours);
    assert_identical((&theirs, "qcow2"), (&ours, "qcow2"));
    twins.same("convert -n --target-image-opts small driver=qcow2,file.filename=there");
    assert_identical((&theirs, "qcow2"), (&ours, "qcow2"));
    let [_, ours] = twins.run("convert -n -c -O qcow2 disk there");
    ours.failure(1, &["-c with -n", "use QEMU's own qemu-img"]);
}

#[test]
fn overlays_and_snapshots_are_read_and_made() {
    let twins = Twins::new(|dir| {
        converted(dir, "disk.qcow2", "qcow2");
        let image = dir.join("disk.qcow2");
        qemu_img(&["snapshot", "-c", "before", text(&image)]);
        qemu_io(&image, "qcow2", &["write -P 7 1M 1M"]);
        let over = dir.join("over.qcow2");
        let base = ["-b", "disk.qcow2", "-F", "qcow2"];
        qemu_img(&[&["create", "-q", "-f", "qcow2"], &base[..], &[text(&over)]].concat());
    });
    for arguments in [
        "-l before disk.qcow2 copy",
        "-l snapshot.name=before disk.qcow2 copy",
        "-l snapshot.id=1 -O qcow2 disk.qcow2 copy",
        "-B disk.qcow2 -F qcow2 -O qcow2 disk copy",
        "-o backing_file=disk.qcow2,backing_fmt=qcow2 -O qcow2 disk copy",
    ] {
        twins.remove("copy");
        twins.same(&format!("convert {arguments}"));
        qemu_img(&[
            "compare",
            text(&twins.path(Who::Theirs, "copy")),
            text(&twins.path(Who::Ours, "copy")),
        ]);
    }
    let [_, ours] = twins.alike("convert -l none disk.qcow2 copy");
    ours.failure(1, &["snapshot"]);
    // Nothing that an image names is opened unless that was allowed.
    let refused = run(&mut twins.command(Who::Ours, &["convert", "over.qcow2", "copy"]));
    refused.failure(
        1,
        &[
            "Could not open 'over.qcow2'",
            "disk.qcow2",
            "BLOCKFERRY_ALLOW_BACKING",
        ],
    );
    let mut allowed = twins.command(Who::Ours, &["convert", "over.qcow2", "copy"]);
    allowed.env("BLOCKFERRY_ALLOW_BACKING", twins.path(Who::Ours, ""));
    run(&mut allowed).success();
    let copy = twins.path(Who::Ours, "copy");
    assert_identical(
        (&copy, "raw"),
        (&twins.path(Who::Ours, "disk.qcow2"), "qcow2"),
    );
}

/// The numbers of `    (12.34/100%)`, as KubeVirt's importer takes them out.
fn fractions(said: &str) -> Vec<f64> {
    let pieces = said.split(['\r', '\n']);
    let numbers = pieces.filter_map(|piece| {
        let number = piece
            .trim_start()
            .strip_prefix('(')?
            .strip_suffix("/100%)")?;
        let (_, digits) = number.split_once('.')?;
        assert_eq!(digits.len(), 2, "{piece}");
        number.parse().ok()
    });
    numbers.collect()
}

#[test]
fn progress_is_shown_on_standard_output_and_to_who_asks() {
    let twins = prepared();
    for arguments in ["-p disk copy", "-t none -p -O raw disk.qcow2 copy"] {
        for outcome in twins.run(&format!("convert {arguments}")) {
            let outcome = outcome.success();
            let shown = fractions(outcome.text());
            assert_eq!(shown.first(), Some(&0.0));
            assert_eq!(shown.last(), Some(&100.0));
            assert!(shown.is_sorted(), "{shown:?}");
            assert!(outcome.text().ends_with("    (100.00/100%)\r\n"));
        }
    }
    twins.same("convert -p -q disk copy");
    // Theirs is done with so little before it can be asked.
    let mut command = twins.command(Who::Ours, &words("convert -r 50k disk copy"));
    command.stdout(std::process::Stdio::piped());
    let child = command.stderr(std::process::Stdio::piped()).spawn();
    let child = child.expect("a program");
    crate::support::run::until_it_writes(&child, &twins.path(Who::Ours, ""));
    signal(&child, "USR1");
    std::thread::sleep(std::time::Duration::from_millis(300));
    signal(&child, "TERM");
    let ended = finish(child);
    assert_eq!(ended.code, 143, "{}", ended.stderr);
    assert_eq!(fractions(&ended.stderr).len(), 1, "{}", ended.stderr);
}

/// What a script prints that calls the `qemu-img` of whoever it is.
#[track_caller]
fn script(twins: &Twins, who: Who, script: &str) -> Outcome {
    let path = who.path("qemu-img", &twins.path(who, ""));
    let mut command = Command::new("sh");
    command
        .args(["-ec", &script.replace("qemu-img", text(&path))])
        .current_dir(twins.path(who, ""))
        .env("LC_ALL", "C");
    run(&mut command).success()
}

#[test]
fn the_command_lines_of_others_work() {
    let twins = Twins::new(|dir| {
        converted(dir, "disk.qcow2", "qcow2");
        let bitmapped = dir.join("bitmaps.qcow2");
        fs::copy(dir.join("disk.qcow2"), &bitmapped).expect("room");
        qemu_img(&["bitmap", "--add", text(&bitmapped), "one"]);
    });
    for (line, made, format) in [
        // KubeVirt's containerized data importer.
        (
            "qemu-img convert -t none -p -O raw disk.qcow2 copy",
            "copy",
            "raw",
        ),
        ("qemu-img resize -f raw copy 8M", "copy", "raw"),
        // oVirt's vdsm.
        (
            "qemu-img convert -p -t none -T none -f qcow2 disk.qcow2 -O raw copy2",
            "copy2",
            "raw",
        ),
        (
            "qemu-img convert -p -t none -T none -f raw disk -O qcow2 -o compat=1.1,preallocation=off -W copy3",
            "copy3",
            "qcow2",
        ),
        (
            "qemu-img convert -t none -T none -f qcow2 -O qcow2 --bitmaps bitmaps.qcow2 copy4",
            "copy4",
            "qcow2",
        ),
        (
            "qemu-img create -f qcow2 -o compat=1.1 copy5 6M",
            "copy5",
            "qcow2",
        ),
        (
            "qemu-img compare -p -f qcow2 -F raw disk.qcow2 copy2",
            "copy2",
            "raw",
        ),
        // OpenStack.
        (
            "prlimit --as=1073741824 --cpu=30 env LC_ALL=C LANG=C qemu-img convert -t none -O raw -f qcow2 disk.qcow2 copy6",
            "copy6",
            "raw",
        ),
        (
            "qemu-img create -f qcow2 -o backing_file=disk,backing_fmt=raw copy7 6M",
            "copy7",
            "qcow2",
        ),
        // Incus.
        (
            "qemu-img convert -f raw -O qcow2 -c disk copy8",
            "copy8",
            "qcow2",
        ),
        (
            "truncate -s 6M copy9; nice -n19 qemu-img convert -f qcow2 -O raw -W -n --target-is-zero disk.qcow2 copy9",
            "copy9",
            "raw",
        ),
        // libguestfs.
        (
            "qemu-img create -f qcow2 -o preallocation=metadata copy10 10M",
            "copy10",
            "qcow2",
        ),
        (
            "qemu-img --help | grep -q 'convert - '; qemu-img create -f raw copy11 1M",
            "copy11",
            "raw",
        ),
        // virt-v2v, in front of what nbdkit serves.
        (
            "qemu-img create -q -f qcow2 copy12 6M; \
             qemu-img convert -p -n -f raw -O qcow2 'json:{\"driver\": \"raw\", \"file\": {\"driver\": \"file\", \"filename\": \"disk\"}}' copy12",
            "copy12",
            "qcow2",
        ),
        // Packer.
        (
            "qemu-img convert -O qcow2 disk.qcow2 copy13",
            "copy13",
            "qcow2",
        ),
        ("qemu-img create -f qcow2 copy14 40960M", "copy14", "qcow2"),
    ] {
        for who in BOTH {
            script(&twins, who, line);
        }
        let [theirs, ours] = BOTH.map(|who| twins.path(who, made));
        assert_identical((&theirs, format), (&ours, format));
        if format == "qcow2" {
            check(&ours);
        }
    }
    let info = qemu_img(&["info", text(&twins.path(Who::Ours, "copy4"))]);
    assert!(info.contains("name: one"), "{info}");
}

#[test]
fn servers_are_sources_and_targets() {
    let twins = prepared();
    for who in BOTH {
        let disk = twins.path(who, "disk");
        let socket = twins.path(who, "socket");
        let mut server = Command::new("nbdkit");
        server.args(["-f", "-U", text(&socket), "file", text(&disk)]);
        let mut server = server.spawn().expect("nbdkit");
        crate::support::run::until("the server", || socket.exists());
        for arguments in [
            "convert -n disk nbd:unix:socket".to_owned(),
            format!("convert nbd+unix:///?socket={} one", text(&socket)),
            "convert nbd:unix:socket two".to_owned(),
            "convert --image-opts driver=raw,file.driver=nbd,file.path=socket three".to_owned(),
            r#"convert json:{"driver":"nbd","server":{"type":"unix","path":"socket"}} four"#
                .to_owned(),
            "compare nbd:unix:socket disk".to_owned(),
        ] {
            // Onto itself it would be the same image.
            let arguments = arguments.replace("-n disk nbd", "-n disk.qcow2 nbd");
            let outcome = run(&mut twins.command(who, &words(&arguments)));
            assert_eq!(outcome.code, 0, "{who:?} {arguments}: {}", outcome.stderr);
        }
        let _ = server.kill();
        let _ = server.wait();
        for made in ["one", "two", "three", "four"] {
            assert_identical((&disk, "raw"), (&twins.path(who, made), "raw"));
        }
    }
}

#[test]
fn holes_stay_holes_unless_none_are_wanted() {
    let twins = prepared();
    twins.same("convert disk.qcow2 copy");
    assert!(allocated(&twins.path(Who::Ours, "copy")) < 2 << 20);
    twins.same("convert -S 0 disk.qcow2 copy");
    assert!(allocated(&twins.path(Who::Ours, "copy")) >= 6 << 20);
}

#[test]
fn an_image_has_all_clusters_where_no_zeroes_are_looked_for() {
    let twins = prepared();
    for who in BOTH {
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            text(&twins.path(who, "empty")),
            "4M",
        ]);
    }
    twins.same("convert -f qcow2 -O qcow2 -S 0 empty copy");
    let [theirs, ours] = BOTH.map(|who| twins.path(who, "copy"));
    for path in [&theirs, &ours] {
        assert!(allocated(path) >= 4 << 20, "{path:?}");
    }
    assert_identical((&theirs, "qcow2"), (&ours, "qcow2"));
    check(&ours);
}
