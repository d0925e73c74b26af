//! `--metrics`: counts in the text format that Prometheus reads, over HTTP.

use std::{
    fmt::{Display, Write},
    io,
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};

use super::{super::failure::Failure, listen::not_listening};

/// How long a reader may take to ask and to listen.
const PATIENCE: Duration = Duration::from_secs(5);

/// Readers at a time; more of them wait.
const MOST_READERS: usize = 8;

/// The longest request that is read, in bytes.
const LONGEST_REQUEST: usize = 8 << 10;

/// Listens at `ADDR:PORT`.
pub(crate) async fn bind(address: &str) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        let name = format!("--metrics {address}");
        match error.kind() {
            io::ErrorKind::InvalidInput => {
                Failure::usage(format!("{name}: {error}")).hint("write ADDR:PORT")
            }
            _ => not_listening(&name, &error),
        }
    })
}

/// Answers readers for ever with the page of the moment.
pub(crate) async fn answer_all(
    listener: TcpListener,
    page: impl Fn() -> String + Clone + Send + Sync + 'static,
) {
    let places = Arc::new(Semaphore::new(MOST_READERS));
    loop {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((socket, _)) => {
                let page = page.clone();
                tokio::spawn(async move {
                    // A reader that is too slow, or gone, gets nothing.
                    let _ = timeout(PATIENCE, answer(socket, &page)).await;
                    drop(place);
                });
            }
            // Want of descriptors passes.
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn answer(mut socket: TcpStream, page: &impl Fn() -> String) -> io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut part = [0; 1024];
        let count = socket.read(&mut part).await?;
        if count == 0 || request.len() > LONGEST_REQUEST {
            return Ok(());
        }
        request.extend_from_slice(&part[..count]);
    }
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or(&[]);
    let mut words = line.split(|byte| *byte == b' ');
    let (method, target) = (words.next(), words.next().unwrap_or(&[]));
    let path = target.split(|byte| *byte == b'?').next();
    let (status, body) = match (method, path) {
        (Some(b"GET" | b"HEAD"), Some(b"/metrics" | b"/")) => ("200 OK", page()),
        (Some(b"GET" | b"HEAD"), _) => ("404 Not Found", "see /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", "GET /metrics\n".to_owned()),
    };
    let length = body.len();
    let mut reply = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    if method != Some(b"HEAD") {
        reply.push_str(&body);
    }
    socket.write_all(reply.as_bytes()).await?;
    socket.shutdown().await
}

/// A page of counts. All their names begin with `blockferry_`.
#[derive(Default)]
pub(crate) struct Page(String);

impl Page {
    /// What is told of the count `name` before its values.
    pub(crate) fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = write!(
            self.0,
            "# HELP blockferry_{name} {help}\n# TYPE blockferry_{name} {kind}\n"
        );
    }

    /// A value, of the labels `a="x",b="y"` where there are some.
    pub(crate) fn line(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = match labels {
            "" => writeln!(self.0, "blockferry_{name} {value}"),
            labels => writeln!(self.0, "blockferry_{name}{{{labels}}} {value}"),
        };
    }

    /// The text so far.
    pub(crate) fn into_text(self) -> String {
        self.0
    }
}

/// A label's value.
pub(crate) fn escaped(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            c if c.is_control() => text.push('\u{fffd}'),
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_break_out_of_its_label() {
        assert_eq!(escaped("a\"b\\c\nd\u{7}"), "a\\\"b\\\\c\\nd\u{fffd}");
    }
}
