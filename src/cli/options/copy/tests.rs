use clap::Parser;

use std::time::Duration;

use super::*;
use crate::{
    cli::args::{Cli, Command},
    endpoint::NewQcow2,
    format::qcow2::Compression,
};

const NO_TERMINAL: Terminals = Terminals {
    input: false,
    output: false,
    error: false,
};
const TERMINAL: Terminals = Terminals {
    input: true,
    output: true,
    error: true,
};

fn resolve(words: &[&str], terminals: Terminals) -> Result<CopyJob, Failure> {
    let cli = Cli::try_parse_from([&["blockferry", "copy"], words].concat());
    let cli = cli.expect("valid arguments");
    let Command::Copy(args) = cli.command else {
        panic!("not a copy")
    };
    CopyJob::resolve(&args, cli.common, terminals)
}

fn refusal(words: &[&str], terminals: Terminals) -> String {
    let failure = resolve(words, terminals).expect_err("refused");
    assert_eq!(failure.code(), 2);
    failure.to_string()
}

#[test]
fn without_flags_the_engine_has_its_own_defaults() {
    let job = resolve(&["a", "b"], NO_TERMINAL).expect("a job");
    let default = CopyOptions::default();
    assert_eq!(format!("{:?}", job.engine), format!("{default:?}"));
}

#[test]
fn flags_reach_the_engine() {
    let words = "-C 3 -R 7 --request-size 64k --queue-size 1M --in-order -S 0 --allocated --no-flush --no-extents --retries 3 a b";
    let words: Vec<_> = words.split(' ').collect();
    let engine = resolve(&words, NO_TERMINAL).expect("a job").engine;
    assert_eq!((engine.connections, engine.requests), (3, Some(7)));
    assert_eq!(engine.request_size, Some(64 << 10));
    assert_eq!((engine.queue_size, engine.sparse), (Some(1 << 20), None));
    assert_eq!((engine.order, engine.retries), (Order::Ascending, 3));
    assert!(engine.allocated && !engine.flush && !engine.extents);
}

#[test]
fn a_timeout_holds_for_everything_only_when_it_is_asked_for() {
    let timeouts = |words: &[&str]| resolve(words, NO_TERMINAL).expect("a job").timeouts;
    let seconds = Duration::from_secs;
    let usual = timeouts(&["a", "b"]);
    assert_eq!((usual.request, usual.flush), (Some(seconds(300)), None));
    assert_eq!(usual.connect, seconds(30));
    let short = timeouts(&["--timeout", "5", "a", "b"]);
    let five = Some(seconds(5));
    assert_eq!((short.request, short.flush), (five, five));
    assert_eq!(short.connect, seconds(5));
    let long = timeouts(&["--timeout", "600", "a", "b"]);
    assert_eq!(long.connect, seconds(30));
    assert_eq!(timeouts(&["--timeout=0", "a", "b"]), Timeouts::PATIENT);
}

#[test]
fn terminals_are_neither_read_nor_written() {
    assert!(refusal(&["-", "b"], TERMINAL).contains("terminal"));
    assert!(refusal(&["a", "-"], TERMINAL).contains("terminal"));
    assert!(resolve(&["-", "-"], NO_TERMINAL).is_ok());
}

#[test]
fn sides_that_make_no_sense_are_wrong_usage() {
    refusal(&["null:", "b"], NO_TERMINAL);
    refusal(&["a", "sample:1M"], NO_TERMINAL);
    refusal(&["--json", "a", "-"], NO_TERMINAL);
    refusal(
        &["--request-size", "1M", "--queue-size", "512K", "a", "b"],
        NO_TERMINAL,
    );
    refusal(&["http://host/a", "b"], NO_TERMINAL);
}

#[test]
fn a_bar_is_for_terminals_and_lines_are_for_logs() {
    let show = |words: &[&str], error| {
        let terminals = Terminals {
            error,
            ..NO_TERMINAL
        };
        resolve(words, terminals).expect("a job").show
    };
    assert_eq!(show(&["a", "b"], true), Show::Bar);
    assert_eq!(show(&["-q", "a", "b"], true), Show::Nothing);
    assert_eq!(show(&["a", "b"], false), Show::Nothing);
    assert_eq!(show(&["-p", "a", "b"], false), Show::Lines);
    assert_eq!(show(&["--progress=bar", "a", "b"], false), Show::Lines);
    assert_eq!(show(&["--progress=lines", "a", "b"], true), Show::Lines);
    for words in [
        &["--progress=json", "a", "b"][..],
        &["-q", "-p=json", "a", "b"],
    ] {
        assert_eq!(show(words, false), Show::Json);
        assert_eq!(show(words, true), Show::Json);
    }
    refusal(&["-q", "-p", "a", "b"], NO_TERMINAL);
}

#[test]
fn json_is_printed_even_when_quiet() {
    let report = |words: &[&str]| resolve(words, NO_TERMINAL).expect("a job").report;
    assert_eq!(report(&["--json", "-q", "a", "b"]), ReportStyle::Json);
    assert_eq!(report(&["-q", "a", "b"]), ReportStyle::Nothing);
    assert_eq!(report(&["a", "b"]), ReportStyle::Sentence);
}

