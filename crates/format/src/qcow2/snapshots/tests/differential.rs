//! What we make of an image, and what qemu makes of it: each uses what the other made.

use std::{fs, path::Path};

use blockferry_block::{Access, FileDevice};

use super::*;
use crate::qcow2::qemu::{is_installed, number, qemu_check, qemu_img, qemu_io};

const KINDS: [&str; 6] = [
    "cluster_size=512,refcount_bits=64",
    "cluster_size=2k,refcount_bits=8",
    "cluster_size=64k,compat=0.10",
    "cluster_size=16k,extended_l2=on",
    "cluster_size=4k,preallocation=metadata",
    "cluster_size=64k,lazy_refcounts=on",
];

fn open(directory: &Path, name: &str) -> Arc<dyn BlockDevice> {
    let file = FileDevice::open(&directory.join(name), Access::ReadWrite);
    Arc::new(file.expect("opened").growable())
}

fn sound(directory: &Path, name: &str, what: &str) {
    let report = qemu_check(directory, name);
    for wrong in ["corruptions", "leaks", "check-errors"] {
        assert_eq!(number(&report, wrong), 0, "{what}: {report}");
    }
}

#[tokio::test]
async fn each_goes_on_with_what_the_other_made() {
    if !is_installed() {
        return;
    }
    // Who does what: we do what is in capitals to the second image, qemu all of it to the first one.
    let scripts = ["C w C w A1 w D2 A1", "c w C w C w a1 D1 w A3 d2 C w A4"];
    for (turn, options) in KINDS.into_iter().enumerate() {
        let script = scripts[turn % 2];
        let directory = tempfile::tempdir().expect("a directory");
        let directory = directory.path();
        qemu_img(directory, &format!("create -q -f qcow2 -o {options} a 3M"));
        let compressed = match options.contains("preallocation") {
            true => "write -q -P 9 1M 64k",
            false => "write -q -c -P 9 1M 64k",
        };
        qemu_io(directory, "a", &["write -q -P 1 0 300k", compressed]);
        fs::copy(directory.join("a"), directory.join("b")).expect("copied");
        let mut made = 0;
        for (step, word) in (1_u64..).zip(script.split(' ')) {
            let what = format!("{options}: {script}, step {step}");
            if word == "w" {
                let (at, to) = (step * 131 % 2900, step * 470 % 2500);
                let writes = [
                    format!("write -q -P {step} {at}k 90k"),
                    format!("write -q -z {to}k 200k"),
                ];
                for image in ["a", "b"] {
                    qemu_io(directory, image, &[&writes[0], &writes[1]]);
                }
                continue;
            }
            let (action, number) = word.split_at(1);
            let lower = action.to_ascii_lowercase();
            made += u32::from(lower == "c");
            let name = match lower.as_str() {
                "c" => format!("n{made}"),
                _ => format!("n{number}"),
            };
            let theirs = |image: &str| {
                let arguments = format!("snapshot -{lower} {name} {image}");
                qemu_img(directory, &arguments);
            };
            theirs("a");
            let (below, own) = (open(directory, "b"), super::options());
            let done = match action {
                "C" => create_snapshot(below, &name, &own).await.map(drop),
                "A" => apply_snapshot(below, &name, &own).await.map(drop),
                "D" => delete_snapshot(below, &name, &own).await.map(drop),
                _ => {
                    theirs("b");
                    Ok(())
                }
            };
            done.unwrap_or_else(|error| panic!("{what}: {error}"));
            sound(directory, "b", &what);
            let ours = crate::qcow2::check(&*open(directory, "b")).await;
            assert!(ours.expect("checked").is_clean(), "{what}");
        }
        same(directory, &format!("{options}: {script}"));
    }
}

