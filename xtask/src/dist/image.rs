//! The image for containers: its description, and what of that can be found out without an engine.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Release, files, tree};

const NAME: &str = "Containerfile";

/// Writes the Containerfile beside the tree that it copies.
pub(super) fn describe(release: &Release) -> Result<()> {
    let template = tree::packaging().join(NAME);
    let text = fs::read_to_string(&template).with_context(|| template.display().to_string())?;
    let text = text.replace("@VERSION@", &release.version);
    files::write(&release.directory.join(NAME), text.as_bytes())
}

/// What a Containerfile says, as far as the image can be put together from it by hand.
pub(super) struct Description {
    /// From where below the context, to where in the image.
    pub(super) copies: Vec<(PathBuf, PathBuf)>,
    /// The variables.
    pub(super) environment: BTreeMap<String, String>,
    /// `UID:GID`.
    pub(super) user: String,
    /// Where it starts.
    pub(super) directory: String,
    /// What is started.
    pub(super) entrypoint: Vec<String>,
}

impl Description {
    pub(super) fn of(release: &Release) -> Result<Self> {
        let path = release.directory.join(NAME);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Self::parse(&text)
    }

    /// Understands the instructions that ours uses, and refuses all others: what is not understood would not be tried.
    fn parse(text: &str) -> Result<Self> {
        let (mut copies, mut environment) = (Vec::new(), BTreeMap::new());
        let (mut user, mut directory, mut entrypoint) = (None, None, None);
        for line in instructions(text) {
            let (instruction, arguments) = line.split_once(' ').unwrap_or((&line, ""));
            match instruction {
                "ARG" | "FROM" | "LABEL" | "EXPOSE" | "CMD" => {}
                "COPY" => {
                    let (from, to) = arguments.split_once(' ').context("COPY takes two paths")?;
                    ensure!(to.starts_with('/'), "COPY to {to}: not from the root");
                    copies.push((from.into(), to.into()));
                }
                "ENV" => {
                    let (name, value) =
                        arguments.split_once('=').context("ENV takes NAME=VALUE")?;
                    environment.insert(name.into(), value.into());
                }
                "USER" => user = Some(arguments.into()),
                "WORKDIR" => directory = Some(arguments.into()),
                "ENTRYPOINT" => entrypoint = Some(words(arguments)?),
                other => bail!("the Containerfile has {other}, which is not tried here"),
            }
        }
        Ok(Self {
            copies,
            environment,
            user: user.context("the Containerfile has no USER: it would run as root")?,
            directory: directory.context("the Containerfile has no WORKDIR")?,
            entrypoint: entrypoint.context("the Containerfile has no ENTRYPOINT")?,
        })
    }
}

/// The instructions, each on one line, without comments.
fn instructions(text: &str) -> Vec<String> {
    let mut instructions = Vec::new();
    let mut begun = String::new();
    let lines = text.lines().map(str::trim);
    for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
        begun.push_str(line.strip_suffix('\\').unwrap_or(line));
        if !line.ends_with('\\') {
            instructions.push(std::mem::take(&mut begun));
        }
    }
    instructions
}

/// The words of the form that no shell looks at: `["program", "argument"]`.
fn words(arguments: &str) -> Result<Vec<String>> {
    let list: Value = serde_json::from_str(arguments)
        .with_context(|| format!("{arguments} would be given to a shell"))?;
    let words = list.as_array().context("ENTRYPOINT takes a list")?;
    let words: Option<Vec<String>> = words
        .iter()
        .map(|word| Some(word.as_str()?.into()))
        .collect();
    words.context("ENTRYPOINT takes a list of words")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_go_on_behind_a_backslash_and_comments_are_none() {
        let text = "# one\nLABEL a=\"b\" \\\n      c=\"d\"\n\nUSER 1:1\n";
        assert_eq!(instructions(text), ["LABEL a=\"b\" c=\"d\"", "USER 1:1"]);
    }

    #[test]
    fn what_cannot_be_tried_is_refused() {
        let rest = "USER 1:1\nWORKDIR /work\nENTRYPOINT [\"/bin/x\"]\n";
        assert!(Description::parse(rest).is_ok());
        for line in ["RUN true\n", "ENTRYPOINT /bin/x\n", "COPY usr/ usr/\n"] {
            assert!(
                Description::parse(&format!("{rest}{line}")).is_err(),
                "{line}"
            );
        }
        let as_root = "WORKDIR /work\nENTRYPOINT [\"/bin/x\"]\n";
        assert!(Description::parse(as_root).is_err());
    }

    #[test]
    fn ours_runs_the_program_as_nobody_and_copies_the_tree() {
        let text = fs::read_to_string(tree::packaging().join(NAME)).unwrap();
        let ours = Description::parse(&text).unwrap();
        assert_eq!(ours.entrypoint, ["/usr/bin/blockferry"]);
        assert_eq!(ours.copies, [("usr/".into(), "/usr/".into())]);
        assert!(!ours.user.starts_with("0") && !ours.user.starts_with("root"));
        assert!(ours.environment["PATH"].ends_with(tree::NAMES_DIRECTORY));
    }
}
