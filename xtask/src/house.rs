//! The rules of the house that no compiler checks.
//!
//! - An arrow goes only down: [`MAY_USE`] says which crate of the workspace may use which.
//! - `proto` is on paper: nothing that does I/O stands anywhere in its dependency tree.
//! - Every crate but `sys` forbids unsafe code, in its first lines.
//! - The drawing of the house, [`DRAWING`], shows the workspace as it is.
//!
//! Dependencies of tests are free: a test may join what the code itself must keep apart.

mod drawing;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::program;

/// The drawing of who uses whom, in the workspace. `cargo xtask house` draws it.
const DRAWING: &str = "docs/house.svg";

/// The one crate that may have `unsafe` in it.
const UNSAFE_CRATE: &str = "blockferry-sys";

/// Each package of the workspace, and the packages of the workspace that it may use. From floor 0 up.
const MAY_USE: &[(&str, &[&str])] = &[
    ("blockferry-proto", &[]),
    (UNSAFE_CRATE, &[]),
    ("blockferry-tls", &[]),
    ("blockferry-block", &["blockferry-sys"]),
    (
        "blockferry-client",
        &[
            "blockferry-proto",
            "blockferry-block",
            "blockferry-sys",
            "blockferry-tls",
        ],
    ),
    (
        "blockferry-server",
        &[
            "blockferry-proto",
            "blockferry-block",
            "blockferry-sys",
            "blockferry-tls",
        ],
    ),
    ("blockferry-packing", &["blockferry-block"]),
    (
        "blockferry-filter",
        &["blockferry-block", "blockferry-packing", "blockferry-sys"],
    ),
    (
        "blockferry-format",
        &["blockferry-block", "blockferry-packing", "blockferry-sys"],
    ),
    ("blockferry-script", &["blockferry-block", "blockferry-sys"]),
    ("blockferry-copy", &["blockferry-block", "blockferry-sys"]),
    ("blockferry-relay", &["blockferry-sys"]),
    (
        "blockferry",
        &[
            "blockferry-proto",
            "blockferry-sys",
            "blockferry-tls",
            "blockferry-block",
            "blockferry-client",
            "blockferry-server",
            "blockferry-filter",
            "blockferry-format",
            "blockferry-script",
            "blockferry-copy",
            "blockferry-relay",
        ],
    ),
    ("blockferry-python", &["blockferry"]),
    ("blockferry-bench", &["blockferry-block", "blockferry-sys"]),
    ("xtask", &[]),
];

/// Packages whose dependency tree must be free of others, however far down.
const NEVER_BELOW: &[(&str, &[&str])] = &[
    (
        "blockferry-proto",
        &["tokio", "mio", "socket2", "rustix", "libc", "nix"],
    ),
    (
        "blockferry-copy",
        &["blockferry-proto", "blockferry-client", "blockferry-server"],
    ),
];

/// Checks all rules and reports every violation, not only the first.
pub(crate) fn check() -> Result<()> {
    let metadata = program::output(&mut program::cargo(["metadata", "--format-version=1"]))?;
    let workspace = Workspace::parse(&metadata)?;
    let mut violations = workspace.arrows_that_do_not_go_down(MAY_USE);
    violations.extend(workspace.forbidden_below(NEVER_BELOW));
    violations.extend(workspace.roots_without_forbid(UNSAFE_CRATE)?);
    if fs::read_to_string(program::workspace().join(DRAWING)).ok() != Some(workspace.drawing()) {
        violations.push(format!("{DRAWING} shows another house: cargo xtask house"));
    }
    if !violations.is_empty() {
        bail!("{}", violations.join("\nxtask: "));
    }
    Ok(())
}

/// Draws the house.
pub(crate) fn draw() -> Result<()> {
    let metadata = program::output(&mut program::cargo(["metadata", "--format-version=1"]))?;
    let drawing = Workspace::parse(&metadata)?.drawing();
    fs::write(program::workspace().join(DRAWING), drawing).context(DRAWING)?;
    eprintln!("wrote {DRAWING}");
    Ok(())
}

/// What `cargo metadata` says of the workspace, as far as the rules need it.
struct Workspace {
    /// The packages of the workspace by name.
    members: BTreeMap<String, Member>,
    /// Every package's dependencies, by name; those of tests are left out.
    dependencies: BTreeMap<String, BTreeSet<String>>,
}

