//! `--metrics`: what a server counts, in the text format that Prometheus reads, over HTTP.

use std::{fmt::Write, io, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};

use crate::{
    filter::Counters,
    server::{CommandStatistics, LATENCY_BOUNDS, Server, Statistics},
};

use super::{super::super::failure::Failure, catalog::FilterCounters};

/// How long a reader may take to ask and to listen.
const PATIENCE: Duration = Duration::from_secs(5);

/// Readers at a time; more of them wait.
const MOST_READERS: usize = 8;

/// The longest request that is read, in bytes.
const LONGEST_REQUEST: usize = 8 << 10;

/// Listens at `ADDR:PORT`.
pub(super) async fn bind(address: &str) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        let failure = Failure::system(&format!("--metrics {address}"), &error);
        match error.kind() {
            io::ErrorKind::InvalidInput => failure.hint("write ADDR:PORT"),
            _ => failure,
        }
    })
}

/// What is counted.
#[derive(Clone)]
pub(super) struct Counted {
    pub(super) server: Server,
    pub(super) filters: FilterCounters,
}

impl Counted {
    /// The exposition of the counts of now.
    fn text(&self) -> String {
        text(&self.server.statistics(), &self.filters.read())
    }
}

/// Answers readers for ever.
pub(super) async fn answer_all(listener: TcpListener, counted: Counted) {
    let places = Arc::new(Semaphore::new(MOST_READERS));
    loop {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((socket, _)) => {
                let counted = counted.clone();
                tokio::spawn(async move {
                    // A reader that is too slow, or gone, gets nothing.
                    let _ = timeout(PATIENCE, answer(socket, &counted)).await;
                    drop(place);
                });
            }
            // Want of descriptors passes.
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn answer(mut socket: TcpStream, counted: &Counted) -> io::Result<()> {
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
        (Some(b"GET" | b"HEAD"), Some(b"/metrics" | b"/")) => ("200 OK", counted.text()),
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

/// The exposition of `statistics`, and of what filters count.
fn text(statistics: &Statistics, filters: &[Counters]) -> String {
    let mut page = Page(String::new());
    page.head("connections_total", "counter", "Clients that connected.");
    page.line("connections_total", "", statistics.connections);
    page.head("connections", "gauge", "Clients that are connected.");
    page.line("connections", "", statistics.connected);
    page.head(
        "failed_connections_total",
        "counter",
        "Clients that broke the protocol, or left or were refused before they used an export.",
    );
    page.line(
        "failed_connections_total",
        "",
        statistics.failed_connections,
    );
    page.head("export_connections", "gauge", "Clients that use an export.");
    for export in &statistics.exports {
        let labels = format!("export=\"{}\"", escaped(&export.name));
        page.line("export_connections", &labels, export.connected);
    }
    let per_command: Vec<(String, CommandStatistics)> = statistics
        .exports
        .iter()
        .flat_map(|export| {
            let name = escaped(&export.name);
            export.commands.iter().map(move |(command, counted)| {
                let command = command.name();
                (format!("export=\"{name}\",command=\"{command}\""), *counted)
            })
        })
        .collect();
    type Counter = fn(&CommandStatistics) -> u64;
    let counters: [(&str, &str, Counter); 3] = [
        (
            "requests_total",
            "Requests that were answered.",
            |counted| counted.requests,
        ),
        (
            "request_bytes_total",
            "Bytes of the ranges of requests that succeeded.",
            |counted| counted.bytes,
        ),
        ("request_errors_total", "Requests that failed.", |counted| {
            counted.errors
        }),
    ];
    for (name, help, count) in counters {
        page.head(name, "counter", help);
        for (labels, counted) in &per_command {
            page.line(name, labels, count(counted));
        }
    }
    page.head(
        "request_duration_seconds",
        "histogram",
        "From having received a request until its answer was ready.",
    );
    for (labels, counted) in &per_command {
        page.histogram("request_duration_seconds", labels, counted);
    }
    if !filters.is_empty() {
        page.filters(filters);
    }
    page.0
}

struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = write!(
            self.0,
            "# HELP blockferry_{name} {help}\n# TYPE blockferry_{name} {kind}\n"
        );
    }

    fn line(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let _ = match labels {
            "" => writeln!(self.0, "blockferry_{name} {value}"),
            labels => writeln!(self.0, "blockferry_{name}{{{labels}}} {value}"),
        };
    }

    fn filters(&mut self, filters: &[Counters]) {
        let help = "What filters count, each in its own words: 'blockferry filters' explains them.";
        self.head("filter", "untyped", help);
        for counters in filters {
            let (filter, export) = (counters.filter, escaped(&counters.export));
            for (name, count) in &counters.counts {
                let labels = format!("filter=\"{filter}\",export=\"{export}\",count=\"{name}\"");
                self.line("filter", &labels, count);
            }
        }
    }

    fn histogram(&mut self, name: &str, labels: &str, counted: &CommandStatistics) {
        let mut sum = 0_u64;
        let bounds = LATENCY_BOUNDS
            .iter()
            .map(|bound| bound.as_secs_f64().to_string());
        let bounds = bounds.chain(["+Inf".to_owned()]);
        for (bound, count) in bounds.zip(counted.latency) {
            sum = sum.saturating_add(count);
            let labels = format!("{labels},le=\"{bound}\"");
            self.line(&format!("{name}_bucket"), &labels, sum);
        }
        self.line(&format!("{name}_sum"), labels, counted.time.as_secs_f64());
        // Read while others count: the buckets must add up to what is said here.
        self.line(&format!("{name}_count"), labels, sum);
    }
}

/// A label's value.
fn escaped(value: &str) -> String {
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
    fn a_page_of_nothing_has_its_heads() {
        let page = text(&Statistics::default(), &[]);
        assert!(page.contains("# TYPE blockferry_connections gauge\nblockferry_connections 0\n"));
        assert!(page.contains("# TYPE blockferry_request_duration_seconds histogram\n"));
    }

    #[test]
    fn a_name_cannot_break_out_of_its_label() {
        assert_eq!(escaped("a\"b\\c\nd\u{7}"), "a\\\"b\\\\c\\nd\u{fffd}");
    }

    #[test]
    fn buckets_are_cumulative_and_end_with_the_count() {
        let mut counted = CommandStatistics::default();
        counted.latency[0] = 2;
        counted.latency[LATENCY_BOUNDS.len()] = 1;
        let mut page = Page(String::new());
        page.histogram("x", "command=\"read\"", &counted);
        assert!(
            page.0
                .contains("blockferry_x_bucket{command=\"read\",le=\"0.00001\"} 2\n")
        );
        assert!(
            page.0
                .contains("blockferry_x_bucket{command=\"read\",le=\"5\"} 2\n")
        );
        assert!(
            page.0
                .contains("blockferry_x_bucket{command=\"read\",le=\"+Inf\"} 3\n")
        );
        assert!(page.0.ends_with("blockferry_x_count{command=\"read\"} 3\n"));
    }
}
