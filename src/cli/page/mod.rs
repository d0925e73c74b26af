//! `copy --report`: a page that shows a copy that has ended, however it did. One file that needs no other, and no
//! script.
//!
//! | file | what it does |
//! |---|---|
//! | `place` | where the page may be written, and its writing |
//! | `record` | what is kept of a copy while it runs |
//! | `timeline`, `histogram` | that over time, in little memory |
//! | `charts` | it as drawings |
//! | `facts` | what was copied how, and on what machine |
//! | `style.css` | its looks, on a light ground and on a dark one |

mod charts;
mod facts;
mod histogram;
mod place;
mod record;
mod timeline;

use std::{
    fmt::{Display, Write},
    time::Duration,
};

use crate::{
    block::{ByteRange, Error, HumanSize},
    copy::Report,
};

use super::{
    drawing::{
        cells::{Cells, Kind},
        disk,
        escaped::Escaped,
    },
    failure::Failure,
    options::CopyJob,
    report::{HumanTime, counters_sentence, rate, sentence},
};
use record::Record;

pub(crate) use place::Place;
pub(crate) use record::Recorder;

const STYLE: &str = include_str!("style.css");

/// The page of a copy that has ended.
pub(crate) fn page(
    job: &CopyJob,
    record: &Record,
    result: Result<&(Report, Duration), &Failure>,
    warnings: &[String],
) -> String {
    let report = result.ok().map(|(report, _)| report);
    let cells = record.cells(report.map(|report| report.size));
    let state = State::of(result.err());
    let mut html = Html::begin(&format!(
        "{}: {} to {}",
        state.word, job.source, job.destination
    ));
    html.head(job, &state);
    match result {
        Ok((report, elapsed)) => html.line("p", "sentence", sentence(report, *elapsed)),
        Err(failure) => html.failure(failure),
    }
    html.tiles(record, report);
    if let Some(cells) = &cells {
        html.section("Over time", &charts::all(record, cells.size()));
        html.picture(cells, result.err().and_then(Failure::cause), report);
    }
    html.warnings(record, warnings);
    html.table("Numbers", &facts::numbers(record, job, result));
    html.table("What was copied", &facts::sides(record, job));
    html.table("Options", &facts::options(job));
    html.table("Program and machine", &facts::machine());
    html.end()
}

/// How the copy ended, in a word.
struct State {
    class: &'static str,
    /// A sign that tells without a colour.
    sign: &'static str,
    word: &'static str,
}

impl State {
    fn of(failure: Option<&Failure>) -> Self {
        let (class, sign, word) = match failure {
            None => ("whole", "\u{2713}", "Copied"),
            Some(failure) if failure.is_interrupt() => ("interrupted", "\u{25a0}", "Interrupted"),
            Some(_) => ("failure", "\u{2717}", "Failed"),
        };
        Self { class, sign, word }
    }
}

/// A page that is being written. What goes in as text is escaped here, and only here.
struct Html(String);

