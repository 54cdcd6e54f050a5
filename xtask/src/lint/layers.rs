//! Who may import whom: rooms stand on floors, and no file is part of a circle.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens as _;
use syn::{Item, UseTree, Visibility};

use super::house::fail_with;
use crate::host;

/// Rooms of `dmtrace/src`, lowest floor first. A room imports from its own floor's files and from
/// lower floors only.
const FLOORS: [&[&str]; 9] = [
    &["finding", "host", "metrics", "output", "wording"],
    &["search", "stack", "witness"],
    &["recording"],
    &["probe"],
    &["history", "trace"],
    &["cleanup", "render"],
    &["case"],
    &["service"],
    &["cli"],
];

/// Rooms of `dmtrace-core/src`, lowest floor first.
const CORE_FLOORS: [&[&str]; 8] = [
    &["backend", "duration", "ids", "parallel", "wording"],
    &["event", "wall_clock"],
    &["facts"],
    &["ledger", "search"],
    &["witness"],
    &["verdict"],
    &["cleanup"],
    &[],
];

/// What the core does without: no clock, no input or output, no knowledge of how events come.
const IMPURE: [&str; 18] = [
    "std::env",
    "std::fs",
    "std::io",
    "std::net",
    "std::os",
    "std::process",
    "std::thread::sleep",
    "std::time::Instant",
    "std::time::SystemTime",
    "Instant",
    "SystemTime",
    "libc::clock_gettime",
    "libc::open",
    "libc::semctl",
    "aya",
    "dmtrace",
    "println",
    "eprintln",
];

/// No file of `dmtrace` or of the core imports from a room on a higher floor.
pub(super) fn check_floors() -> Result<()> {
    let mut found = Vec::new();
    for (folder, floors) in [
        ("dmtrace-core/src", &CORE_FLOORS[..]),
        ("dmtrace/src", &FLOORS[..]),
    ] {
        let tree = ModuleTree::read(&host::workspace_root().join(folder))?;
        found.extend(
            find_climbs(&tree, floors)
                .into_iter()
                .map(|it| format!("{folder}: {it}")),
        );
    }
    fail_with(&found)
}

/// No file imports itself by way of others.
pub(super) fn check_circles() -> Result<()> {
    let mut found = Vec::new();
    for folder in ["dmtrace-core/src", "dmtrace/src"] {
        let tree = ModuleTree::read(&host::workspace_root().join(folder))?;
        for circle in tree.find_circles() {
            found.push(format!("{folder}: {} import each other", circle.join(", ")));
        }
    }
    fail_with(&found)
}

/// The core has no clock and does no input or output.
pub(super) fn pure_core() -> Result<()> {
    let tree = ModuleTree::read(&host::workspace_root().join("dmtrace-core/src"))?;
    fail_with(&find_impurities(&tree))
}

fn find_climbs(tree: &ModuleTree, floors: &[&[&str]]) -> Vec<String> {
    let floor = |module: &str| {
        let room = module.split("::").next().unwrap_or(module);
        floors.iter().position(|rooms| rooms.contains(&room))
    };
    let mut found = Vec::new();
    for (module, imports) in &tree.imports {
        if module.is_empty() {
            continue;
        }
        let Some(own) = floor(module) else {
            found.push(format!(
                "{module}: stands on no floor; add its room to the lint"
            ));
            continue;
        };
        for import in imports.iter().filter(|import| !import.is_empty()) {
            if floor(import).is_some_and(|other| other > own) {
                found.push(format!(
                    "{module} imports {import}, which is on a higher floor"
                ));
            }
        }
    }
    found
}

fn find_impurities(tree: &ModuleTree) -> Vec<String> {
    let mut found = Vec::new();
    for (module, paths) in &tree.paths {
        for path in paths {
            let begins = |name: &&&str| {
                path == **name
                    || path
                        .strip_prefix(**name)
                        .is_some_and(|rest| rest.starts_with("::"))
            };
            if let Some(name) = IMPURE.iter().find(begins) {
                found.push(format!(
                    "{module}: uses {name}; the core is a function of its input"
                ));
            }
        }
    }
    found
}

