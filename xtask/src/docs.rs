//! `cargo xtask docs`: the guide as a book in `target/book`, with the documentation of the crates in it.
//!
//! The pages are written for a code host, too: what they link to outside of the guide is laid beside the book as text,
//! and the links are changed. In the end every link within the book is followed. Nothing in it is fetched from a network.

use std::{
    collections::BTreeSet,
    fs,
    path::{Component, Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{program, tools};

/// The version of mdBook that the pages are made for.
const MDBOOK: &str = "0.5.4";

/// The documentation of the crates, below the book.
const API: &str = "api";

/// What the guide links to in the tree, below the book.
const TREE: &str = "tree";

#[derive(Args)]
pub(crate) struct Options {
    /// Opens the book in a browser.
    #[arg(long)]
    open: bool,

    /// Leaves the documentation of the crates out, which takes longest.
    #[arg(long)]
    no_api: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let mdbook = tools::cargo_tool("mdbook", MDBOOK)?;
    let target = tools::target_directory()?;
    let book = target.join("book");
    if book.exists() {
        fs::remove_dir_all(&book).with_context(|| book.display().to_string())?;
    }
    let mut build = Command::new(&mdbook);
    build
        .args(["build", "--dest-dir"])
        .arg(&book)
        .arg(program::workspace().join("docs"));
    program::run(&mut build)?;
    // mdBook takes it for a picture of ours.
    for settings in ["book.toml", "book.css"] {
        let _ = fs::remove_file(book.join(settings));
    }
    if options.no_api {
        eprintln!("the documentation of the crates is left out: links to {API}/ lead nowhere");
    } else {
        // The binary has the library's name; its documentation would overwrite the library's.
        program::run(&mut program::cargo([
            "doc",
            "--workspace",
            "--no-deps",
            "--lib",
        ]))?;
        copy_tree(&target.join("doc"), &book.join(API))?;
    }

    let pages = pages(&book)?;
    let mut outside = BTreeSet::new();
    for page in &pages {
        let html = read(page)?;
        let changed = relinked(&html, &mut outside);
        if changed != html {
            fs::write(page, changed).with_context(|| page.display().to_string())?;
        }
    }
    for path in &outside {
        lay_beside(path, &book)?;
    }
    let broken = broken_links(&pages, &book, options.no_api)?;
    if !broken.is_empty() {
        bail!("links in the book lead nowhere:\n{}", broken.join("\n"));
    }
    let index = book.join("index.html");
    eprintln!("wrote {}", index.display());
    if options.open && !program::succeeds(Command::new("xdg-open").arg(&index)) {
        eprintln!("xdg-open is missing or knows no browser: open the file yourself");
    }
    Ok(())
}

/// The pages of the book, without the documentation of the crates.
fn pages(book: &Path) -> Result<Vec<PathBuf>> {
    let mut pages = Vec::new();
    for entry in fs::read_dir(book).with_context(|| book.display().to_string())? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "html")
        {
            pages.push(path);
        }
    }
    pages.sort();
    Ok(pages)
}

/// The page with links to files of the tree leading into the book; the files are noted in `outside`.
fn relinked(html: &str, outside: &mut BTreeSet<String>) -> String {
    let mut changed = String::with_capacity(html.len());
    let mut rest = html;
    for (before, attribute) in links(html) {
        let target = attribute.strip_prefix("../");
        let Some(target) = target else { continue };
        let (path, _) = target.split_once('#').unwrap_or((target, ""));
        // mdBook takes every page for one of its own.
        let page = path.strip_suffix(".html").map(|name| format!("{name}.md"));
        let page = page.filter(|page| program::workspace().join(page).is_file());
        let path = page.unwrap_or_else(|| path.to_owned());
        let at = before - (html.len() - rest.len());
        changed.push_str(&rest[..at]);
        changed.push_str(&place_of(&path));
        rest = &rest[at + attribute.len()..];
        outside.insert(path);
    }
    changed.push_str(rest);
    changed
}

