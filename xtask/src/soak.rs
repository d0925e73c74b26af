//! `cargo xtask soak`: random copies, with faults and kills, for as long as one likes.
//!
//! Each round is one copy: a source, a destination, options and a fault, all of them chosen by the seed and the
//! round's number. A copy that was killed, interrupted or failed is done again, with what was noted of it. In the
//! end the destination holds what the source does, byte for byte, or the soak has found something. So it has when
//! a program panics, hangs, claims what is not so, or leaves files, sockets or processes behind; and when those
//! that live through all rounds grow.
//!
//! It drives the program from outside, with other people's servers and `qemu-img` as witnesses.

mod cutter;
mod images;
mod process;
mod random;
mod report;
mod residents;
mod round;
mod server;
mod watch;

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use self::{process::World, report::Report, residents::Residents, round::Round};
use crate::{packages, tools};

#[derive(Args)]
pub(crate) struct Options {
    /// How long.
    #[arg(long, default_value_t = 10)]
    minutes: u64,

    /// What everything is chosen by; told in the beginning.
    #[arg(long)]
    seed: Option<u64>,

    /// Only this round of the seed.
    #[arg(long)]
    round: Option<u64>,

    /// The program; without it the one in target/release, or that in target/debug.
    #[arg(long)]
    program: Option<PathBuf>,

    /// Where the images lie meanwhile, up to 2 GiB; without it a directory for temporary files.
    #[arg(long)]
    directory: Option<PathBuf>,

    /// Seconds that one copy may take before it counts as one that hangs.
    #[arg(long, default_value_t = 180)]
    patience: u64,

    /// Installs nothing: a missing program is an error that names its package.
    #[arg(long)]
    no_install: bool,
}

/// After so many failures there is enough to look at.
const MOST_FAILURES: usize = 20;

pub(crate) fn run(options: &Options) -> Result<()> {
    packages::require(packages::PACKAGES, !options.no_install)?;
    let over = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // A second one ends it at once.
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&over))?;
        signal_hook::flag::register(signal, Arc::clone(&over))?;
    }
    let program = the_program(options)?;
    let seed = options.seed.unwrap_or_else(seed_of_now);
    // Whoever works on this machine comes first.
    let _ = rustix::process::setpriority_process(None, 10);
    let parent = options.directory.clone().unwrap_or_else(std::env::temp_dir);
    let directory = tempfile::Builder::new()
        .prefix("soak-")
        .tempdir_in(parent)?;
    let patience = Duration::from_secs(options.patience);
    let world = World::new(program, directory.path().to_owned(), patience, over);
    let kept = tools::target_directory()?.join("soak");
    let _ = fs::remove_dir_all(&kept);
    fs::create_dir_all(&kept)?;
    fs::create_dir_all(world.scratch())?;
    eprintln!("soak: {} with seed {seed}", world.program.display());

    let images = images::draw(&world, seed)?;
    let mut residents = Residents::start(&world, &images)?;
    let mut report = Report::default();
    let end = Instant::now() + Duration::from_secs(options.minutes * 60);
    let mut next_word = Instant::now() + Duration::from_secs(60);
    let mut number = options.round.unwrap_or(0);
    while !world.is_over() && report.failures.len() < MOST_FAILURES {
        let round = Round::choose(&world, &images, &residents, seed, number);
        let told = round.run(&kept.join(format!("round-{number}")));
        for problem in &told.problems {
            eprintln!("soak: round {number}: {problem}");
        }
        if !told.problems.is_empty() {
            let again = format!("cargo xtask soak --seed {seed} --round {number}");
            eprintln!("soak: once more with: {again}");
        }
        report.add(told);
        if Instant::now() > next_word {
            eprintln!(
                "soak: {} rounds, {} failures",
                report.rounds(),
                report.failures.len()
            );
            next_word = Instant::now() + Duration::from_secs(60);
        }
        if let Err(error) = residents.note() {
            report.failures.push((Some(number), format!("{error:#}")));
            break;
        }
        number += 1;
        if options.round.is_some() || Instant::now() >= end {
            break;
        }
    }
    let grown: Vec<_> = residents
        .histories()
        .flat_map(watch::History::growth)
        .collect();
    report
        .failures
        .extend(grown.into_iter().map(|it| (None, it)));
    let text = report.text(residents.histories());
    let json = report.to_json(seed, residents.histories());
    let ended = residents.end(&world, &images);
    report
        .failures
        .extend(ended.into_iter().map(|it| (None, it)));
    for (pid, line) in world.living() {
        report
            .failures
            .push((None, format!("process {pid} is still there: {line}")));
    }
    fs::write(
        kept.join("report.json"),
        serde_json::to_string_pretty(&json)?,
    )?;
    fs::write(kept.join("report.txt"), &text)?;
    print!("{text}");
    for (_, problem) in report.failures.iter().filter(|(round, _)| round.is_none()) {
        println!("{problem}");
    }
    ensure!(!world.is_over(), "it was interrupted after {number} rounds");
    if !report.failures.is_empty() {
        bail!(
            "seed {seed}: {} failures; see {}",
            report.failures.len(),
            kept.display()
        );
    }
    Ok(())
}

fn the_program(options: &Options) -> Result<PathBuf> {
    let given = options.program.clone();
    let target = tools::target_directory()?;
    let built = ["release", "debug"].map(|profile| target.join(profile).join("blockferry"));
    let found = given.into_iter().chain(built).find(|path| path.is_file());
    let found = found.context("there is no program: cargo build --release, or --program PATH")?;
    Ok(found.canonicalize()?)
}

fn seed_of_now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(1, |now| now.as_secs() % 1_000_000)
}
