//! Carries out the examples of a page and compares what they print with what the page says.
//!
//! All blocks of a page go to one shell, in a directory of their own, in their order: what one makes is there for the
//! next one. Standard output and error come together, as on a terminal. Times, rates and port numbers count as
//! equal, a line `...` stands for any lines, and the directory is called `/scratch`. The output of a command that ends
//! with `&` is waited for. `cargo run -q --example NAME --` runs the example that was built.

use std::{
    env, fs,
    io::{BufRead, BufReader, PipeReader, Write, pipe},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use tempfile::{tempdir, tempdir_in};

use super::{
    page::{Mark, Page, Step},
    root,
};

/// What the shell prints after each command, with the exit code behind it.
const DONE: &str = "=-= done";

/// How long a command may take. It bounds a hang; no test depends on speed.
const PATIENCE: Duration = Duration::from_secs(300);

/// Carries out what is marked in the page `name`.
#[track_caller]
pub(super) fn carry_out(name: &str) {
    let page = Page::read(name);
    // In memory where that is possible: nothing of this is about disks.
    let directory = tempdir_in("/dev/shm").or_else(|_| tempdir());
    let directory = directory.expect("a directory");
    let mut shell = Shell::start(directory.path());
    let mut differences = Vec::new();
    let mut changed: Vec<String> = page.text.lines().map(str::to_owned).collect();
    // Lines that were inserted or removed before the place that is looked at.
    let mut moved = 0_isize;
    for block in page.blocks() {
        match block.mark {
            Mark::Prepare => {
                let (code, output) = shell.run(&block.lines.join("\n"), 0);
                assert_eq!(code, 0, "{name}:{}: {output:?}", block.line);
            }
            Mark::Run | Mark::Refused => {
                for step in block.steps() {
                    let (_, output) = shell.run(&step.command, step.output.len());
                    if is_same(&step.output, &output) {
                        continue;
                    }
                    differences.push(told(name, &step, &output));
                    let first = step.line + step.command.lines().count() - 1;
                    let first = first.checked_add_signed(moved).expect("a line");
                    changed.splice(first..first + step.output.len(), output.iter().cloned());
                    moved += output.len() as isize - step.output.len() as isize;
                }
            }
            Mark::None => {}
        }
    }
    drop(shell);
    if !differences.is_empty() && env::var_os("BLOCKFERRY_GUIDE").is_some_and(|it| it == "write") {
        fs::write(root().join(name), changed.join("\n") + "\n").expect("a page");
        return;
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

fn told(name: &str, step: &Step, output: &[String]) -> String {
    let indented =
        |lines: &[String]| -> String { lines.iter().map(|line| format!("    {line}\n")).collect() };
    format!(
        "{name}:{}: $ {}\nthe page says\n{}it printed\n{}",
        step.line,
        step.command,
        indented(&step.output),
        indented(output)
    )
}

/// A shell that is given one command after the other. What it started ends with it.
struct Shell {
    child: Child,
    output: Receiver<String>,
    directory: PathBuf,
}

impl Shell {
    fn start(directory: &Path) -> Self {
        let (reader, writer) = pipe().expect("a pipe");
        let program = Path::new(env!("CARGO_BIN_EXE_blockferry"));
        let built = program.parent().expect("a directory");
        let path = env::var_os("PATH").unwrap_or_default();
        let directories = [built.to_owned(), built.join("examples")].into_iter();
        let others = env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
        let path = env::join_paths(directories.chain(others)).expect("a path");
        let child = Command::new("bash")
            .args(["--norc", "--noprofile"])
            .env("PATH", path)
            .env("HOME", directory)
            .env("TMPDIR", directory)
            .env("LC_ALL", "C.UTF-8")
            .env_remove("BLOCKFERRY_ALLOW_BACKING")
            .current_dir(directory)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(writer.try_clone().expect("a descriptor"))
            .stderr(writer)
            .spawn()
            .expect("bash");
        Self {
            child,
            output: lines(reader),
            directory: directory.to_owned(),
        }
    }

    /// Runs `command`, and returns its exit code and what was printed; at least `awaited` lines where it goes on in the
    /// background.
    #[track_caller]
    fn run(&mut self, command: &str, awaited: usize) -> (i32, Vec<String>) {
        let script = format!(
            "{{ {}\n}} </dev/null\ncode=$?; echo; echo \"{DONE} $code\"\n",
            built(command)
        );
        let stdin = self.child.stdin.as_mut().expect("a pipe");
        stdin.write_all(script.as_bytes()).expect("the shell reads");
        let goes_on = command.trim_end().ends_with('&');
        let deadline = Instant::now() + PATIENCE;
        let mut lines: Vec<String> = Vec::new();
        let mut code = None;
        while code.is_none() || goes_on && lines.len() < awaited {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = match self.output.recv_timeout(left) {
                Ok(line) => line,
                Err(_) if code.is_some() => break,
                Err(_) => panic!("{command} does not end; it printed {lines:?}"),
            };
            match line.strip_prefix(DONE) {
                Some(number) => {
                    code = number.trim().parse().ok();
                    // The line end in front of it is ours.
                    if lines.last().is_some_and(String::is_empty) {
                        lines.pop();
                    }
                }
                None => lines.push(self.cleaned(&line)),
            }
        }
        if goes_on {
            // What it prints may come before or behind our own line end.
            lines.retain(|line| !line.is_empty());
        }
        (code.unwrap_or(-1), lines)
    }

    fn cleaned(&self, line: &str) -> String {
        let real = self.directory.canonicalize().expect("a directory");
        line.replace(real.to_str().expect("UTF-8"), "/scratch")
            .trim_end()
            .to_owned()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // The group has the number of its first process.
        let group = format!("-{}", self.child.id());
        let _ = Command::new("kill")
            .args(["-s", "KILL", "--", &group])
            .status();
        let _ = self.child.wait();
    }
}

/// The command with the examples' programs in the place of cargo.
fn built(command: &str) -> String {
    const CARGO: &str = "cargo run -q --example ";
    match command.split_once(CARGO) {
        Some((before, after)) => format!("{before}{}", after.replacen(" --", "", 1)),
        None => command.to_owned(),
    }
}

fn lines(reader: PipeReader) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(reader).lines() {
            // What is drawn over itself counts as it ends.
            let Ok(line) = line else { return };
            let last = line.rsplit('\r').next().unwrap_or_default().to_owned();
            if sender.send(last).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Whether `output` is what the page says, where `...` stands for any lines.
fn is_same(said: &[String], output: &[String]) -> bool {
    match said.split_first() {
        None => output.is_empty(),
        Some((first, rest)) if first == "..." => {
            (0..=output.len()).any(|skipped| is_same(rest, &output[skipped..]))
        }
        Some((first, rest)) => output
            .split_first()
            .is_some_and(|(line, others)| normal(first) == normal(line) && is_same(rest, others)),
    }
}

/// The line without what differs from run to run: times, rates, ports, and how much was data and how much zeroes,
/// which depends on the blocks of the file system.
fn normal(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let unit = |index: usize| -> &str {
        let word = words.get(index).copied().unwrap_or_default();
        word.trim_end_matches(['.', ',', ':', ')', ';', '"'])
    };
    let mut normal: Vec<String> = Vec::new();
    let mut index = 0;
    while let Some(word) = words.get(index) {
        let is_number = word.trim_start_matches('(').parse::<f64>().is_ok();
        let (next, behind) = (unit(index + 1), unit(index + 2));
        if is_number && next == "min" {
            // "1 min 29 s" is a time as "89 s" is one.
            index += 2;
            continue;
        }
        let is_rate = next.ends_with("/s") || next.ends_with("/sec");
        let is_share = matches!(behind, "data" | "zero" | "had" | "of" | "were");
        let is_progress = next == "bytes" && index > 0 && words[index - 1] == "after";
        if is_number
            && (matches!(next, "s" | "ms" | "us" | "sec") || is_rate || is_share || is_progress)
        {
            normal.push("N".to_owned());
            // The unit depends on the number.
            index += 1;
        } else {
            normal.push(without_port(word));
        }
        index += 1;
    }
    let line = normal.join(" ");
    match line.trim_start().split_once(": ") {
        Some((key @ ("\"seconds\"" | "\"bytes-per-second\""), _)) => format!("{key}: N"),
        _ => line,
    }
}

fn without_port(word: &str) -> String {
    for host in ["localhost:", "127.0.0.1:", "[::1]:"] {
        if let Some((before, after)) = word.split_once(host) {
            let rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
            return format!("{before}{host}PORT{rest}");
        }
    }
    word.to_owned()
}

#[test]
fn outputs_are_the_same_but_for_times_rates_and_ports() {
    let same = |said: &str, printed: &str| {
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        is_same(&lines(said), &lines(printed))
    };
    assert!(same(
        "copied 1 in 0.9 s (1.1 GiB/s): 3.0 MiB data, 5 bytes zero",
        "copied 1 in 1 min 12 s (80.0 bytes/s): 4.0 KiB data, 6 bytes zero"
    ));
    assert!(!same(
        "copied 1 in 0.9 s (1.1 GiB/s)",
        "copied 2 in 0.9 s (1.1 GiB/s)"
    ));
    assert!(same("nbd://localhost:1/ a", "nbd://localhost:23/ a"));
    assert!(!same("a s b", "c s b"));
    assert!(same("a\n...\nd", "a\nb\nc\nd") && same("...", "") && !same("a\n...", "b"));
    assert!(!same("a", "a\nb") && !same("a\nb", "a"));
    assert!(same("  \"seconds\": 0.1,", "  \"seconds\": 2.5,"));
}
