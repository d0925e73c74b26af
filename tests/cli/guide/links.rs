//! Whether links in a page lead somewhere.

use std::path::Path;

use super::{page::Page, root};

/// Each link in `page` that leads nowhere, and why.
pub(super) fn broken(page: &Page) -> Vec<String> {
    let mut broken = Vec::new();
    for (number, line) in page.prose() {
        for target in targets(line) {
            if let Err(why) = follow(page, &target) {
                broken.push(format!("{}:{number}: {target}: {why}", page.name));
            }
        }
    }
    broken
}

/// What the links of a line name: `[text](target)` and `![text](target)`.
fn targets(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    // What stands between backticks is no link.
    let outside = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
    let mut rest = &*outside;
    while let Some(start) = rest.find("](") {
        rest = &rest[start + 2..];
        let Some(end) = rest.find(')') else { break };
        found.push(rest[..end].to_owned());
    }
    found
}

fn follow(page: &Page, target: &str) -> Result<(), String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return Ok(());
    }
    let (path, anchor) = match target.split_once('#') {
        Some((path, anchor)) => (path, Some(anchor)),
        None => (target, None),
    };
    // The documentation of the crates, which lies there in the book only.
    if path.starts_with("api/") {
        return match page.name.starts_with("docs/") {
            true => Ok(()),
            false => Err("it is in the book only".to_owned()),
        };
    }
    let directory = Path::new(&page.name).parent().expect("a directory");
    let place = match path {
        "" => page.name.clone().into(),
        path => directory.join(path),
    };
    if !root().join(&place).exists() {
        return Err("there is no such file".to_owned());
    }
    let Some(anchor) = anchor else { return Ok(()) };
    let name = normal(&place);
    if !name.ends_with(".md") {
        return Err("only pages have anchors".to_owned());
    }
    match anchors(&Page::read(&name))
        .iter()
        .any(|known| known == anchor)
    {
        true => Ok(()),
        false => Err("there is no such heading".to_owned()),
    }
}

/// The path without `..` in it.
fn normal(path: &Path) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.to_str().expect("UTF-8").split('/') {
        match part {
            ".." => drop(parts.pop()),
            "." | "" => {}
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// The anchors that headings have on code hosts and in the book: lower case, hyphens for spaces, nothing else
/// but letters, digits, hyphens and underscores.
fn anchors(page: &Page) -> Vec<String> {
    let mut anchors: Vec<String> = Vec::new();
    for (_, line) in page.prose() {
        let title = line.trim_start_matches('#');
        if title.len() == line.len() || !title.starts_with(' ') {
            continue;
        }
        let anchor: String = title
            .trim()
            .to_lowercase()
            .chars()
            .map(|c| if c == ' ' { '-' } else { c })
            .filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_'))
            .collect();
        let again = anchors.iter().filter(|known| **known == anchor).count();
        anchors.push(match again {
            0 => anchor,
            again => format!("{anchor}-{again}"),
        });
    }
    anchors
}

#[test]
fn broken_links_are_found() {
    assert_eq!(targets("[a](b) `[c](d)` ![e](f#g)"), ["b", "f#g"]);
    let page = Page {
        name: "docs/x.md".to_owned(),
        text: "[a](SUMMARY.md), [b](no.md), [c](SUMMARY.md#no), [d](../README.md)\n\
               ```\n[e](no.md)\n```\n[f](https://example.org/)\n"
            .to_owned(),
    };
    let broken = broken(&page);
    assert_eq!(broken.len(), 2, "{broken:?}");
    assert!(
        broken[0].contains("no.md") && broken[1].contains("#no"),
        "{broken:?}"
    );
}
