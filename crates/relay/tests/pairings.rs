//! Every pairing of sockets, by either way.

use blockferry_relay::{Mode, Options, Totals, copy_bidirectional};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
};

const SIZE: usize = 4 << 20;

async fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.expect("connected"), far.expect("accepted").0)
}

async fn unix() -> (UnixStream, UnixStream) {
    UnixStream::pair().expect("a pair")
}

fn bytes(seed: usize) -> Vec<u8> {
    (0..SIZE)
        .map(|it| (it * 31 + it / 4099 + seed) as u8)
        .collect()
}

/// Sends the one and receives the other, then both ends end.
async fn talk<S>(stream: S, say: Vec<u8>, hear: Vec<u8>)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (mut reader, mut writer) = tokio::io::split(stream);
    let saying = async {
        writer.write_all(&say).await.expect("said");
        writer.shutdown().await.expect("ended");
    };
    let hearing = async {
        let mut heard = Vec::new();
        reader.read_to_end(&mut heard).await.expect("heard");
        assert!(heard == hear, "{} bytes of {}", heard.len(), hear.len());
    };
    tokio::join!(saying, hearing);
}

async fn relayed<A, B>(mode: Mode, (client, mut a): (A, A), (mut b, server): (B, B)) -> Totals
where
    A: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut options = Options::default();
    options.mode = mode;
    let client = tokio::spawn(talk(client, bytes(1), bytes(2)));
    let server = tokio::spawn(talk(server, bytes(2), bytes(1)));
    let totals = copy_bidirectional(&mut a, &mut b, &options).await;
    client.await.expect("the client is content");
    server.await.expect("the server is content");
    let totals = totals.expect("both ended");
    assert_eq!(totals.forward.total(), SIZE as u64);
    assert_eq!(totals.backward.total(), SIZE as u64);
    totals
}

#[tokio::test]
async fn bytes_arrive_both_ways_between_any_two_sockets_by_the_way_that_was_asked_for() {
    for mode in [Mode::Splice, Mode::Copy] {
        let all = [
            relayed(mode, tcp().await, tcp().await).await,
            relayed(mode, unix().await, unix().await).await,
            relayed(mode, tcp().await, unix().await).await,
            relayed(mode, unix().await, tcp().await).await,
        ];
        for totals in all {
            for moved in [totals.forward, totals.backward] {
                match mode {
                    Mode::Copy => assert_eq!(moved.spliced, 0),
                    _ => assert_eq!(moved.copied, 0),
                }
            }
        }
    }
}

#[tokio::test]
async fn left_alone_bulk_is_spliced_where_that_is_faster() {
    let totals = relayed(Mode::Auto, tcp().await, tcp().await).await;
    assert!(
        totals.forward.spliced > 0 && totals.forward.copied > 0,
        "{totals:?}"
    );
    let totals = relayed(Mode::Auto, unix().await, unix().await).await;
    assert!(totals.backward.spliced > 0, "{totals:?}");
    let totals = relayed(Mode::Auto, unix().await, tcp().await).await;
    assert!(
        totals.forward.spliced == 0 && totals.backward.spliced > 0,
        "{totals:?}"
    );
}