/// Where a file of the tree lies in the book: text that a browser shows, whatever its name says; a picture as it is.
fn place_of(path: &str) -> String {
    match path.ends_with(".svg") || path.ends_with(".png") {
        true => format!("{TREE}/{path}"),
        false => format!("{TREE}/{path}.txt"),
    }
}

fn lay_beside(path: &str, book: &Path) -> Result<()> {
    let from = program::workspace().join(path);
    let to = book.join(place_of(path));
    let parent = to.parent().context("it lies in a directory")?;
    fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    if from.is_dir() {
        let mut names: Vec<String> = fs::read_dir(&from)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_>>()?;
        names.sort();
        return Ok(fs::write(to, names.join("\n") + "\n")?);
    }
    fs::copy(&from, &to).with_context(|| format!("the guide links to {}", from.display()))?;
    Ok(())
}

/// The values of all `href` and `src`, each with its place.
fn links(html: &str) -> impl Iterator<Item = (usize, &str)> {
    ["href=\"", "src=\""]
        .into_iter()
        .flat_map(|name| html.match_indices(name))
        .filter_map(|(start, name)| {
            let start = start + name.len();
            let length = html[start..].find('"')?;
            Some((start, &html[start..start + length]))
        })
        .collect::<BTreeSet<_>>()
        .into_iter()
}

/// The links within the book that lead to no file, and those that would need a network to be shown.
fn broken_links(pages: &[PathBuf], book: &Path, no_api: bool) -> Result<Vec<String>> {
    let mut broken = BTreeSet::new();
    for page in pages {
        let html = read(page)?;
        let name = page.strip_prefix(book).unwrap_or(page).display();
        for (place, target) in links(&html) {
            if target.contains("://") {
                // A link may lead there, a page is not made of it.
                let is_shown = html[..place].ends_with("src=\"");
                if is_shown || html[..place].ends_with("<link rel=\"stylesheet\" href=\"") {
                    broken.insert(format!("{name}: {target}: it needs a network"));
                }
                continue;
            }
            let path = target.split(['#', '?']).next().unwrap_or_default();
            let is_ours =
                !path.is_empty() && !path.starts_with(['/', '&']) && !target.starts_with("data:");
            if !is_ours || no_api && path.starts_with(API) {
                continue;
            }
            let leaves = Path::new(path).components().next() == Some(Component::ParentDir);
            if leaves || !book.join(path).exists() {
                broken.insert(format!("{name}: {target}"));
            }
        }
    }
    Ok(broken.into_iter().collect())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| to.display().to_string())?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target).with_context(|| target.display().to_string())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_into_the_tree_lead_into_the_book() {
        let html = "<a href=\"../README.html#x\">a</a> <img src=\"../bench/x.svg\"> \
                    <a href=\"copying.html\">b</a> <a href=\"../src/lib.rs\">c</a>";
        let mut outside = BTreeSet::new();
        let changed = relinked(html, &mut outside);
        assert_eq!(
            changed,
            "<a href=\"tree/README.md.txt\">a</a> <img src=\"tree/bench/x.svg\"> \
             <a href=\"copying.html\">b</a> <a href=\"tree/src/lib.rs.txt\">c</a>"
        );
        let outside: Vec<_> = outside.into_iter().collect();
        assert_eq!(outside, ["README.md", "bench/x.svg", "src/lib.rs"]);
    }

    #[test]
    fn links_that_lead_nowhere_or_need_a_network_are_found() {
        let book = tempfile::tempdir().unwrap();
        let page = book.path().join("index.html");
        let html = "<a href=\"index.html\">1</a><a href=\"no.html\">2</a><a href=\"#x\">3</a>\
                    <a href=\"https://example.org/\">4</a><script src=\"https://example.org/x.js\">\
                    <a href=\"api/x.html\">5</a>";
        fs::write(&page, html).unwrap();
        let pages = [page];
        let broken = broken_links(&pages, book.path(), true).unwrap();
        assert_eq!(broken.len(), 2, "{broken:?}");
        assert_eq!(broken_links(&pages, book.path(), false).unwrap().len(), 3);
    }
}
