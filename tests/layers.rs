//! The source keeps to its layers: nobody imports from above, and what is pure stays pure.

#![expect(clippy::unwrap_used, reason = "a test that cannot read the source has failed")]

use std::fs;
use std::path::{Path, PathBuf};

/// Every module with its layer. Those of one layer do not import each other, but where `SIDEWAYS`
/// says so.
const LAYERS: [(&str, u8); 24] = [
    ("units", 0),
    ("wire", 0),
    ("sse", 0),
    ("policy", 1),
    ("engine", 1),
    ("trust", 2),
    ("workers", 2),
    ("rare", 2),
    ("pool", 2),
    ("telemetry", 2),
    ("upstream", 2),
    ("tools", 2),
    ("audit", 2),
    ("store", 2),
    ("ledger", 2),
    ("team", 2),
    ("runs", 2),
    ("relay", 3),
    ("server", 4),
    ("admin", 4),
    ("config", 5),
    ("demo", 5),
    ("app", 5),
    ("cli", 5),
];

/// Imports within a layer that are meant: who, and whom.
const SIDEWAYS: [(&str, &str); 25] = [
    ("wire", "units"),
    ("wire", "sse"),
    ("telemetry", "trust"),
    ("upstream", "trust"),
    ("upstream", "pool"),
    ("tools", "pool"),
    ("tools", "workers"),
    ("engine", "policy"),
    ("upstream", "telemetry"),
    ("tools", "telemetry"),
    ("audit", "telemetry"),
    ("store", "telemetry"),
    ("team", "telemetry"),
    ("runs", "telemetry"),
    ("admin", "server"),
    ("config", "demo"),
    ("app", "config"),
    ("app", "demo"),
    ("cli", "app"),
    ("cli", "config"),
    ("cli", "demo"),
    ("demo", "config"),
    ("policy", "units"),
    ("team", "store"),
    ("ledger", "store"),
];

/// Layers up to this one are pure.
const PURE: u8 = 1;
/// What a pure module has no use for, outside its tests.
const IMPURE: [&str; 12] = [
    "tokio",
    "hyper",
    ".await",
    "::now()",
    "std::fs",
    "std::net",
    "std::thread",
    "std::env",
    "fastrand",
    "tracing::",
    "println!",
    "dashmap",
];

/// What a service may import from layer 1: the rules and plans it is configured by, nothing else.
const RULES: [(&str, &str); 9] = [
    ("upstream", "policy::settings"),
    ("upstream", "policy::plan"),
    ("upstream", "policy::parallel"),
    ("upstream", "policy::pattern"),
    ("team", "policy::settings"),
    ("team", "policy::pattern"),
    ("tools", "nothing"),
    ("store", "nothing"),
    ("runs", "nothing"),
];

fn layer(module: &str) -> Option<u8> {
    LAYERS.iter().find(|(name, _)| *name == module).map(|(_, layer)| *layer)
}

/// Every source file with the module it belongs to.
fn sources() -> Vec<(String, PathBuf)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&root, &mut found);
    let module = |path: &PathBuf| {
        let first = path.strip_prefix(&root).unwrap().iter().next().unwrap();
        first.to_str().unwrap().trim_end_matches(".rs").to_owned()
    };
    found.into_iter().map(|path| (module(&path), path)).filter(|(m, _)| m != "lib" && m != "main").collect()
}

/// The code of a file without its tests and comments, line by line.
fn code(path: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(path).unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    if name.ends_with("tests.rs") || name == "testing.rs" || path.iter().any(|part| part == "tests") {
        return Vec::new();
    }
    let lines =
        text.lines().take_while(|line| *line != "#[cfg(test)]" && !line.starts_with("#[cfg(test)]\n"));
    lines
        .enumerate()
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .map(|(i, line)| (i + 1, line.to_owned()))
        .collect()
}

/// The modules of this crate that a line names, with what follows.
fn named(line: &str) -> Vec<String> {
    let each = |(at, _): (usize, &str)| {
        let rest = &line[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => vec![rest.to_owned()],
            Some(list) => {
                let end = list.rfind('}').expect("an import list of the whole crate stays on one line");
                list[..end].split(',').map(|name| name.trim().to_owned()).collect()
            }
        }
    };
    line.match_indices("crate::").flat_map(each).collect()
}

fn head(path: &str) -> &str {
    path.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default()
}

#[test]
fn every_module_has_a_layer() {
    for (module, path) in sources() {
        assert!(layer(&module).is_some(), "{} has no layer", path.display());
    }
}

#[test]
fn nobody_imports_from_above() {
    let mut wrong = Vec::new();
    for (module, path) in sources() {
        let own = layer(&module).unwrap();
        for (number, line) in code(&path) {
            for named in named(&line) {
                let other = head(&named);
                let Some(theirs) = layer(other) else { continue };
                let sideways = SIDEWAYS.contains(&(module.as_str(), other));
                if other != module && (theirs > own || (theirs == own && !sideways)) {
                    wrong.push(format!("{}:{number}: {module} imports {other}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn services_know_of_policy_only_the_rules() {
    let mut wrong = Vec::new();
    for (module, path) in sources().into_iter().filter(|(m, _)| layer(m) == Some(2)) {
        for (number, line) in code(&path) {
            for named in named(&line).into_iter().filter(|n| layer(head(n)) == Some(1)) {
                let allowed = RULES.iter().any(|(who, what)| *who == module && named.starts_with(what));
                if !allowed {
                    wrong.push(format!("{}:{number}: {module} imports {named}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_pure_stays_pure() {
    let mut wrong = Vec::new();
    for (module, path) in sources().into_iter().filter(|(m, _)| layer(m).unwrap() <= PURE) {
        for (number, line) in code(&path) {
            for word in IMPURE.iter().filter(|word| line.contains(**word)) {
                wrong.push(format!("{}:{number}: {module} uses {word}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_words_this_test_looks_for_are_found_where_they_are() {
    assert_eq!(named("use crate::wire::raw; crate::tools::x"), ["wire::raw; crate::tools::x", "tools::x"]);
    assert_eq!(named("use crate::{policy, server::x};"), ["policy", "server::x"]);
    assert_eq!(head("wire::raw"), "wire");
    let relay = sources().into_iter().find(|(_, path)| path.ends_with("relay/drive.rs")).unwrap();
    assert!(code(&relay.1).iter().any(|(_, line)| line.contains("tokio")));
}
