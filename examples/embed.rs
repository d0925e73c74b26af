//! The library in a program of one's own: `embed SOURCE DESTINATION [SECONDS]` copies an image with progress, gives up
//! after SECONDS, compares the two, and serves the copy to itself.
//!
//! SOURCE and DESTINATION are what the command line takes: files, NBD URIs, `sample:64M`. The guide's chapter on
//! embedding explains it.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an example talks to a terminal"
)]

use std::{
    env,
    error::Error,
    fs,
    os::unix::net::UnixListener,
    process,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use blockferry::{
    block::{Access, BlockDevice, Buffer, SingleExport},
    client::{Client, ConnectOptions},
    copy::{
        CompareOptions, Comparison, Control, CopyError, CopyOptions, Event, Report, Side, compare,
        copy,
    },
    endpoint::{Endpoint, OpenOptions, open_destination, open_device, open_source},
    server::{Server, ServerOptions},
};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

// ANCHOR: copy
/// Copies an image, and gives up after `limit`.
async fn copy_image(from: &Endpoint, to: &Endpoint, limit: Duration) -> Result<Report> {
    let options = OpenOptions::default();
    // The source first: nothing is made for one that is not there.
    let source = open_source(from, &options).await?;
    let target = open_destination(to, &options).await?;

    let (size, shown) = (AtomicU64::new(0), AtomicU64::new(0));
    let observer = |event: Event| match event {
        Event::Planned { size: known } => size.store(known.unwrap_or(0), Ordering::Relaxed),
        Event::Progress(progress) => {
            let size = size.load(Ordering::Relaxed).max(1);
            let percent = progress.done * 100 / size;
            if percent >= shown.load(Ordering::Relaxed) + 25 {
                shown.store(percent - percent % 25, Ordering::Relaxed);
                println!("{}% copied", percent - percent % 25);
            }
        }
        Event::Warning(warning) => eprintln!("warning: {warning}"),
        _ => {}
    };

    let control = Control::new();
    let timer = tokio::spawn({
        let control = control.clone();
        async move {
            tokio::time::sleep(limit).await;
            control.cancel();
        }
    });
    let settings = CopyOptions::default();
    let copied = copy(
        source.source,
        target.destination,
        &settings,
        &control,
        &observer,
    )
    .await;
    timer.abort();

    match copied {
        Ok(report) => {
            // A new file has no name until its image is whole.
            if let Some(file) = target.file {
                file.commit_durably()?;
            }
            target.connection.close().await?;
            source.connection.close().await?;
            Ok(report)
        }
        Err(failure) => {
            target.connection.abandon().await;
            source.connection.abandon().await;
            Err(explained(&failure).into())
        }
    }
}

fn explained(failure: &CopyError) -> String {
    let done = failure.progress.done;
    let again = match failure.error.is_transient() {
        true => "; trying again may help",
        false => "",
    };
    match failure.side {
        Side::Cancelled => format!("cancelled after {done} bytes"),
        side => format!("{side:?} failed after {done} bytes: {failure}{again}"),
    }
}
// ANCHOR_END: copy

// ANCHOR: compare
/// Where two images begin to differ.
async fn difference(one: &Endpoint, other: &Endpoint) -> Result<Option<u64>> {
    let options = OpenOptions::default();
    let one = open_device(one, Access::ReadOnly, &options).await?;
    let other = open_device(other, Access::ReadOnly, &options).await?;
    let found = compare(
        one.device,
        other.device,
        &CompareOptions::default(),
        &Control::new(),
        &(),
    )
    .await?;
    one.connection.close().await?;
    other.connection.close().await?;
    Ok(match found {
        Comparison::Differs { offset } => Some(offset),
        _ => None,
    })
}
// ANCHOR_END: compare

// ANCHOR: serve
/// Serves an image from this program, and reads its first bytes as an NBD client would.
async fn first_bytes(image: &Endpoint) -> Result<Vec<u8>> {
    let opened = open_device(image, Access::ReadOnly, &OpenOptions::default()).await?;
    let exports = SingleExport::new(opened.device);
    let server = Server::new(Arc::new(exports), ServerOptions::default());
    let socket = env::temp_dir().join(format!("embed-{}.sock", process::id()));
    let listener = UnixListener::bind(&socket)?;
    let serving = tokio::spawn({
        let server = server.clone();
        async move { server.serve(vec![listener.into()]).await }
    });

    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let client = Client::connect(&uri.parse()?, &ConnectOptions::default()).await?;
    let length = client.info().size.min(16) as usize;
    let bytes = client.read(0, Buffer::zeroed(length)).await?;
    client.disconnect().await;

    server.shutdown();
    serving.await??;
    fs::remove_file(&socket)?;
    opened.connection.close().await?;
    Ok(bytes.to_vec())
}
// ANCHOR_END: serve

// ANCHOR: main
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let (from, to, seconds) = match &arguments[..] {
        [from, to] => (from, to, 3600.0),
        [from, to, seconds] => (from, to, seconds.parse()?),
        _ => return Err("usage: embed SOURCE DESTINATION [SECONDS]".into()),
    };
    let (from, to) = (from.parse()?, to.parse()?);
    let report = copy_image(&from, &to, Duration::from_secs_f64(seconds)).await?;
    println!("{} bytes of data, {} of zeroes", report.data, report.zero);
    match difference(&from, &to).await? {
        None => println!("the copy is the same"),
        Some(offset) => println!("the copy differs at offset {offset}"),
    }
    println!("it begins with {:02x?}", first_bytes(&to).await?);
    Ok(())
}
// ANCHOR_END: main