struct Member {
    /// The files a compilation starts from: `lib.rs`, `main.rs`.
    roots: Vec<String>,
}

impl Workspace {
    fn parse(metadata: &[u8]) -> Result<Self> {
        let metadata: Value = serde_json::from_slice(metadata).context("cargo metadata")?;
        let in_workspace: BTreeSet<&str> = array(&metadata, "workspace_members")?
            .iter()
            .filter_map(Value::as_str)
            .collect();

        let mut names = BTreeMap::new();
        let mut members = BTreeMap::new();
        for package in array(&metadata, "packages")? {
            let (id, name) = (text(package, "id")?, text(package, "name")?);
            names.insert(id, name);
            if in_workspace.contains(id) {
                let roots = compilation_roots(package)?;
                members.insert(name.to_owned(), Member { roots });
            }
        }

        let mut dependencies: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let resolve = metadata.get("resolve").context("no `resolve`")?;
        for node in array(resolve, "nodes")? {
            let user = names[text(node, "id")?];
            // Several versions of one package count as one: the rules are about names.
            let used = dependencies.entry(user.to_owned()).or_default();
            for dependency in array(node, "deps")? {
                if is_of_the_code_itself(dependency)? {
                    used.insert(names[text(dependency, "pkg")?].to_owned());
                }
            }
        }
        Ok(Self {
            members,
            dependencies,
        })
    }

    fn drawing(&self) -> String {
        drawing::svg(&self.dependencies)
    }

    fn arrows_that_do_not_go_down(&self, may_use: &[(&str, &[&str])]) -> Vec<String> {
        let mut violations = Vec::new();
        for name in self.members.keys() {
            let Some((_, allowed)) = may_use.iter().find(|(package, _)| package == name) else {
                violations.push(format!("{name} has no floor: add it to MAY_USE"));
                continue;
            };
            let used = self.dependencies.get(name).into_iter().flatten();
            for used in used.filter(|used| self.members.contains_key(*used)) {
                if !allowed.contains(&used.as_str()) {
                    violations.push(format!("{name} must not depend on {used}"));
                }
            }
        }
        violations
    }

    fn forbidden_below(&self, never_below: &[(&str, &[&str])]) -> Vec<String> {
        let mut violations = Vec::new();
        for (package, forbidden) in never_below {
            for (below, path) in self.everything_below(package) {
                if forbidden.contains(&below) {
                    violations.push(format!("{below} stands below {package}: {path}"));
                }
            }
        }
        violations
    }

    /// Every package below `package`, with one path that leads there.
    fn everything_below<'a>(&'a self, package: &'a str) -> BTreeMap<&'a str, String> {
        let mut found = BTreeMap::new();
        let mut pending = vec![(package, package.to_owned())];
        while let Some((name, path)) = pending.pop() {
            for used in self.dependencies.get(name).into_iter().flatten() {
                if !found.contains_key(used.as_str()) {
                    let path = format!("{path} -> {used}");
                    found.insert(used.as_str(), path.clone());
                    pending.push((used, path));
                }
            }
        }
        found
    }

    fn roots_without_forbid(&self, but: &str) -> Result<Vec<String>> {
        let mut violations = Vec::new();
        let others = self.members.iter().filter(|(name, _)| *name != but);
        for root in others.flat_map(|(_, member)| &member.roots) {
            let source = fs::read_to_string(root).with_context(|| root.clone())?;
            if !forbids_unsafe(&source) {
                let path = Path::new(root);
                let shown = path.strip_prefix(program::workspace()).unwrap_or(path);
                let shown = shown.display();
                violations.push(format!("{shown} lacks #![forbid(unsafe_code)]"));
            }
        }
        Ok(violations)
    }
}

/// The attribute on a line of its own; in a comment or behind a `cfg_attr` it does not count.
fn forbids_unsafe(source: &str) -> bool {
    source
        .lines()
        .any(|line| line.trim() == "#![forbid(unsafe_code)]")
}

/// Whether a dependency is a normal one or the build script's, not only the tests'.
fn is_of_the_code_itself(dependency: &Value) -> Result<bool> {
    let kinds = array(dependency, "dep_kinds")?;
    Ok(kinds.iter().any(|kind| kind["kind"] != "dev"))
}

