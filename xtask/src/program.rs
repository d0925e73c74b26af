//! Starting other programs: the command is shown before it runs, and a failure names it.

use std::{
    env,
    ffi::OsString,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// Where an administrator's programs lie (`mkfs.ext4`) that an ordinary user's `PATH` may leave out.
const ADMINISTRATOR_DIRECTORIES: [&str; 2] = ["/usr/sbin", "/sbin"];

/// The root of the workspace.
pub(crate) fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies one directory below the workspace")
}

/// The cargo that started this program, with `arguments`, in the workspace's root.
pub(crate) fn cargo<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(arguments)
        .current_dir(workspace())
        .env("PATH", search_path());
    command
}

/// `PATH`, followed by the administrator's directories it lacks.
pub(crate) fn search_path() -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = env::split_paths(&path).collect();
    for extra in ADMINISTRATOR_DIRECTORIES {
        if !directories.iter().any(|known| known == Path::new(extra)) {
            directories.push(extra.into());
        }
    }
    env::join_paths(directories).unwrap_or(path)
}

/// Shows the command and runs it; anything but success is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = display(command);
    eprintln!("$ {shown}");
    let status = command
        .status()
        .with_context(|| format!("cannot start {shown}"))?;
    if !status.success() {
        bail!("{shown}: {status}");
    }
    Ok(())
}

/// Shows the command and becomes it. It returns only if that fails.
pub(crate) fn replace(command: &mut Command) -> Result<()> {
    let shown = display(command);
    eprintln!("$ {shown}");
    let error = command.exec();
    Err(error).with_context(|| format!("cannot start {shown}"))
}

/// Runs the command silently and returns what it wrote to stdout.
pub(crate) fn output(command: &mut Command) -> Result<Vec<u8>> {
    let shown = display(command);
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {shown}"))?;
    if !output.status.success() {
        bail!("{shown}: {}", output.status);
    }
    Ok(output.stdout)
}

/// Whether the command starts and succeeds; it is given nothing to read and its output is dropped.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The command as a person would type it: the program's own name, and the arguments.
fn display(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    let mut shown = name.to_string_lossy().into_owned();
    for argument in command.get_args() {
        shown.push(' ');
        shown.push_str(&argument.to_string_lossy());
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_command_is_named_with_its_arguments() {
        let error = run(Command::new("/bin/false").args(["--now", "x"])).unwrap_err();
        assert!(format!("{error:#}").starts_with("false --now x: "));
    }

    #[test]
    fn a_program_that_is_not_there_does_not_succeed() {
        assert!(!succeeds(&mut Command::new("/nonexistent/program")));
        assert!(succeeds(&mut Command::new("true")));
    }

    #[test]
    fn the_search_path_ends_with_the_administrators_directories() {
        let path = search_path();
        let directories: Vec<PathBuf> = env::split_paths(&path).collect();
        for expected in ADMINISTRATOR_DIRECTORIES {
            let count = directories.iter().filter(|d| **d == Path::new(expected));
            assert!(count.count() >= 1, "{expected} is missing");
        }
    }
}
