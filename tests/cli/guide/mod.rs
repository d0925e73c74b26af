//! The guide, the README and the other pages say what is so: every command line in them is understood by the program,
//! every link leads somewhere, and the examples that are marked print what the pages say.
//!
//! In a page, `<!-- run -->` above a ```` ```console ```` block has its commands carried out and their output compared
//! (`session` says how), `<!-- prepare` and lines of commands up to `-->` make what they need without being shown, and
//! `<!-- refused -->` does the same with command lines that are wrong on purpose. `BLOCKFERRY_GUIDE=write` puts what the commands
//! printed into the pages instead.

mod links;
mod page;
mod session;
mod shell;

use std::{fs, path::Path};

use blockferry::cli::understood;

use page::{Mark, Page};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The guide's pages, by their paths from the root.
fn guide() -> Vec<Page> {
    let mut names: Vec<String> = fs::read_dir(root().join("docs"))
        .expect("the guide")
        .map(|entry| {
            entry
                .expect("a file")
                .file_name()
                .into_string()
                .expect("UTF-8")
        })
        .filter(|name| name.ends_with(".md"))
        .map(|name| format!("docs/{name}"))
        .collect();
    names.sort();
    names.iter().map(|name| Page::read(name)).collect()
}

/// The guide's pages and those at the root.
fn pages() -> Vec<Page> {
    let others = [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
    ];
    let mut pages = guide();
    pages.extend(others.into_iter().map(Page::read));
    pages
}

#[test]
fn command_lines_in_the_pages_are_understood() {
    let mut seen = 0;
    let mut wrong = Vec::new();
    for page in pages() {
        for block in page.blocks() {
            if block.mark == Mark::Refused {
                continue;
            }
            for (line, text) in block.command_lines() {
                for words in shell::blockferry_commands(&text) {
                    seen += 1;
                    let arguments = words.iter().map(Into::into);
                    if let Err(error) = understood(arguments) {
                        wrong.push(format!("{}:{line}: {words:?}\n{error}", page.name));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 100, "only {seen} command lines were found");
}

/// In running text a command line may lack its operands, but its command and its options are there.
#[test]
fn options_in_running_text_are_the_programs() {
    let mut wrong = Vec::new();
    for page in pages() {
        for (line, text) in page.prose() {
            let codes = text.split('`').skip(1).step_by(2);
            for code in codes.filter(|code| code.starts_with("blockferry ")) {
                for words in shell::blockferry_commands(&code.replace("\\|", "|")) {
                    let Err(error) = understood(words.iter().map(Into::into)) else {
                        continue;
                    };
                    let stands_for_all = words.get(1).is_some_and(|word| word == "COMMAND");
                    let is_unknown = [
                        "unexpected argument",
                        "unrecognized subcommand",
                        "--filter:",
                    ]
                    .iter()
                    .any(|what| error.contains(what));
                    if is_unknown && !stands_for_all {
                        wrong.push(format!("{}:{line}: {code}\n{error}", page.name));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn links_in_the_pages_lead_somewhere() {
    let wrong: Vec<_> = pages().iter().flat_map(links::broken).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_page_of_the_guide_is_in_its_summary() {
    let summary = Page::read("docs/SUMMARY.md");
    for page in guide() {
        let name = page
            .name
            .strip_prefix("docs/")
            .expect("a page of the guide");
        if name == "SUMMARY.md" {
            continue;
        }
        let is_listed = summary.text.contains(&format!("({name})"));
        assert!(is_listed, "{name} is not in docs/SUMMARY.md");
    }
}

/// One test for each page, so that pages are carried out side by side and a failure names its page.
macro_rules! examples {
    ($($test:ident: $page:literal,)*) => {
        $(
            #[test]
            fn $test() {
                session::carry_out(concat!("docs/", $page));
            }
        )*

        #[test]
        fn every_page_with_examples_is_carried_out() {
            let known = [$(concat!("docs/", $page)),*];
            for page in guide() {
                let has_examples = page.blocks().iter().any(|block| block.mark == Mark::Run);
                assert_eq!(has_examples, known.contains(&&*page.name), "{}", page.name);
            }
        }
    };
}

examples! {
    examples_on_backups: "backups.md",
    examples_on_converting: "converting.md",
    examples_on_copying: "copying.md",
    examples_on_filters: "filters.md",
    examples_on_relaying: "relaying.md",
    examples_on_serving: "serving.md",
    examples_on_troubleshooting: "troubleshooting.md",
    examples_on_untrusted_images: "untrusted.md",
    examples_on_verifying_and_resuming: "verifying.md",
    examples_on_what_it_is: "README.md",
    examples_on_writing_a_filter: "writing-a-filter.md",
    examples_on_writing_a_source: "writing-a-source.md",
    examples_on_embedding: "embedding.md",
}