fn new_image(words: &str) -> NewQcow2 {
    let words: Vec<_> = words.split(' ').collect();
    match resolve(&words, NO_TERMINAL).expect("a job").format {
        DestinationFormat::Qcow2(new) => (*new).clone(),
        other => panic!("not a new image: {other:?}"),
    }
}

#[test]
fn a_compressed_image_is_written_in_order_unless_any_will_do() {
    let order = |words: &[&str]| {
        let job = resolve(words, NO_TERMINAL).expect("a job");
        let in_order = match job.format {
            DestinationFormat::Qcow2(new) => new.create.in_order,
            _ => panic!("not a new image"),
        };
        (job.engine.order, in_order)
    };
    let plain = ["-O", "qcow2", "a", "b"];
    assert_eq!(order(&plain), (Order::Any, true));
    let compressed = ["-c", "-O", "qcow2", "a", "b"];
    assert_eq!(order(&compressed), (Order::Ascending, true));
    let any = ["-c", "-W", "-O", "qcow2", "a", "b"];
    assert_eq!(order(&any), (Order::Any, false));
}

#[test]
fn options_of_the_format_reach_it() {
    let new = new_image("-O qcow2 -c -m 7 -o compression_type=zstd,cluster_size=128k a b");
    assert!(new.create.compress);
    assert_eq!(new.create.compression, Compression::Zstd);
    assert_eq!(
        (new.create.cluster_size, new.create.threads),
        (128 << 10, 7)
    );
    let new = new_image("-O qcow2 -B base.raw -F raw a b");
    let backing = new.backing.expect("a backing file");
    assert_eq!(backing.format, FormatKind::Raw);
    let in_place = resolve(&["-n", "-O", "qcow2", "a", "b"], NO_TERMINAL).expect("a job");
    assert!(matches!(in_place.format, DestinationFormat::Qcow2InPlace));
}

#[test]
fn what_does_not_go_together_is_said() {
    for (words, part) in [
        ("-c a b", "-O qcow2"),
        ("-o cluster_size=4k a b", "raw"),
        ("-o preallocation=falloc --target-is-zero a b", "zeroes"),
        ("-b base a b", "no destination but qcow2"),
        ("-n -c -O qcow2 a b", "--no-create"),
        ("-n -O qcow2 -o compat=v3 a b", "--no-create"),
        ("-n -O qcow2 -b base a b", "--no-create"),
        ("-O qcow2 -b x -o backing_file=y a b", "named twice"),
        ("-O qcow2 -b x.gz -F gzip a b", "format gzip"),
        ("-O qcow2 -b x.ova -F ova a b", "format ova"),
        ("-O qcow2 -o nonsense=1 a b", "cluster_size"),
        ("-O qcow2 -o cluster_size=3k a b", "power of two"),
        (
            "-O qcow2 -c -o compat=0.10,compression_type=zstd a b",
            "zstd",
        ),
        ("-O qcow2 -o data_file=d -c a b", "compressed"),
        ("-O qcow2 -b base a nbd://host/", "the whole path"),
        ("-O qcow2 --checkpoint c a b", "--checkpoint"),
        ("-O qcow2 --allocated a b", "preallocation"),
        ("-O qcow2 -b base --target-is-zero a b", "backing file"),
        ("-l one a b c", "several are joined"),
        ("-f raw -l one a b", "raw"),
        ("--bitmaps a b", "qcow2 on both sides"),
        ("--bitmaps -f raw -O qcow2 a b", "qcow2 on both sides"),
        ("--bitmaps -O qcow2 a b c", "several sources"),
        ("--bitmaps -n -O qcow2 a b", "--no-create"),
        ("--bitmaps -O qcow2 --filter offset:512 a b", "--filter"),
        ("a - b", "a stream"),
        ("null: a b", "only be a destination"),
    ] {
        let words: Vec<_> = words.split(' ').collect();
        let text = refusal(&words, NO_TERMINAL);
        assert!(text.contains(part), "{words:?}: {text}");
    }
}

#[test]
fn a_name_that_promises_a_format_raises_a_doubt() {
    let doubts = |words: &[&str]| resolve(words, NO_TERMINAL).expect("a job").doubts;
    assert!(doubts(&["a", "b.qcow2"])[0].contains("-O qcow2"));
    assert!(doubts(&["a", "b.VMDK"])[0].contains("-O vmdk"));
    assert!(doubts(&["a", "b.raw.gz"])[0].contains("-O gzip"));
    assert!(doubts(&["a", "b.zst"])[0].contains("-O zstd"));
    assert!(doubts(&["a", "b.vhdx"])[0].contains("-O vhdx"));
    assert!(doubts(&["-O", "raw", "a", "b.qcow2"]).is_empty());
    assert!(doubts(&["a", "b.raw"]).is_empty());
    assert!(doubts(&["a", "nbd://host/b.qcow2"]).is_empty());
}

#[test]
fn salvage_stands_nearest_to_the_source() {
    let words = ["--salvage", "--filter", "offset:512", "a", "b"];
    let job = resolve(&words, NO_TERMINAL).expect("a job");
    let filters: Vec<_> = job
        .source
        .filters()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(filters, ["offset:512", "salvage"]);
}
