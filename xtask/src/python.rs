//! The Python package: its tests, with types and stubs, and its wheel.
//!
//! The tests need no wheel. The extension is built as cargo builds everything, and lies beside the package's own
//! files in a folder below the target directory, as it would in an installation.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::{program, tools};

/// What the tests need from PyPI.
const TEST_TOOLS: [&str; 2] = ["mypy==2.4.1", "pytest==9.2.0"];

/// What makes wheels.
const WHEEL_TOOLS: [&str; 1] = ["maturin==1.16.0"];

/// The oldest interpreter that the extension can be loaded by, as its `abi3` says.
const OLDEST: (u32, u32) = (3, 11);

/// Where the package lies in the workspace.
const PACKAGE: &str = "python";

#[derive(Args, Default)]
pub(crate) struct Options {
    /// What pytest understands: `-k NAME` runs some of the tests.
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Runs the tests of the package, or those that pytest is told to run.
pub(crate) fn run(options: &Options) -> Result<()> {
    let messages = cargo_build(&["--package=blockferry-python", "--package=blockferry"])?;
    let extension = artifact(&messages, "blockferry-python").context("cargo built no extension")?;
    let directory = directory()?;
    let root = directory.join("package");
    stage(&extension, &root)?;
    let python = environment(&directory.join("tests"), &TEST_TOOLS)?;
    let program = executable(&messages).context("cargo built no program")?;
    let in_package = |module: &str| {
        let mut command = Command::new(&python);
        command
            // The sources must not be found instead of what was put together.
            .arg("-P")
            .args(["-m", module])
            .env("PYTHONPATH", &root)
            .env("MYPYPATH", &root)
            .env("PATH", program::search_path())
            .env("BLOCKFERRY", &program)
            .current_dir(program::workspace().join(PACKAGE));
        command
    };
    let mut tests = in_package("pytest");
    tests
        .args(["-q", "-p", "no:cacheprovider"])
        .args(&options.arguments);
    program::run(&mut tests)?;
    if !options.arguments.is_empty() {
        return Ok(());
    }
    let cache = directory.join("mypy");
    let mut types = in_package("mypy");
    types.arg("--cache-dir").arg(&cache).arg("--strict");
    program::run(types.args(["--package=blockferry"]))?;
    let mut types = in_package("mypy");
    types.arg("--cache-dir").arg(&cache).arg("--strict");
    program::run(types.args(["tests", "examples", "benches"]))?;
    program::run(in_package("mypy.stubtest").arg("blockferry"))
}

/// All of that as a command, to be run beside other tests.
pub(crate) fn tests() -> Command {
    // By its name it may be another one: building the workspace writes this very program anew.
    let mut command = Command::new("/proc/self/exe");
    command.arg("python");
    command
}

/// Builds the wheel into `out`, in a profile of cargo's, and returns where it is.
pub(crate) fn wheel(out: &Path, profile: &str) -> Result<PathBuf> {
    let python = environment(&directory()?.join("wheel"), &WHEEL_TOOLS)?;
    fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let before = wheels(out)?;
    for old in before {
        fs::remove_file(&old).with_context(|| old.display().to_string())?;
    }
    let mut maturin = Command::new(python);
    maturin
        .args(["-m", "maturin", "build", "--strip", "--locked"])
        .args(["--profile", profile, "--manifest-path"])
        .arg(program::workspace().join(PACKAGE).join("Cargo.toml"))
        .arg("--out")
        .arg(out)
        .current_dir(program::workspace());
    program::run(&mut maturin)?;
    match &wheels(out)?[..] {
        [wheel] => Ok(wheel.clone()),
        wheels => bail!("one wheel was to be built, and there are {}", wheels.len()),
    }
}

/// Installs a wheel where nothing else is, and uses it.
pub(crate) fn try_wheel(wheel: &Path) -> Result<()> {
    const USE: &str = "import blockferry, tempfile\n\
        with tempfile.TemporaryDirectory() as place:\n\
        \x20   report = blockferry.copy('sample:4M', place + '/disk.qcow2', output_format='qcow2')\n\
        \x20   with blockferry.Client(place + '/disk.qcow2', read_only=True) as disk:\n\
        \x20       assert disk.size == report.size == 4 << 20\n\
        print('blockferry', blockferry.__version__, 'works')\n";
    let place = directory()?.join("try");
    if place.exists() {
        fs::remove_dir_all(&place).with_context(|| place.display().to_string())?;
    }
    let python = environment(&place, &[])?;
    let mut install = Command::new(&python);
    install.args(["-m", "pip", "install", "--quiet", "--no-index"]);
    program::run(install.arg(wheel))?;
    program::run(Command::new(python).args(["-I", "-c", USE]))
}

fn wheels(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut wheels = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "whl") {
            wheels.push(path);
        }
    }
    Ok(wheels)
}

