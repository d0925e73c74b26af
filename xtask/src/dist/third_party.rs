//! Whose code is in the program: the libraries that are linked into it, their licences, and the texts of these.
//!
//! Most licences want their text to go where the program goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{NAME, files};

/// The beginnings of the names under which packages have their licences.
const LICENCE_FILES: [&str; 5] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE"];

/// One list of the libraries, and each text once.
pub(super) fn notices(metadata: &Value) -> Result<String> {
    let mut list = String::from(
        "The program is linked with these libraries, and with the standard library of Rust (MIT OR Apache-2.0). Behind each\n\
         stand its licence and the numbers of the texts below that came with it.\n\n",
    );
    let mut numbers: BTreeMap<String, usize> = BTreeMap::new();
    for package in linked(metadata)? {
        let name = package["name"].as_str().unwrap_or_default();
        let version = package["version"].as_str().unwrap_or_default();
        let licence = package["license"].as_str().unwrap_or("see the text");
        let mut shown = Vec::new();
        for text in texts(package)? {
            let next = numbers.len() + 1;
            shown.push(numbers.entry(text).or_insert(next).to_string());
        }
        // Writing to a String cannot fail.
        let _ = match &shown[..] {
            [] => writeln!(list, "{name} {version}: {licence}, without a text"),
            shown => writeln!(list, "{name} {version}: {licence} [{}]", shown.join(", ")),
        };
    }
    let mut texts: Vec<_> = numbers.into_iter().collect();
    texts.sort_by_key(|(_, number)| *number);
    for (text, number) in texts {
        let _ = write!(list, "\n{}\n[{number}]\n\n{text}", "-".repeat(80));
    }
    Ok(list)
}

/// The packages from elsewhere that are linked into the program, by name.
///
/// What only runs while it is built (build scripts, macros) is left out.
fn linked(metadata: &Value) -> Result<Vec<&Value>> {
    let packages: BTreeMap<&str, &Value> = array(metadata, "packages")?
        .iter()
        .filter_map(|package| Some((package["id"].as_str()?, package)))
        .collect();
    let resolve = metadata.get("resolve").context("no `resolve`")?;
    let nodes: BTreeMap<&str, &Value> = array(resolve, "nodes")?
        .iter()
        .filter_map(|node| Some((node["id"].as_str()?, node)))
        .collect();
    let root = packages
        .iter()
        .find(|(_, package)| package["name"] == NAME)
        .map(|(id, _)| *id)
        .context("the program is not in cargo's metadata")?;

    let (mut seen, mut pending) = (BTreeSet::from([root]), vec![root]);
    while let Some(id) = pending.pop() {
        let node = nodes
            .get(id)
            .context("a package without its dependencies")?;
        for dependency in array(node, "deps")? {
            let kinds = array(dependency, "dep_kinds")?;
            let id = dependency["pkg"]
                .as_str()
                .context("a dependency has an id")?;
            let package = packages.get(id).context("a dependency is a package")?;
            let is_linked = kinds.iter().any(|kind| kind["kind"].is_null());
            if is_linked && !is_macro(package) && seen.insert(id) {
                pending.push(id);
            }
        }
    }
    let mut linked: Vec<&Value> = seen
        .into_iter()
        .filter_map(|id| packages.get(id).copied())
        // Ours have no source that they were fetched from.
        .filter(|package| !package["source"].is_null())
        .collect();
    linked.sort_by_key(|package| (package["name"].as_str(), package["version"].as_str()));
    Ok(linked)
}

fn is_macro(package: &Value) -> bool {
    let targets = package["targets"].as_array().into_iter().flatten();
    targets
        .flat_map(|target| target["kind"].as_array().into_iter().flatten())
        .any(|kind| kind == "proc-macro")
}

/// What a package says of its licence, in the files at its top.
fn texts(package: &Value) -> Result<Vec<String>> {
    let manifest = package["manifest_path"].as_str().map(Path::new);
    let directory = manifest
        .and_then(Path::parent)
        .context("a package has a directory")?;
    files::list(directory)?
        .into_iter()
        .filter(|path| path.is_file() && is_licence(path))
        .map(|path| read(&path))
        .collect()
}

fn is_licence(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.to_uppercase();
    LICENCE_FILES.iter().any(|start| name.starts_with(start))
}

/// The text, without what tells two copies of the same licence apart and means nothing.
fn read(path: &PathBuf) -> Result<String> {
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    Ok(format!("{}\n", lines.join("\n").trim_matches('\n')))
}

fn array<'a>(value: &'a Value, key: &str) -> Result<&'a [Value]> {
    let array = value.get(key).and_then(Value::as_array);
    Ok(array.with_context(|| format!("no list `{key}` in cargo metadata"))?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The program uses `used`, which uses `below`; it is built by `builder` and tested by `tester`, and `derive` is
    /// a macro.
    fn metadata(directory: &Path) -> Value {
        let package = |name: &str, kind: &str| {
            let place = directory.join(name);
            files::write(&place.join("LICENSE-MIT"), b"Do what you like.  \r\n").unwrap();
            files::write(&place.join("src/lib.rs"), b"").unwrap();
            let source = if name == NAME {
                Value::Null
            } else {
                json!("registry")
            };
            json!({
                "id": name, "name": name, "version": "1.0.0", "license": "MIT", "source": source,
                "manifest_path": place.join("Cargo.toml"), "targets": [{"kind": [kind]}],
            })
        };
        let uses = |name: &str, kind: Value| json!({"pkg": name, "dep_kinds": [{"kind": kind}]});
        let node = |name: &str, deps: Value| json!({"id": name, "deps": deps});
        json!({
            "packages": [
                package(NAME, "bin"), package("used", "lib"), package("below", "lib"),
                package("builder", "lib"), package("tester", "lib"), package("derive", "proc-macro"),
            ],
            "resolve": {"nodes": [
                node(NAME, json!([
                    uses("used", Value::Null), uses("builder", json!("build")),
                    uses("tester", json!("dev")), uses("derive", Value::Null),
                ])),
                node("used", json!([uses("below", Value::Null)])),
                node("below", json!([])),
            ]},
        })
    }

    #[test]
    fn the_libraries_are_those_that_end_in_the_program() {
        let directory = tempfile::tempdir().unwrap();
        let metadata = metadata(directory.path());
        let linked = linked(&metadata).unwrap();
        let names: Vec<_> = linked.iter().map(|package| &package["name"]).collect();
        assert_eq!(names, ["below", "used"]);
    }

    #[test]
    fn a_text_that_several_share_is_there_once() {
        let directory = tempfile::tempdir().unwrap();
        let text = notices(&metadata(directory.path())).unwrap();
        assert!(
            text.contains("below 1.0.0: MIT [1]\nused 1.0.0: MIT [1]\n"),
            "{text}"
        );
        assert_eq!(text.matches("Do what you like.\n").count(), 1);
    }
}
