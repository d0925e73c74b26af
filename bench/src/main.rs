//! The benchmark runner. `cargo xtask bench` builds everything and starts it.
//!
//! Scenarios are data, in `bench/scenarios`. Each contender's command runs once a round; servers are
//! started anew before each run. Results are a table on stdout, and JSON and a chart in
//! `bench/results`, which name the machine and the versions of the rivals.

#![forbid(unsafe_code)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line: data to stdout, messages to stderr"
)]

mod calls;
mod contents;
mod image;
mod interrupt;
mod machine;
mod placeholder;
mod ports;
mod process;
mod report;
mod runner;
mod scenario;
mod server;
mod size;
mod stage;
mod statistics;
mod target;
mod tools;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use blockferry_sys::{adopt_orphans, allow_most_descriptors};
use clap::Parser;

use crate::{
    interrupt::Interrupt,
    report::{Overview, Report},
    runner::Settings,
    scenario::Scenario,
    tools::Tools,
};

/// The exit code of a program that was interrupted, as a shell has it for SIGINT.
const INTERRUPTED: u8 = 130;

/// Runs benchmarks, ours and the rivals', in interleaved rounds.
#[derive(Parser)]
#[command(name = "cargo xtask bench")]
struct Arguments {
    /// The scenarios to run. [default: all]
    #[arg(value_name = "NAME")]
    names: Vec<String>,

    /// Lists the scenarios and runs nothing.
    #[arg(long)]
    list: bool,

    /// How many rounds count. [default: the scenario's, mostly 5]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    runs: Option<usize>,

    /// Small images and two rounds: shows that the scenarios work, and measures nothing.
    /// The results are only printed.
    #[arg(long)]
    quick: bool,

    /// Where the results are written. [default: bench/results, and nowhere for a quick run]
    #[arg(long, value_name = "DIRECTORY")]
    results: Option<PathBuf>,

    /// Runs nothing: writes the chart and the tables of the README, of the guide and of all results anew.
    #[arg(long, conflicts_with_all = ["names", "list", "runs", "quick"])]
    readme: bool,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("at least one run is needed".into()),
        Ok(runs) => Ok(runs),
        Err(error) => Err(format!("{error}")),
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            let interrupted = error.to_string() == interrupt::MESSAGE;
            ExitCode::from(if interrupted { INTERRUPTED } else { 1 })
        }
    }
}

/// Whether everything that was to be measured was.
fn run(arguments: &Arguments) -> Result<bool> {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let scenarios = chosen(all(&home.join("scenarios"))?, &arguments.names)?;
    if arguments.list {
        for scenario in &scenarios {
            println!("{}: {}", scenario.name, scenario.shows.trim());
        }
        return Ok(true);
    }
    let results = match (&arguments.results, arguments.quick) {
        (Some(directory), _) => Some(directory.clone()),
        (None, true) => None,
        (None, false) => Some(home.join("results")),
    };
    if arguments.readme {
        let directory = results.unwrap_or_else(|| home.join("results"));
        return write_readme(scenarios, &directory, &home.join(".."));
    }
    let settings = Settings {
        runs: arguments.runs,
        quick: arguments.quick,
    };
    let interrupt = Interrupt::install()?;
    // Of a server that is killed we want what its children took, too.
    adopt_orphans()?;
    // Servers inherit it, and may have thousands of connections.
    let _ = allow_most_descriptors();
    let tools = Tools::beside_the_runner()?;

    let mut sound = true;
    for scenario in scenarios {
        let name = &scenario.name;
        let mut progress = |text: &str| eprintln!("{name}: {text}");
        let outcomes = match runner::run(&scenario, settings, &tools, &interrupt, &mut progress) {
            Ok(outcomes) => outcomes,
            Err(error) if error.to_string() == interrupt::MESSAGE => return Err(error),
            Err(error) => {
                // The other scenarios may need other things.
                eprintln!("bench: {name} could not be run: {error:#}");
                sound = false;
                continue;
            }
        };
        let report = Report::new(&scenario, settings, &outcomes);
        println!("\n{}", report::table(&report));
        sound &= report.is_sound();
        if let Some(directory) = &results {
            write(&report, directory)?;
        }
    }
    Ok(sound)
}

/// Every scenario, by name.
fn all(directory: &Path) -> Result<Vec<Scenario>> {
    let mut scenarios = Vec::new();
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    for entry in entries {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            scenarios.push(Scenario::read(&path)?);
        }
    }
    scenarios.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(scenarios)
}

/// Those that were named, in the order in which they were; all of them if none was.
fn chosen(mut scenarios: Vec<Scenario>, names: &[String]) -> Result<Vec<Scenario>> {
    if names.is_empty() {
        return Ok(scenarios);
    }
    let mut chosen = Vec::new();
    for name in names {
        let Some(index) = scenarios.iter().position(|one| one.name == *name) else {
            bail!("there is no scenario `{name}`, or it was named twice (--list shows them)");
        };
        chosen.push(scenarios.remove(index));
    }
    Ok(chosen)
}

fn write(report: &Report, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    for (extension, text) in [
        ("json", report::json(report)?),
        ("svg", report::svg(report)),
    ] {
        let path = directory.join(format!("{}.{extension}", report.scenario));
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        eprintln!("wrote {}", path.display());
    }
    Ok(())
}

/// Puts the results of the scenarios into the pages of the project at `root` that show them. Whether each scenario
/// has one.
fn write_readme(scenarios: Vec<Scenario>, results: &Path, root: &Path) -> Result<bool> {
    let mut measured = Vec::new();
    let mut complete = true;
    for scenario in scenarios {
        let path = results.join(format!("{}.json", scenario.name));
        if !path.exists() {
            eprintln!("bench: {} has no result: {}", scenario.name, path.display());
            complete = false;
            continue;
        }
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let report = report::from_json(&text).with_context(|| path.display().to_string())?;
        measured.push((scenario, report));
    }
    let overview = Overview::new(&measured);
    let chart = results.join("overview.svg");
    fs::write(&chart, overview.svg()).with_context(|| chart.display().to_string())?;
    let reports = measured.iter().map(|(_, report)| report);
    let everything = report::markdown(&reports.collect::<Vec<_>>());
    for (page, table) in [
        (root.join("README.md"), overview.markdown()),
        (root.join("docs/tuning.md"), overview.brief()),
        (results.join("README.md"), everything),
    ] {
        let old = fs::read_to_string(&page).with_context(|| page.display().to_string())?;
        fs::write(&page, report::into_readme(&old, &table)?)?;
        eprintln!("wrote {}", page.display());
    }
    Ok(complete)
}