/// Both images have the same disks, and the same snapshots.
fn same(directory: &Path, what: &str) {
    let compared = qemu_img(directory, "compare -f qcow2 -F qcow2 a b");
    assert!(compared.contains("identical"), "{what}: {compared}");
    let [ours, theirs] = ["b", "a"].map(|image| listed(directory, image));
    assert_eq!(ours, theirs, "{what}");
    for (id, ..) in ours {
        for image in ["a", "b"] {
            let arguments =
                format!("convert -f qcow2 -O raw -l snapshot.id={id} {image} {image}.raw");
            qemu_img(directory, &arguments);
        }
        let compared = qemu_img(directory, "compare -f raw -F raw a.raw b.raw");
        assert!(compared.contains("identical"), "{what}, {id}: {compared}");
    }
}

/// What qemu says of the snapshots of an image.
fn listed(directory: &Path, image: &str) -> Vec<(String, String, u64, u64)> {
    let said = qemu_img(directory, &format!("info -f qcow2 --output=json {image}"));
    let said: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    let list = said["snapshots"].as_array().cloned().unwrap_or_default();
    let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
    let number = |value: &serde_json::Value| value.as_u64().expect("a number");
    list.iter()
        .map(|it| {
            let numbers = (number(&it["vm-state-size"]), number(&it["icount"]));
            (text(&it["id"]), text(&it["name"]), numbers.0, numbers.1)
        })
        .collect()
}

#[tokio::test]
async fn refcounts_that_cannot_count_one_more_are_refused_and_nothing_is_lost() {
    if !is_installed() {
        return;
    }
    for (bits, most) in [(1, 0), (2, 2), (4, 14)] {
        let directory = tempfile::tempdir().expect("a directory");
        let directory = directory.path();
        let create = format!("create -q -f qcow2 -o refcount_bits={bits},cluster_size=4k a 1M");
        qemu_img(directory, &create);
        qemu_io(directory, "a", &["write -q -P 1 0 300k"]);
        for _ in 0..most {
            let created = create_snapshot(open(directory, "a"), "one", &options()).await;
            created.expect("created");
        }
        let before = fs::read(directory.join("a")).expect("read");
        let created = create_snapshot(open(directory, "a"), "one", &options()).await;
        let error = created.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("bits"), "{error}");
        assert!(fs::read(directory.join("a")).expect("read") == before);
        sound(directory, "a", "refused");
    }
}

#[tokio::test]
async fn bitmaps_stay_where_the_disk_stays_and_keep_it_from_going_back() {
    if !is_installed() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    qemu_img(directory, "create -q -f qcow2 a 4M");
    qemu_img(directory, "bitmap --add a one");
    qemu_io(directory, "a", &["write -q -P 1 0 300k"]);
    let created = create_snapshot(open(directory, "a"), "s", &options()).await;
    created.expect("created");
    sound(directory, "a", "created");
    let before = fs::read(directory.join("a")).expect("read");
    let applied = apply_snapshot(open(directory, "a"), "s", &options()).await;
    let error = applied.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(fs::read(directory.join("a")).expect("read") == before);
    let deleted = delete_snapshot(open(directory, "a"), "s", &options()).await;
    deleted.expect("deleted");
    sound(directory, "a", "deleted");
    let info = qemu_img(directory, "info a");
    assert!(
        info.contains("name: one") && info.contains("auto"),
        "{info}"
    );
    assert!(!info.contains("in-use"), "{info}");
}

#[tokio::test]
async fn a_disk_without_a_byte_has_snapshots_too() {
    if !is_installed() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    qemu_img(directory, "create -q -f qcow2 a 0");
    let (below, own) = (|| open(directory, "a"), options());
    let created = create_snapshot(below(), "one", &own).await;
    created.expect("created");
    sound(directory, "a", "created");
    qemu_img(directory, "resize -q a 1M");
    qemu_io(directory, "a", &["write -q -P 1 0 1M"]);
    let applied = apply_snapshot(below(), "one", &own).await;
    assert_eq!(applied.expect("applied").size, 0);
    sound(directory, "a", "applied");
    qemu_img(directory, "snapshot -a one a");
    let deleted = delete_snapshot(below(), "one", &own).await;
    deleted.expect("deleted");
    sound(directory, "a", "deleted");
}
