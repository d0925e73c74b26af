//! Another connection after the first was lost, to a server that is still what it was, or is not.

mod support;

use std::{fs, os::unix::net::UnixListener, sync::Arc};

use blockferry_block::{BlockDevice, Buffer, Error, ErrorKind};
use blockferry_client::{Client, ConnectOptions, Gone};
use blockferry_proto::{BlockSizes, NbdUri};
use support::{Place, Script, Server, byte_at};

/// The first connection dies in the middle of its first answer.
fn mortal() -> Script {
    Script {
        dies_at: Some(0),
        mortal: Some(0),
        ..Script::default()
    }
}

async fn lost_connection(uri: &NbdUri, options: &ConnectOptions) -> Client {
    let client = Client::connect(uri, options).await.expect("a connection");
    let error = client.read(0, Buffer::zeroed(4096)).await;
    assert!(error.expect_err("it dies").is_transient());
    client
}

async fn reopen_fails(client: &Client) -> Error {
    client.reopen().await.map(drop).expect_err("no connection")
}

#[tokio::test]
async fn a_lost_connection_can_be_made_again() {
    let server = Server::start(mortal());
    let client = lost_connection(&server.uri(), &ConnectOptions::default()).await;
    let again: Arc<dyn BlockDevice> = client.reopen().await.expect("another connection");
    assert_eq!(again.info().size, client.info().size);
    let buffer = again.read(77, Buffer::zeroed(4096)).await.expect("a read");
    assert_eq!(buffer[0], byte_at(77));
}

#[tokio::test]
async fn a_server_of_something_else_is_not_taken_for_the_same() {
    let sizes = |minimum| BlockSizes::new(minimum, 4096, 1 << 20).expect("valid sizes");
    let before = Script {
        block_sizes: Some(sizes(1)),
        ..mortal()
    };
    for (after, words) in [
        (
            Script {
                size: 1 << 20,
                ..before.clone()
            },
            "size was 4194304 bytes and is 1048576 now",
        ),
        (
            Script {
                block_sizes: Some(sizes(4096)),
                ..before.clone()
            },
            "takes none below 4096 now",
        ),
        (
            Script {
                multi_conn: false,
                ..before.clone()
            },
            "multi-conn",
        ),
    ] {
        let (first, second) = (Server::start(before.clone()), Server::start(after));
        let place = Place::of(&first);
        let client = lost_connection(&place.uri(), &ConnectOptions::default()).await;
        place.lead_to(&second.socket);
        let error = reopen_fails(&client).await;
        assert_eq!(error.kind(), ErrorKind::Incompatible);
        assert!(!error.is_transient());
        let text = error.to_string();
        assert!(text.contains(words), "{text}");
        assert!(text.contains("place.sock"), "{text}");
    }
}

#[tokio::test]
async fn a_server_that_is_away_is_told_from_one_that_has_gone() {
    let server = Server::start(mortal());
    let place = Place::of(&server);
    let client = lost_connection(&place.uri(), &ConnectOptions::default()).await;

    let deserted = place.link.with_file_name("deserted.sock");
    drop(UnixListener::bind(&deserted).expect("a free name"));
    place.lead_to(&deserted);
    assert_eq!(reopen_fails(&client).await.kind(), ErrorKind::Refused);
    fs::remove_file(&deserted).expect("it was there");
    assert_eq!(reopen_fails(&client).await.kind(), ErrorKind::NotFound);
    place.lead_to(&server.socket);
    client.reopen().await.expect("it is back");
}

#[tokio::test]
async fn a_server_that_has_gone_for_good_is_not_worth_another_try() {
    let server = Server::start(mortal());
    let place = Place::of(&server);
    let mut options = ConnectOptions::default();
    options.gone = Some(Gone::new(|| Some("the server is no more".to_owned())));
    let client = lost_connection(&place.uri(), &options).await;
    // It is only asked for when the server does not answer.
    client.reopen().await.expect("it still answers");
    fs::remove_file(&place.link).expect("it was there");
    let error = reopen_fails(&client).await;
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(
        error.to_string().contains("the server is no more"),
        "{error}"
    );
}
