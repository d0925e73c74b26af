//! What a page consists of: fenced blocks with the comment above them, headings, and the text between.

use std::fs;

use super::root;

/// A page.
pub(super) struct Page {
    /// Its path from the root of the tree.
    pub(super) name: String,
    pub(super) text: String,
}

/// What a comment above a block says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// Nothing.
    None,
    /// It is carried out, and what it prints is compared.
    Run,
    /// It is carried out and not shown.
    Prepare,
    /// It is carried out, too, and its command lines are wrong on purpose.
    Refused,
}

/// A block of lines with one purpose.
pub(super) struct Block {
    pub(super) mark: Mark,
    language: String,
    /// The number of its first line, from 1 on.
    pub(super) line: usize,
    pub(super) lines: Vec<String>,
}

/// A command of a console block, and what it is said to print.
pub(super) struct Step {
    /// The number of its first line in the page.
    pub(super) line: usize,
    pub(super) command: String,
    pub(super) output: Vec<String>,
}

impl Page {
    pub(super) fn read(name: &str) -> Self {
        let path = root().join(name);
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{name}: {error}"));
        let name = name.to_owned();
        Self { name, text }
    }

    /// The fenced blocks, and the commands in comments.
    pub(super) fn blocks(&self) -> Vec<Block> {
        let mut blocks = Vec::new();
        let mut mark = Mark::None;
        let mut lines = (1..).zip(self.text.lines());
        while let Some((number, line)) = lines.next() {
            let (language, end) = match line.trim() {
                "<!-- run -->" => {
                    mark = Mark::Run;
                    continue;
                }
                "<!-- refused -->" => {
                    mark = Mark::Refused;
                    continue;
                }
                "<!-- prepare" => {
                    mark = Mark::Prepare;
                    ("sh", "-->")
                }
                text => match text.strip_prefix("```") {
                    Some(language) => (language, "```"),
                    None => continue,
                },
            };
            let inside = lines.by_ref().take_while(|(_, line)| line.trim() != end);
            blocks.push(Block {
                mark: std::mem::replace(&mut mark, Mark::None),
                language: language.to_owned(),
                line: number + 1,
                lines: inside.map(|(_, line)| line.to_owned()).collect(),
            });
        }
        blocks
    }

    /// The lines that are neither in a block nor in a comment, with their numbers.
    pub(super) fn prose(&self) -> Vec<(usize, &str)> {
        let mut end = None;
        let mut prose = Vec::new();
        for (number, line) in (1..).zip(self.text.lines()) {
            let text = line.trim();
            if let Some(awaited) = end {
                if text == awaited {
                    end = None;
                }
            } else if text.starts_with("```") {
                end = Some("```");
            } else if text.starts_with("<!--") && !text.ends_with("-->") {
                end = Some("-->");
            } else {
                prose.push((number, line));
            }
        }
        prose
    }
}

impl Block {
    /// The commands of a console block, each with what it is said to print.
    pub(super) fn steps(&self) -> Vec<Step> {
        let mut steps: Vec<Step> = Vec::new();
        let mut goes_on = false;
        for (line, text) in (self.line..).zip(&self.lines) {
            if let (true, Some(step)) = (goes_on, steps.last_mut()) {
                step.command.push('\n');
                step.command.push_str(text);
                goes_on = super::shell::goes_on(&step.command);
            } else if let Some(command) = text.strip_prefix("$ ") {
                goes_on = super::shell::goes_on(command);
                steps.push(Step {
                    line,
                    command: command.to_owned(),
                    output: Vec::new(),
                });
            } else if let Some(step) = steps.last_mut() {
                step.output.push(text.clone());
            }
        }
        steps
    }

    /// What a shell would be given, with the numbers of the lines.
    pub(super) fn command_lines(&self) -> Vec<(usize, String)> {
        match &*self.language {
            "console" => {
                let steps = self.steps().into_iter();
                steps.map(|step| (step.line, step.command)).collect()
            }
            "sh" => vec![(self.line, self.lines.join("\n"))],
            _ => Vec::new(),
        }
    }
}
