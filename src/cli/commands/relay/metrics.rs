//! What a relay counts, for [`exposition`](super::super::exposition).

use std::sync::Arc;

use crate::relay::{Moved, Totals};

use super::{
    super::exposition::{Page, escaped},
    Relay, book,
    connection::ENDINGS,
    crew::Workplace,
};

/// The exposition of the counts of now.
pub(super) fn text(relay: &Relay, workplaces: &[Arc<Workplace>]) -> String {
    let mut page = Page::default();
    let sum = |count: fn(&Workplace) -> usize| workplaces.iter().map(|it| count(it)).sum::<usize>();
    page.head(
        "relay_connections_total",
        "counter",
        "Clients that connected.",
    );
    page.line("relay_connections_total", "", relay.observer.connections());
    page.head("relay_connections", "gauge", "Clients that are connected.");
    page.line("relay_connections", "", sum(|it| it.book.open()));

    let moved = workplaces.iter().map(|it| it.book.moved());
    let moved = moved.fold(Totals::default(), |all, one| book::sum(all, &one));
    page.head(
        "relay_bytes_total",
        "counter",
        "Bytes that were delivered, those of connections that go on among them.",
    );
    for (direction, Moved { spliced, copied }) in
        [("to_target", moved.forward), ("to_client", moved.backward)]
    {
        for (way, bytes) in [("spliced", spliced), ("copied", copied)] {
            let labels = format!("direction=\"{direction}\",way=\"{way}\"");
            page.line("relay_bytes_total", &labels, bytes);
        }
    }

    page.head(
        "relay_connect_failures_total",
        "counter",
        "How often a target did not answer.",
    );
    for (target, count) in relay.observer.connect_failures() {
        let labels = format!("target=\"{}\"", escaped(target));
        page.line("relay_connect_failures_total", &labels, count);
    }

    page.head(
        "relay_own_failures_total",
        "counter",
        "Clients that could not be accepted yet, and those whose targets were not reached, for want of descriptors or memory.",
    );
    for (what, count) in relay.observer.own_failures() {
        page.line(
            "relay_own_failures_total",
            &format!("what=\"{what}\""),
            count,
        );
    }

    page.head("relay_ended_total", "counter", "Connections that are over.");
    let mut ended = [0; ENDINGS.len()];
    for workplace in workplaces {
        for (all, one) in ended.iter_mut().zip(workplace.book.ended()) {
            *all += one;
        }
    }
    for (how, count) in ENDINGS.into_iter().zip(ended) {
        page.line("relay_ended_total", &format!("how=\"{how}\""), count);
    }

    page.head(
        "relay_pipes",
        "gauge",
        "Pipes that bytes of connections are in, and those that wait for some.",
    );
    let lent = sum(|it| it.pool.lent());
    let spare = sum(|it| it.pool.pipes()).saturating_sub(lent);
    for (state, count) in [("lent", lent), ("spare", spare)] {
        page.line("relay_pipes", &format!("state=\"{state}\""), count);
    }
    page.into_text()
}