/// The modules of a crate and what each imports of the others, without tests.
#[derive(Debug, Default)]
struct ModuleTree {
    /// By path below the crate, `""` for the root.
    imports: BTreeMap<String, BTreeSet<String>>,
    /// All paths that a module names, as they are written.
    paths: BTreeMap<String, BTreeSet<String>>,
    /// Names that a module passes on, with where they are from.
    passed_on: BTreeMap<(String, String), Vec<String>>,
    /// What each module names of the crate, as absolute paths.
    named: BTreeMap<String, Vec<Vec<String>>>,
}

impl ModuleTree {
    /// Reads the crate whose `lib.rs` is in `folder`.
    fn read(folder: &Path) -> Result<Self> {
        let mut tree = Self::default();
        tree.add_module(&folder.join("lib.rs"), &[], folder)?;
        tree.resolve_imports();
        Ok(tree)
    }

    /// A crate from texts, for tests.
    #[cfg(test)]
    fn from_texts(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
            fs::write(path, text).expect("a file");
        }
        Self::read(dir.path()).expect("parses")
    }

    fn add_module(&mut self, file: &Path, path: &[String], children: &Path) -> Result<()> {
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let syntax = syn::parse_file(&text).with_context(|| file.display().to_string())?;
        let name = path.join("::");
        self.imports.entry(name.clone()).or_default();
        self.add_items(&syntax.items, path, &name, 0);
        for item in &syntax.items {
            if let Item::Mod(module) = item
                && module.content.is_none()
                && !is_test(&module.attrs)
            {
                let child = module.ident.to_string();
                let folder = children.join(&child);
                let file = [children.join(format!("{child}.rs")), folder.join("mod.rs")]
                    .into_iter()
                    .find(|file| file.exists());
                let Some(file) = file else {
                    bail!("{}: no file of module {child}", file_name(children));
                };
                let path = [path, &[child]].concat();
                self.add_module(&file, &path, &folder)?;
            }
        }
        Ok(())
    }

    /// What items name; `depth` is that of inline modules.
    fn add_items(&mut self, items: &[Item], path: &[String], module: &str, depth: usize) {
        for item in items {
            match item {
                Item::Use(item) if !is_test(&item.attrs) => {
                    let mut found = Vec::new();
                    flatten_use(&item.tree, &mut Vec::new(), &mut found);
                    let public = !matches!(item.vis, Visibility::Inherited);
                    for (segments, alias) in found {
                        self.add_path(module, &segments);
                        let Some(absolute) = absolute_path(&segments, path, depth) else {
                            continue;
                        };
                        if public {
                            self.passed_on.insert((module.to_owned(), alias), absolute);
                        } else {
                            self.named
                                .entry(module.to_owned())
                                .or_default()
                                .push(absolute);
                        }
                    }
                }
                Item::Mod(item) => {
                    if let Some((_, items)) = &item.content
                        && !is_test(&item.attrs)
                    {
                        self.add_items(items, path, module, depth + 1);
                    }
                }
                item => {
                    if !is_test(item_attributes(item)) {
                        self.add_tokens(item.to_token_stream(), path, module, depth);
                    }
                }
            }
        }
    }

    /// Paths in any other code, macros included.
    fn add_tokens(&mut self, tokens: TokenStream, path: &[String], module: &str, depth: usize) {
        let mut current: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.path_ends(&mut current, path, module, depth);
                    }
                    current.push(ident.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                other => {
                    self.path_ends(&mut current, path, module, depth);
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.add_tokens(group.stream(), path, module, depth);
                    }
                }
            }
        }
        self.path_ends(&mut current, path, module, depth);
    }

    fn path_ends(
        &mut self,
        current: &mut Vec<String>,
        path: &[String],
        module: &str,
        depth: usize,
    ) {
        let segments = std::mem::take(current);
        if segments.is_empty() {
            return;
        }
        self.add_path(module, &segments);
        if segments.len() > 1
            && ["crate", "super", "self"].contains(&segments[0].as_str())
            && let Some(absolute) = absolute_path(&segments, path, depth)
        {
            self.named
                .entry(module.to_owned())
                .or_default()
                .push(absolute);
        }
    }

    fn add_path(&mut self, module: &str, segments: &[String]) {
        self.paths
            .entry(module.to_owned())
            .or_default()
            .insert(segments.join("::"));
    }

    fn resolve_imports(&mut self) {
        for (module, paths) in &self.named {
            for path in paths {
                if let Some(target) = self.target_module(path, 0)
                    && target != *module
                {
                    self.imports
                        .entry(module.clone())
                        .or_default()
                        .insert(target);
                }
            }
        }
    }

    /// The module that has what a path names; re-exports are followed.
    fn target_module(&self, path: &[String], depth: usize) -> Option<String> {
        const DEEPEST: usize = 16;
        if depth > DEEPEST {
            return None;
        }
        let mut length = path.len();
        while length > 0 && !self.imports.contains_key(&path[..length].join("::")) {
            length -= 1;
        }
        let module = path[..length].join("::");
        let Some(name) = path.get(length) else {
            return Some(module);
        };
        match self.passed_on.get(&(module.clone(), name.clone())) {
            Some(from) => self.target_module(&[from, &path[length + 1..]].concat(), depth + 1),
            None => (length > 0 || self.is_own(name)).then_some(module),
        }
    }

    /// Whether the root has this name: paths of other crates look the same.
    fn is_own(&self, name: &str) -> bool {
        self.passed_on
            .contains_key(&(String::new(), name.to_owned()))
    }

    /// Sets of files of which each reaches each.
    fn find_circles(&self) -> Vec<Vec<String>> {
        let reach: BTreeMap<&String, BTreeSet<&String>> = self
            .imports
            .keys()
            .map(|from| (from, self.reachable_from(from)))
            .collect();
        let mut found: Vec<Vec<String>> = Vec::new();
        for (from, reached) in &reach {
            if !reached.contains(*from) || found.iter().flatten().any(|it| it == *from) {
                continue;
            }
            let circle = reached.iter().filter(|to| reach[**to].contains(*from));
            found.push(circle.map(|it| (*it).clone()).collect());
        }
        found
    }

    fn reachable_from(&self, from: &String) -> BTreeSet<&String> {
        let mut found = BTreeSet::new();
        let mut open: Vec<&String> = self.imports[from].iter().collect();
        while let Some(next) = open.pop() {
            if found.insert(next)
                && let Some(more) = self.imports.get(next)
            {
                open.extend(more);
            }
        }
        found
    }
}