fn compilation_roots(package: &Value) -> Result<Vec<String>> {
    let mut roots = Vec::new();
    for target in array(package, "targets")? {
        let kinds = array(target, "kind")?;
        let is_root = |kind: &Value| kind == "lib" || kind == "cdylib" || kind == "bin";
        if kinds.iter().any(is_root) {
            roots.push(text(target, "src_path")?.to_owned());
        }
    }
    Ok(roots)
}

fn array<'a>(value: &'a Value, key: &str) -> Result<&'a [Value]> {
    let array = value.get(key).and_then(Value::as_array);
    Ok(array.with_context(|| format!("no list `{key}` in cargo metadata"))?)
}

fn text<'a>(value: &'a Value, key: &str) -> Result<&'a str> {
    let text = value.get(key).and_then(Value::as_str);
    text.with_context(|| format!("no text `{key}` in cargo metadata"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A workspace of `low` and `high`; `high` uses `low`, and `low` uses `io` by way of `helper`.
    fn workspace(high_to_low: &str) -> Workspace {
        let package = |name: &str| {
            let target = json!({"kind": ["lib"], "src_path": format!("/{name}/src/lib.rs")});
            json!({"id": format!("{name} 1.0"), "name": name, "targets": [target]})
        };
        let uses = |name: &str, kind: Value| json!({"pkg": format!("{name} 1.0"), "dep_kinds": [{"kind": kind}]});
        let node = |name: &str, deps: Value| json!({"id": format!("{name} 1.0"), "deps": deps});
        let kind = match high_to_low {
            "normal" => Value::Null,
            other => json!(other),
        };
        let metadata = json!({
            "workspace_members": ["low 1.0", "high 1.0"],
            "packages": [package("low"), package("high"), package("helper"), package("io")],
            "resolve": {"nodes": [
                node("low", json!([uses("helper", Value::Null)])),
                node("high", json!([uses("low", kind)])),
                node("helper", json!([uses("io", Value::Null)])),
                node("io", json!([])),
            ]},
        });
        Workspace::parse(metadata.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn an_arrow_that_the_table_allows_is_no_violation() {
        let table: &[(&str, &[&str])] = &[("low", &[]), ("high", &["low"])];
        assert!(
            workspace("normal")
                .arrows_that_do_not_go_down(table)
                .is_empty()
        );
    }

    #[test]
    fn an_arrow_that_the_table_lacks_is_named() {
        let table: &[(&str, &[&str])] = &[("low", &["high"]), ("high", &[])];
        let expected = ["high must not depend on low"];
        assert_eq!(
            workspace("normal").arrows_that_do_not_go_down(table),
            expected
        );
        assert_eq!(
            workspace("build").arrows_that_do_not_go_down(table),
            expected
        );
    }

    #[test]
    fn what_only_tests_use_is_free() {
        let table: &[(&str, &[&str])] = &[("low", &[]), ("high", &[])];
        assert!(
            workspace("dev")
                .arrows_that_do_not_go_down(table)
                .is_empty()
        );
    }

    #[test]
    fn a_package_without_a_floor_is_a_violation() {
        let table: &[(&str, &[&str])] = &[("low", &[])];
        let violations = workspace("dev").arrows_that_do_not_go_down(table);
        assert_eq!(violations, ["high has no floor: add it to MAY_USE"]);
    }

    #[test]
    fn a_forbidden_package_is_found_far_below_with_the_path_to_it() {
        let table: &[(&str, &[&str])] = &[("high", &["io"])];
        let violations = workspace("normal").forbidden_below(table);
        assert_eq!(
            violations,
            ["io stands below high: high -> low -> helper -> io"]
        );
        assert!(workspace("dev").forbidden_below(table).is_empty());
    }

    #[test]
    fn only_the_attribute_itself_forbids_unsafe() {
        assert!(forbids_unsafe(
            "//! Docs.\n\n#![forbid(unsafe_code)]\nmod x;\n"
        ));
        assert!(!forbids_unsafe("// #![forbid(unsafe_code)]\n"));
        assert!(!forbids_unsafe("#![deny(unsafe_code)]\n"));
    }

    #[test]
    fn every_package_named_in_the_table_stands_above_what_it_uses() {
        for (index, (name, uses)) in MAY_USE.iter().enumerate() {
            for used in *uses {
                let below = MAY_USE[..index].iter().any(|(package, _)| package == used);
                assert!(below, "{name} uses {used}, which comes later in the table");
            }
        }
    }
}
