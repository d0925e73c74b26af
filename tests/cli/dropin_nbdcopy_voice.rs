//! What nbdcopy says while it copies, theirs and ours: progress, and what it does with what.

use std::{fs, fs::File, path::Path, process::Command};

use tempfile::tempdir;

use crate::support::{
    Outcome,
    dropin::{BOTH, Who, words},
    run,
    run::run_with_input,
};

/// The hundredths of lines `N/100`.
fn hundredths(text: &str) -> Vec<u32> {
    text.lines()
        .map(|line| {
            let number = line.strip_suffix("/100").and_then(|it| it.parse().ok());
            number.unwrap_or_else(|| panic!("no line of progress: {line:?}"))
        })
        .collect()
}

fn is_increasing(numbers: &[u32]) -> bool {
    numbers.windows(2).all(|pair| pair[0] < pair[1])
}

/// A script that has descriptor 3 opened for `file`.
fn with_descriptor(nbdcopy: &Path, arguments: &str, file: &Path) -> Outcome {
    let (nbdcopy, file) = (nbdcopy.display(), file.display());
    let script = format!("exec 3>{file}; {nbdcopy} {arguments}; code=$?; exec 3>&-; exit $code");
    run(Command::new("sh").args(["-c", &script]))
}

#[test]
fn lines_of_progress_increase_and_end_with_all() {
    let dir = tempdir().expect("a directory");
    for who in BOTH {
        let path = who.path("nbdcopy", dir.path());
        let file = dir.path().join("progress");
        let sources = [
            "-- [ nbdkit pattern 300M ]",
            "/dev/null",
            "-- [ nbdkit null 0 ]",
        ];
        for (source, is_long) in sources.into_iter().zip([true, false, false]) {
            let arguments = format!("--progress=3 {source} null:");
            let outcome = with_descriptor(&path, &arguments, &file).success();
            assert_eq!(outcome.stderr, "");
            let lines = hundredths(&fs::read_to_string(&file).expect("lines"));
            assert_eq!(
                (lines[0], lines.last()),
                (0, Some(&100)),
                "{who:?} {source}"
            );
            let between = lines.len() > 3;
            assert!(between || !is_long, "{who:?} {source}: {lines:?}");
            if who == Who::Ours {
                assert!(is_increasing(&lines), "{source}: {lines:?}");
            }
        }
    }
}

#[test]
fn a_copy_that_fails_is_never_at_a_hundred() {
    let dir = tempdir().expect("a directory");
    let file = dir.path().join("progress");
    let path = Who::Ours.path("nbdcopy", dir.path());
    let arguments = "--progress=3 -- [ nbdkit pattern 8M ] /dev/full";
    with_descriptor(&path, arguments, &file).failure(1, &["nbdcopy: /dev/full"]);
    let lines = hundredths(&fs::read_to_string(&file).expect("lines"));
    assert!(
        lines[0] == 0 && lines.iter().all(|it| *it < 100),
        "{lines:?}"
    );
    let outcome = run(&mut Who::Ours.nbdcopy(words("-p -- [ nbdkit pattern 8M ] /dev/full")))
        .failure(1, &["\nnbdcopy: /dev/full"]);
    assert!(!outcome.stderr.contains("100%"));
}

#[test]
fn a_descriptor_that_nobody_opened_or_reads_keeps_no_copy_from_its_end() {
    for who in BOTH {
        let outcome = run(&mut who.nbdcopy(["--progress=77", "/dev/null", "null:"])).success();
        let said = outcome.stderr.contains("descriptor 77 is not open");
        assert_eq!(said, who == Who::Ours);
    }
    let dir = tempdir().expect("a directory");
    let path = Who::Ours.path("nbdcopy", dir.path());
    let script = format!(
        "{{ {} --progress=1 -- [ nbdkit pattern 64M ] null: && echo whole >&2; }} | true",
        path.display()
    );
    let outcome = run(Command::new("sh").args(["-c", &script]));
    assert_eq!(outcome.stderr, "whole\n");
}

#[test]
fn the_bar_is_a_bar_of_forty_stars_on_standard_error() {
    let outcome = run(&mut Who::Ours.nbdcopy(words("-p -- [ nbdkit pattern 64M ] null:")));
    let outcome = outcome.success();
    assert_eq!(outcome.text(), "");
    let bars: Vec<_> = outcome.stderr.split_inclusive(['\r', '\n']).collect();
    assert!(bars.len() > 3, "{bars:?}");
    let mut last = None;
    for (index, bar) in bars.iter().enumerate() {
        let (head, tail) = bar.split_once('[').expect("a bar");
        let (stars, end) = tail.split_once(']').expect("a bar");
        assert_eq!(stars.len(), 40, "{bar:?}");
        assert!(
            stars
                .trim_start_matches('*')
                .trim_start_matches('-')
                .is_empty()
        );
        assert_eq!(end, if index + 1 == bars.len() { "\n" } else { "\r" });
        let percent = head.split_whitespace().nth(1).expect("a number");
        let percent: u32 = percent.trim_end_matches('%').parse().expect("a number");
        assert!(last < Some(percent), "{bars:?}");
        last = Some(percent);
    }
    assert!(bars[0].contains("   0% [") && last == Some(100), "{bars:?}");
    assert!(bars[bars.len() - 1].contains(&"*".repeat(40)));
}

#[test]
fn what_comes_from_a_pipe_begins_and_ends() {
    for who in BOTH {
        let mut command = who.nbdcopy(["--progress=1", "-", "null:"]);
        let outcome = run_with_input(&mut command, &vec![1; 3 << 20]).success();
        let mut lines = hundredths(outcome.text());
        lines.dedup();
        assert_eq!(lines, [0, 100], "{who:?}");
    }
}

#[test]
fn verbose_tells_of_both_sides_in_the_same_words() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    let grows = dir.path().join("grows.raw");
    File::create(&image)
        .and_then(|it| it.set_len(3 << 19))
        .expect("a file");
    let (image, grows) = (image.display(), grows.display());
    for arguments in [
        "-- [ nbdkit memory 1M ] null:".to_owned(),
        "-- [ nbdkit memory 1000 ] null:".to_owned(),
        format!("-- [ nbdkit file {image} ] {grows}"),
        format!("{image} -- [ nbdkit memory 6G ]"),
        format!("{image} null: --synchronous -R 5"),
        format!("-C1 -T1 {image} -"),
    ] {
        let [theirs, ours] = BOTH.map(|who| {
            let outcome = run(&mut who.nbdcopy(["-v"].into_iter().chain(words(&arguments))));
            let lines = outcome.success().stderr;
            let lines = lines.lines().filter(|line| line.starts_with("nbdcopy: "));
            lines.map(str::to_owned).collect::<Vec<_>>()
        });
        assert_eq!(ours.len(), 5, "{ours:?}");
        // The size that a stream has not is no number, whatever theirs makes of it.
        let alike = if arguments.ends_with('-') { 3 } else { 4 };
        assert_eq!(ours[..alike], theirs[..alike], "{arguments}");
        let settings = |line: &str| {
            let words = line.split(&[' ', '='][..]).map(str::to_owned);
            let is_name = |word: &String| word.parse::<u32>().is_err();
            words.filter(is_name).collect::<Vec<_>>()
        };
        if !arguments.ends_with('-') {
            assert_eq!(settings(&ours[4]), settings(&theirs[4]), "{arguments}");
        }
    }
}