fn file_name(path: &Path) -> String {
    PathBuf::from(path.file_name().unwrap_or_default())
        .display()
        .to_string()
}

/// Whether an item is for tests only.
fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let tokens = attribute.meta.to_token_stream().to_string();
        tokens.replace(' ', "") == "cfg(test)"
    })
}

fn item_attributes(item: &Item) -> &[syn::Attribute] {
    match item {
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Const(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        _ => &[],
    }
}

/// All paths of a `use`, each with the name it gets.
fn flatten_use(tree: &UseTree, before: &mut Vec<String>, found: &mut Vec<(Vec<String>, String)>) {
    match tree {
        UseTree::Path(path) => {
            before.push(path.ident.to_string());
            flatten_use(&path.tree, before, found);
            before.pop();
        }
        UseTree::Group(group) => {
            for tree in &group.items {
                flatten_use(tree, before, found);
            }
        }
        UseTree::Name(name) if name.ident == "self" => {
            let alias = before.last().cloned().unwrap_or_default();
            found.push((before.clone(), alias));
        }
        UseTree::Name(name) => {
            let name = name.ident.to_string();
            found.push(([&before[..], std::slice::from_ref(&name)].concat(), name));
        }
        UseTree::Rename(rename) => {
            let name = rename.ident.to_string();
            found.push(([&before[..], &[name]].concat(), rename.rename.to_string()));
        }
        UseTree::Glob(_) => found.push((before.clone(), "*".to_owned())),
    }
}

/// A path from the root of the crate, as far as that can be told.
fn absolute_path(segments: &[String], path: &[String], depth: usize) -> Option<Vec<String>> {
    let (first, rest) = segments.split_first()?;
    let mut depth = depth;
    let mut base = path;
    match first.as_str() {
        "crate" => Some(rest.to_vec()),
        "self" => Some([base, rest].concat()),
        "super" => {
            let mut rest = segments;
            while let Some((first, more)) = rest.split_first()
                && first == "super"
            {
                if depth > 0 {
                    depth -= 1;
                } else {
                    base = base.split_last()?.1;
                }
                rest = more;
            }
            Some([base, rest].concat())
        }
        // A child of the module, or another crate: which of them is settled later.
        _ => Some([path, segments].concat()),
    }
}

#[cfg(test)]
mod tests;
