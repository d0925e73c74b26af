//! `qemu-img info` and `snapshot -l`, theirs and ours.

use crate::support::{
    blockferry,
    dropin::Who,
    gallery::{Gallery, IMAGES},
    run,
};

#[test]
fn every_image_is_described_as_qemu_img_does() {
    let gallery = Gallery::new();
    for image in IMAGES {
        for arguments in [
            "info",
            "info --output=json",
            "info --output human -U",
            "info --backing-chain",
            "info -b --output json",
        ] {
            let (code, text) = gallery.alike(arguments, image);
            assert!(code == 0 && text.contains(image) || !image.is_ascii());
        }
        gallery.alike("info -f raw --output=json", image);
    }
}

#[test]
fn snapshots_are_listed_as_qemu_img_does() {
    let gallery = Gallery::new();
    for image in IMAGES {
        gallery.alike("snapshot -l", image);
        gallery.alike("snapshot -q", image);
    }
    let (_, text) = gallery.alike("snapshot -l", "plain.qcow2");
    assert!(text.contains("a name with spaces and more"), "{text}");
    gallery.alike("snapshot -l -a x", "plain.qcow2");
    gallery.alike("snapshot", "");
}

#[test]
fn descriptions_and_json_names_are_images() {
    let gallery = Gallery::new();
    for described in [
        "driver=qcow2,file.filename=plain.qcow2",
        "driver=raw,file.driver=file,file.filename=sparse.raw",
        "file.filename=top.qcow2",
    ] {
        gallery.alike("info --image-opts", described);
        gallery.alike("info --output=json --image-opts", described);
    }
    let json = r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"plain.qcow2"}}"#;
    gallery.alike("info", json);
    gallery.alike("info --output=json", json);
}

#[test]
fn an_export_has_no_space_that_anybody_knows_of() {
    let gallery = Gallery::new();
    for (image, format) in [("sparse.raw", "raw"), ("plain.qcow2", "qcow2")] {
        let (server, _socket) = gallery.serve(image);
        let uri = server.uri();
        for arguments in ["info", "info --output=json", "info -b"] {
            let arguments = format!("{arguments} -f {format}");
            let (_, text) = gallery.alike(&arguments, &uri);
            assert!(text.contains("nbd+unix://?socket="), "{text}");
        }
    }
}

#[test]
fn what_is_wrong_is_refused_with_the_same_exit_code() {
    let gallery = Gallery::new();
    for arguments in [
        "info nope",
        "info",
        "info plain.qcow2 top.qcow2",
        "info -f bogus plain.qcow2",
        "info -f qcow2 sparse.raw",
        "info --bogus plain.qcow2",
        "info --output=xml plain.qcow2",
        "info --image-opts -f raw x",
        "info .",
    ] {
        let (code, _) = gallery.alike(arguments, "");
        assert_eq!(code, 1, "{arguments}");
    }
}

#[test]
fn a_missing_backing_file_is_told_of_and_not_looked_for() {
    let gallery = Gallery::new();
    let file = gallery.path().join("orphan.qcow2");
    let options = "backing_file=nowhere.qcow2,backing_fmt=qcow2";
    let arguments = ["create", "-q", "-u", "-f", "qcow2", "-o", options];
    let mut create = Who::Theirs.tool("qemu-img", arguments);
    run(create.arg(&file).arg("1M")).success();
    gallery.settle();
    gallery.alike("info", "orphan.qcow2");
    let (code, _) = gallery.alike("info --backing-chain", "orphan.qcow2");
    assert_eq!(code, 1);
}

#[test]
fn nothing_in_an_image_steers_a_terminal() {
    let gallery = Gallery::new();
    let name = "evil\u{1b}[31m\n.qcow2";
    let file = gallery.path().join("evil.qcow2");
    let options = format!("backing_file={name},backing_fmt=qcow2");
    let arguments = ["create", "-q", "-u", "-f", "qcow2", "-o", &options];
    let mut create = Who::Theirs.tool("qemu-img", arguments);
    run(create.arg(&file).arg("1M")).success();
    for format in ["human", "json"] {
        let output = format!("--output={format}");
        let mut command = Who::Ours.tool("qemu-img", ["info", &output]);
        let told = run(command.arg(&file)).success();
        let is_bad = |c: char| c.is_control() && c != '\n';
        assert!(!told.text().contains(is_bad), "{}", told.text());
    }
    let told = run(&mut blockferry(["info", file.to_str().expect("UTF-8")])).success();
    assert!(!told.text().contains('\u{1b}'), "{}", told.text());
}