/// Where everything of this file lies below the target directory.
fn directory() -> Result<PathBuf> {
    Ok(tools::target_directory()?.join("python"))
}

/// The package as an installation has it.
fn stage(extension: &Path, root: &Path) -> Result<()> {
    let source = program::workspace().join(PACKAGE).join("blockferry");
    let target = root.join("blockferry");
    if target.exists() {
        fs::remove_dir_all(&target).with_context(|| target.display().to_string())?;
    }
    fs::create_dir_all(&target).with_context(|| target.display().to_string())?;
    for entry in fs::read_dir(&source).with_context(|| source.display().to_string())? {
        let path = entry?.path();
        if let (true, Some(name)) = (path.is_file(), path.file_name()) {
            fs::copy(&path, target.join(name)).with_context(|| path.display().to_string())?;
        }
    }
    let place = target.join("_native.abi3.so");
    fs::copy(extension, &place).with_context(|| place.display().to_string())?;
    Ok(())
}

/// An interpreter with `tools` of PyPI, of these versions. What was installed once stays.
fn environment(place: &Path, tools: &[&str]) -> Result<PathBuf> {
    let python = place.join("bin/python");
    let (note, wanted) = (place.join("tools"), tools.join("\n"));
    if python.is_file() && fs::read_to_string(&note).is_ok_and(|text| text == wanted) {
        return Ok(python);
    }
    check_interpreter()?;
    let mut make = Command::new("python3");
    make.args(["-m", "venv", "--clear"]).arg(place);
    program::run(&mut make).context(
        "an environment for Python cannot be made; on Debian: apt-get install python3-venv",
    )?;
    if !tools.is_empty() {
        let mut install = Command::new(&python);
        install.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ]);
        program::run(install.args(tools)).with_context(|| {
            let tools = tools.join(" and ");
            format!("{tools} cannot be installed from PyPI; is there a network?")
        })?;
    }
    fs::write(&note, wanted).with_context(|| note.display().to_string())?;
    Ok(python)
}

fn check_interpreter() -> Result<()> {
    const VERSION: &str = "import sys; print(*sys.version_info[:2])";
    let output = program::output(Command::new("python3").args(["-c", VERSION]));
    let output = output.context(
        "the Python package is tested with a python3; on Debian: apt-get install python3 python3-venv",
    )?;
    let version = parse_version(&String::from_utf8_lossy(&output));
    if version.is_none_or(|version| version < OLDEST) {
        let (major, minor) = OLDEST;
        bail!("the Python package needs Python {major}.{minor} or later");
    }
    Ok(())
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim().split_once(' ')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Builds, and returns what cargo says of it.
fn cargo_build(packages: &[&str]) -> Result<Vec<Value>> {
    let mut build = program::cargo(["build", "--message-format=json-render-diagnostics"]);
    let messages = program::output(build.args(packages))?;
    let messages = String::from_utf8(messages).context("what cargo says is text")?;
    let messages = messages.lines().map(serde_json::from_str);
    Ok(messages.collect::<Result<_, _>>()?)
}

/// The shared library of a package.
fn artifact(messages: &[Value], package: &str) -> Option<PathBuf> {
    let name = package.replace('-', "_");
    let message = messages.iter().find(|it| it["target"]["name"] == name)?;
    let mut files = message["filenames"].as_array()?.iter();
    files.find_map(|file| {
        let file = file.as_str()?;
        file.ends_with(".so").then(|| file.into())
    })
}

/// The program.
fn executable(messages: &[Value]) -> Option<PathBuf> {
    let mut files = messages.iter().filter_map(|it| it["executable"].as_str());
    files.next().map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert_eq!(parse_version("3 11\n"), Some((3, 11)));
        assert!(parse_version("3 9").is_some_and(|version| version < OLDEST));
        assert!(parse_version("3 100").is_some_and(|version| version > OLDEST));
        assert_eq!(parse_version("three"), None);
    }

    #[test]
    fn the_extension_and_the_program_are_found_in_what_cargo_says() {
        let messages = [
            json!({"target": {"name": "other"}, "filenames": ["/t/libother.so"]}),
            json!({"target": {"name": "blockferry_python"}, "filenames": ["/t/libx.so"]}),
            json!({"target": {"name": "blockferry"}, "executable": "/t/blockferry"}),
        ];
        let extension = artifact(&messages, "blockferry-python");
        assert_eq!(extension, Some("/t/libx.so".into()));
        assert_eq!(executable(&messages), Some("/t/blockferry".into()));
    }
}
