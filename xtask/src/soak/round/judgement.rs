//! Whether what came of a round is right: how its copies ended, what the destination holds, and what is left behind.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{
    super::{
        images::{Form, difference},
        process::Ending,
        residents::{Resident, sink},
    },
    Copy, Round, Side, Stage,
    choices::Destination,
    fault::Fault,
    text,
};

impl Round<'_> {
    /// Whether a copy ended as it should, whatever came over it.
    pub(super) fn judge(&self, stage: &mut Stage, ending: &Ending, fault: Fault) {
        let Ending { code, stderr, .. } = ending;
        let stage_lost = stage.lost_a_server;
        let mut say = |what: &str| {
            let Ending { shown, .. } = ending;
            stage
                .problems
                .push(format!("{what}: {shown}\nexit code {code}: {stderr}"));
        };
        if let Some(place) = &ending.hung {
            say(&format!("it hung\n{place}"));
            return;
        }
        if stderr.contains("panicked") || [101, 132, 134, 139].contains(code) {
            say("it panicked");
            return;
        }
        let lost = stage_lost && [1, 75].contains(code);
        let allowed = lost || fault.allows(*code, stderr);
        if !allowed {
            say("it should not have ended so");
        }
        let claims = stderr.lines().any(|line| line.starts_with("copied "));
        if *code != 0 && claims {
            say("it failed and said that it did not");
        }
        if *code == 0 && !claims {
            say("it did not say that it was done");
        }
    }

    /// A copy that did not come to its end leaves nothing that looks like an image.
    pub(super) fn look_at_what_failed(&self, stage: &mut Stage, copy: &Copy) {
        let is_new = matches!(
            self.destination,
            Destination::NewFile | Destination::NewQcow2 { .. }
        );
        if is_new && self.target().exists() {
            let problem = format!(
                "there is a destination, and no copy that was done: {}",
                copy.shown()
            );
            stage.problems.push(problem);
        }
        let keeps = copy
            .before
            .iter()
            .any(|option| option.starts_with("--checkpoint"));
        let names = names(&self.target_directory());
        if is_new && !keeps && !names.is_empty() {
            stage
                .problems
                .push(format!("a copy without a checkpoint left {names:?}"));
        }
    }

    /// Whether the destination holds what the source does.
    pub(super) fn compare(&self, stage: &mut Stage) -> Result<()> {
        // Who serves a file may have some of it still to write.
        for (side, server) in &mut stage.servers {
            if *side == Side::Destination {
                stage.problems.extend(server.end());
            }
        }
        let raw = self.image.raw();
        let found = match self.destination {
            Destination::NewQcow2 { .. } | Destination::Served(_, Form::Qcow2) => {
                self.compare_qcow2(&self.target())
            }
            Destination::Resident(_, Form::Qcow2) => {
                let there = self
                    .residents
                    .uri(Resident::Server, &sink(self.image, Form::Qcow2));
                let same = ["compare", "-f", "raw", "-F", "raw", &text(&raw), &there];
                self.world
                    .tool("qemu-img", &same)
                    .err()
                    .map(|error| format!("{error:#}"))
            }
            Destination::Resident(_, form) => {
                difference(&raw, &self.residents.file(&sink(self.image, form)))?
            }
            _ => difference(&raw, &self.target())?,
        };
        if let Some(difference) = found {
            stage
                .problems
                .push(format!("the contents are wrong: {difference}"));
        }
        Ok(())
    }

    fn compare_qcow2(&self, image: &Path) -> Option<String> {
        let path = text(image);
        let mut check = self.world.command("qemu-img");
        let checked = check.args(["check", "-f", "qcow2", &path]).output();
        let checked = match checked {
            Ok(checked) => checked,
            Err(error) => return Some(error.to_string()),
        };
        // A kill may cost space.
        let leaks = self.fault.kills_the_destination() && checked.status.code() == Some(3);
        if !checked.status.success() && !leaks {
            return Some(format!(
                "qemu-img check: {}",
                String::from_utf8_lossy(&checked.stdout)
            ));
        }
        let same = [
            "compare",
            "-f",
            "raw",
            "-F",
            "qcow2",
            &text(&self.image.raw()),
            &path,
        ];
        self.world
            .tool("qemu-img", &same)
            .err()
            .map(|error| format!("{error:#}"))
    }

    /// Nothing stays behind: no processes, no temporary files, no partial destinations.
    pub(super) fn look_for_what_is_left(&self, stage: &mut Stage) {
        let end = Instant::now() + Duration::from_secs(10);
        let known = self.residents.ids();
        let left = loop {
            let mut living = self.world.living();
            living.retain(|(pid, _)| !known.contains(pid));
            if living.is_empty() || Instant::now() > end {
                break living;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        for (pid, line) in left {
            stage
                .problems
                .push(format!("process {pid} was left behind: {line}"));
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
        let scratch = names(&self.world.scratch());
        // Who was killed could not clean up.
        if !scratch.is_empty() {
            if !self.fault.kills() {
                stage
                    .problems
                    .push(format!("temporary files were left behind: {scratch:?}"));
            }
            let _ = fs::remove_dir_all(self.world.scratch());
            let _ = fs::create_dir_all(self.world.scratch());
        }
        if !stage.problems.is_empty() {
            return;
        }
        let target = self.target();
        let beside = names(&self.target_directory());
        let expected = target.file_name().map(|name| name.display().to_string());
        if beside.iter().any(|name| Some(name) != expected.as_ref()) {
            stage
                .problems
                .push(format!("files were left behind: {beside:?}"));
        }
        if self.checkpoint().exists() {
            stage
                .problems
                .push("the checkpoint was left behind".to_owned());
        }
    }
}

/// The names in a directory.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).context("no directory");
    let entries = entries.into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().display().to_string())
        .collect()
}