impl Html {
    fn begin(title: &str) -> Self {
        // Nothing is ever loaded, whatever got into the page.
        let policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";
        Self(format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\"/>\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
             <meta name=\"generator\" content=\"blockferry {}\"/>\n\
             <link rel=\"icon\" href=\"data:,\"/>\n<title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n\
             <body>\n<main>\n",
            env!("CARGO_PKG_VERSION"),
            Escaped(title),
        ))
    }

    fn end(mut self) -> String {
        self.0 += "</main>\n</body>\n</html>\n";
        self.0
    }

    /// A text within a tag of a class.
    fn line(&mut self, tag: &str, class: &str, text: impl Display) {
        let text = text.to_string();
        let _ = writeln!(
            self.0,
            "<{tag} class=\"{class}\">{}</{tag}>",
            Escaped(&text)
        );
    }

    /// A part of the page, of which the inside is HTML already.
    fn section(&mut self, heading: &str, inside: &str) {
        let _ = writeln!(
            self.0,
            "<section>\n<h2>{}</h2>\n{inside}</section>",
            Escaped(heading)
        );
    }

    fn head(&mut self, job: &CopyJob, state: &State) {
        let (source, destination) = (job.source.to_string(), job.destination.to_string());
        let _ = writeln!(
            self.0,
            "<header>\n<p class=\"state {}\"><span aria-hidden=\"true\">{}</span> {}</p>\n\
             <h1><span>{}</span> <span class=\"to\">to</span> <span>{}</span></h1>",
            state.class,
            state.sign,
            state.word,
            Escaped(&source),
            Escaped(&destination),
        );
        self.line("p", "when", facts::now());
        self.0 += "</header>\n";
    }

    fn failure(&mut self, failure: &Failure) {
        self.0 += "<div class=\"trouble\" role=\"alert\">\n";
        self.line("p", "message", failure.message());
        for note in failure.notes() {
            self.line("p", "note", note);
        }
        if let Some(hint) = failure.advice() {
            self.line("p", "hint", format_args!("hint: {hint}"));
        }
        self.line("p", "code", format_args!("exit code {}", failure.code()));
        self.0 += "</div>\n";
    }

    /// The numbers that are looked for first.
    fn tiles(&mut self, record: &Record, report: Option<&Report>) {
        if record.planned.is_none() {
            return;
        }
        let progress = record.progress;
        let elapsed = record.elapsed();
        let moved = progress.done.saturating_sub(record.before);
        let size = report.map(|report| report.size).or(record.size);
        let mut tiles = vec![
            (
                "done",
                match size {
                    Some(size) if progress.done == size => format!("all of {}", HumanSize(size)),
                    Some(size) => format!("{} of {}", HumanSize(progress.done), HumanSize(size)),
                    None => HumanSize(progress.done).to_string(),
                },
            ),
            ("time", HumanTime(elapsed).to_string()),
            ("rate", format!("{}/s", HumanSize(rate(moved, elapsed)))),
            ("data", HumanSize(progress.data).to_string()),
            ("zero", HumanSize(progress.zero).to_string()),
        ];
        if record.before > 0 {
            tiles.push(("done before", HumanSize(record.before).to_string()));
        }
        if record.marks.len() as u64 + record.more_marks > 0 {
            let warnings = record.marks.len() as u64 + record.more_marks;
            tiles.push(("warnings", warnings.to_string()));
        }
        self.0 += "<dl class=\"tiles\">\n";
        for (name, value) in tiles {
            let _ = writeln!(
                self.0,
                "<div><dt>{name}</dt><dd>{}</dd></div>",
                Escaped(&value)
            );
        }
        self.0 += "</dl>\n";
        if let Some(digest) = report.and_then(|report| report.digest) {
            self.line("p", "digest", format_args!("digest {digest}"));
        }
    }

    /// The picture of the disk, with its legend beside it.
    fn picture(&mut self, cells: &Cells, error: Option<&Error>, report: Option<&Report>) {
        let failed = error.and_then(|error| {
            let offset = error.offset()?;
            let end = offset.saturating_add(error.length().unwrap_or(1).max(1));
            (offset < cells.size()).then(|| ByteRange::between(offset, end))
        });
        let total = cells.total();
        let mut legend = String::from("<ul class=\"legend\">\n");
        for (kind, name) in [
            (Kind::Data, "copied as data"),
            (Kind::Zero, "zeroes"),
            (Kind::Hole, "holes, not read"),
            (Kind::Before, "done before"),
            (Kind::Missing, "not copied"),
        ] {
            let bytes = total.of(kind);
            let always = matches!(kind, Kind::Data | Kind::Zero | Kind::Hole);
            if bytes == 0 && !always {
                continue;
            }
            let _ = writeln!(
                legend,
                "<li>{} {name}: <b>{}</b>, {:.1}%</li>",
                disk::swatch(kind),
                HumanSize(bytes),
                total.percent(kind)
            );
        }
        if let Some(failed) = failed {
            let _ = writeln!(
                legend,
                "<li>{} failed here: offset {}</li>",
                disk::cross(),
                failed.start()
            );
        }
        legend += "</ul>\n";
        let cell = HumanSize(cells.range_of(0).len());
        let title = match report {
            Some(_) => "Where the image had data, zeroes and holes",
            None => "Which parts of the image were copied, and which were not",
        };
        let inside = format!(
            "<div class=\"disk\">\n{}<div>{legend}<p class=\"small\">from left to right and from top to bottom, \
             a cell is {cell}</p></div>\n</div>\n",
            disk::part(cells, title, failed)
        );
        self.section("The disk", &inside);
    }

    /// What was not as it should be: with the time where it is known, as it is marked in the charts.
    fn warnings(&mut self, record: &Record, others: &[String]) {
        let told = |text: &String| record.marks.iter().any(|mark| mark.text == *text);
        let others: Vec<_> = others.iter().filter(|text| !told(text)).collect();
        if record.marks.is_empty() && others.is_empty() {
            return;
        }
        let mut inside = String::new();
        if !record.marks.is_empty() {
            inside += "<ol class=\"warnings\">\n";
            for mark in &record.marks {
                let _ = writeln!(
                    inside,
                    "<li><span class=\"when\">{:.3} s</span> {}</li>",
                    mark.at.as_secs_f64(),
                    Escaped(&mark.text)
                );
            }
            inside += "</ol>\n";
        }
        if record.more_marks > 0 {
            let _ = writeln!(inside, "<p>and {} more</p>", record.more_marks);
        }
        if !others.is_empty() {
            inside += "<ul class=\"warnings\">\n";
            for text in others {
                let _ = writeln!(inside, "<li>{}</li>", Escaped(text));
            }
            inside += "</ul>\n";
        }
        self.section("Warnings", &inside);
    }

    fn table(&mut self, heading: &str, rows: &[(String, String)]) {
        let mut inside = String::from("<table>\n");
        for (name, value) in rows {
            let _ = writeln!(
                inside,
                "<tr><th scope=\"row\">{}</th><td>{}</td></tr>",
                Escaped(name),
                Escaped(value)
            );
        }
        inside += "</table>\n";
        self.section(heading, &inside);
    }
}

/// A filter's counters as a row of a table.
fn counters_row(counters: &crate::filter::Counters) -> (String, String) {
    ("filter".to_owned(), counters_sentence(counters))
}
