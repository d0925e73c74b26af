//! Thread models: which calls may run side by side. Each call notes when it begins and when it ends.

use std::{fs, sync::Arc, time::Duration};

use blockferry_block::{BlockDevice, Buffer, ClientFacts, Exports as _};
use blockferry_script::{Script, ThreadModel};
use futures_util::{FutureExt as _, future::join_all};

use crate::support::{Room, lines, open};

/// A script with a model whose `pread` waits until as many of its kind run as the file `together` says, or
/// until it has waited for long enough to say that they never do.
fn room(model: &str, together: usize) -> Room {
    let room = Room::cases(&format!(
        r#"
thread_model) echo {model} ;;
open) mktemp -u XXXXXXXX ;;
pread)
    mkdir -p "$here/running"
    : > "$here/running/$$"
    tries=0
    while :; do
        count=$(ls "$here/running" | wc -l)
        echo "$count" >> "$here/counts"
        [ "$count" -ge "$(cat "$here/together")" ] && break
        tries=$((tries + 1))
        [ "$tries" -gt 3000 ] && exit 1
        sleep 0.02
    done
    # Whoever else is here sees enough of them too.
    sleep 0.2
    rm "$here/running/$$"
    head -c "$3" /dev/zero ;;
"#
    ));
    fs::write(room.file("together"), together.to_string()).expect("written");
    room
}

/// The most calls that saw each other.
fn most(room: &Room) -> usize {
    let counts = lines(&room.file("counts"));
    let counts = counts.iter().map(|line| line.trim().parse().unwrap_or(0));
    counts.max().unwrap_or(0)
}

async fn read_all(devices: &[Arc<dyn BlockDevice>]) {
    let reads = devices
        .iter()
        .map(|device| device.read(0, Buffer::zeroed(512)));
    for read in join_all(reads).await {
        read.expect("read");
    }
}

async fn devices(script: &Script, count: usize) -> Vec<Arc<dyn BlockDevice>> {
    let mut devices = Vec::new();
    for _ in 0..count {
        devices.push(open(script, "").await.expect("an export").device);
    }
    devices
}

#[tokio::test]
async fn parallel_calls_of_one_client_run_side_by_side() {
    let room = room("parallel", 3);
    let script = room.start().await;
    assert_eq!(script.thread_model(), ThreadModel::Parallel);
    let device = devices(&script, 1).await.remove(0);
    // Each waits for the others: one after the other they would fail.
    read_all(&vec![device; 3]).await;
    assert_eq!(most(&room), 3);
}

#[tokio::test]
async fn serialized_requests_are_one_at_a_time_for_each_client() {
    let room = room("serialize_requests", 2);
    let script = room.start().await;
    assert_eq!(script.thread_model(), ThreadModel::SerializeRequests);
    let mut devices = devices(&script, 2).await;
    devices.extend(devices.clone());
    read_all(&devices).await;
    assert_eq!(most(&room), 2);
}

#[tokio::test]
async fn serialized_requests_of_all_are_one_at_a_time() {
    for model in ["serialize_all_requests", "nonsense"] {
        let room = room(model, 1);
        let script = room.start().await;
        assert_eq!(script.thread_model(), ThreadModel::SerializeAllRequests);
        let mut devices = devices(&script, 2).await;
        devices.extend(devices.clone());
        read_all(&devices).await;
        assert_eq!(most(&room), 1);
        assert_eq!(room.calls_of(&["pread"]).len(), 4);
    }
}

#[tokio::test]
async fn a_second_client_waits_until_the_first_has_gone() {
    let room = room("SERIALIZE-CONNECTIONS", 1);
    let script = room.start().await;
    assert_eq!(script.thread_model(), ThreadModel::SerializeConnections);
    let client = ClientFacts::default();
    script
        .connecting(client)
        .await
        .expect("nobody else is here");
    let first = open(&script, "").await.expect("an export");

    let calls = room.calls();
    let mut second = Box::pin(async {
        script.connecting(client).await.expect("welcome");
        open(&script, "").await.expect("an export")
    });
    assert!((&mut second).now_or_never().is_none());
    first
        .device
        .read(0, Buffer::zeroed(512))
        .await
        .expect("read");
    assert!((&mut second).now_or_never().is_none());
    let since = room.calls()[calls.len()..].join(",");
    assert!(
        since.starts_with("pread ") && !since.contains(','),
        "{since}"
    );

    drop(first);
    let second = second.await;
    let order = room.calls_of(&["open", "close", "preconnect", "pread"]);
    let order: Vec<_> = order
        .iter()
        .filter_map(|call| call.split(' ').next())
        .collect();
    assert_eq!(
        order,
        ["preconnect", "open", "pread", "close", "preconnect", "open"]
    );
    drop(second);
}

#[tokio::test]
async fn a_client_that_serializes_connections_is_offered_no_second_one() {
    use blockferry_block::Capabilities;
    for (model, can) in [("serialize_connections", false), ("parallel", true)] {
        let room = Room::cases(&format!(
            "thread_model) echo {model} ;;\ncan_multi_conn) exit 0 ;;\n"
        ));
        let (_script, export) = room.open().await;
        assert_eq!(export.device.info().can(Capabilities::MULTI_CONN), can);
    }
}

#[tokio::test]
async fn a_client_whose_script_hangs_holds_up_nobody_else_where_requests_are_its_own() {
    for model in ["parallel", "serialize_requests"] {
        let room = Room::cases(&format!(
            r#"thread_model) echo {model} ;;
open) echo "$3" ;;
pread) [ "$2" = hang ] && {{ : > "$here/hangs"; sleep 1000; }}; head -c "$3" /dev/zero ;;
"#
        ));
        let script = room.start().await;
        let hanging = open(&script, "hang").await.expect("an export");
        let other = open(&script, "other").await.expect("an export");
        let read = hanging.device.read(0, Buffer::zeroed(512));
        tokio::select! {
            _ = read => panic!("it hangs"),
            () = async {
                room.wait_for("hangs").await;
                for _ in 0..3 {
                    let read = other.device.read(0, Buffer::zeroed(512)).await;
                    read.expect("nothing holds it up");
                }
            } => {}
        }
    }
}

#[tokio::test]
async fn a_request_that_is_given_up_gives_up_its_turn() {
    let room = Room::cases("pread) sleep 1000 ;;\n");
    let (_script, export) = room.open().await;
    for _ in 0..3 {
        let read = export.device.read(0, Buffer::zeroed(512));
        let given_up = tokio::time::timeout(Duration::from_millis(100), read).await;
        assert!(given_up.is_err());
    }
    // All of them closed: the turn is free again, or this would wait for a minute.
    drop(export);
    assert_eq!(room.calls_of(&["close"]), ["close "]);
}
