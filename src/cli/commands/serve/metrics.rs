//! What a server counts, for [`exposition`](super::super::exposition).

use crate::{
    filter::Counters,
    server::{CommandStatistics, LATENCY_BOUNDS, Server, Statistics},
};

use super::{
    super::exposition::{Page, escaped},
    catalog::FilterCounters,
};

/// What is counted.
#[derive(Clone)]
pub(super) struct Counted {
    pub(super) server: Server,
    pub(super) filters: FilterCounters,
}

impl Counted {
    /// The exposition of the counts of now.
    pub(super) fn text(&self) -> String {
        text(&self.server.statistics(), &self.filters.read())
    }
}

/// The exposition of `statistics`, and of what filters count.
fn text(statistics: &Statistics, filters: &[Counters]) -> String {
    let mut page = Page::default();
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
        histogram(&mut page, "request_duration_seconds", labels, counted);
    }
    if !filters.is_empty() {
        tell_filters(&mut page, filters);
    }
    page.into_text()
}

fn tell_filters(page: &mut Page, filters: &[Counters]) {
    let help = "What filters count, each in its own words: 'blockferry filters' explains them.";
    page.head("filter", "untyped", help);
    for counters in filters {
        let (filter, export) = (counters.filter, escaped(&counters.export));
        for (name, count) in &counters.counts {
            let labels = format!("filter=\"{filter}\",export=\"{export}\",count=\"{name}\"");
            page.line("filter", &labels, count);
        }
    }
}

fn histogram(page: &mut Page, name: &str, labels: &str, counted: &CommandStatistics) {
    let mut sum = 0_u64;
    let bounds = LATENCY_BOUNDS
        .iter()
        .map(|bound| bound.as_secs_f64().to_string());
    let bounds = bounds.chain(["+Inf".to_owned()]);
    for (bound, count) in bounds.zip(counted.latency) {
        sum = sum.saturating_add(count);
        let labels = format!("{labels},le=\"{bound}\"");
        page.line(&format!("{name}_bucket"), &labels, sum);
    }
    page.line(&format!("{name}_sum"), labels, counted.time.as_secs_f64());
    // Read while others count: the buckets must add up to what is said here.
    page.line(&format!("{name}_count"), labels, sum);
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
    fn buckets_are_cumulative_and_end_with_the_count() {
        let mut counted = CommandStatistics::default();
        counted.latency[0] = 2;
        counted.latency[LATENCY_BOUNDS.len()] = 1;
        let mut page = Page::default();
        histogram(&mut page, "x", "command=\"read\"", &counted);
        let page = page.into_text();
        assert!(page.contains("blockferry_x_bucket{command=\"read\",le=\"0.00001\"} 2\n"));
        assert!(page.contains("blockferry_x_bucket{command=\"read\",le=\"5\"} 2\n"));
        assert!(page.contains("blockferry_x_bucket{command=\"read\",le=\"+Inf\"} 3\n"));
        assert!(page.ends_with("blockferry_x_count{command=\"read\"} 3\n"));
    }
}
