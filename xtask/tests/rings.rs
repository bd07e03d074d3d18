//! Inside the emulator's crates imports go one way: whoever reads a module has to know those that it names, and is never led
//! back to it.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

type Module = Vec<String>;

/// The modules of a crate, without comments and tests.
struct Sources(BTreeMap<Module, String>);

/// What modules name, and by which name.
type Imports = BTreeMap<Module, BTreeMap<Module, String>>;

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The paths of a use tree, without what they are called here: `a::{b, c::d as e}` has `a::b` and `a::c::d`.
fn paths(tree: &str) -> Vec<(String, Option<String>)> {
    let tree = tree.trim();
    let Some(open) = tree.find('{') else {
        let (path, name) = tree.split_once(" as ").map_or((tree, None), |(path, name)| (path, Some(name)));
        return vec![(path.trim().to_owned(), name.map(|name| name.trim().to_owned()))];
    };
    let (before, inner) = (&tree[..open], &tree[open + 1..tree.rfind('}').unwrap()]);
    let (mut depth, mut from, mut found) = (0, 0, Vec::new());
    for (at, c) in inner.char_indices().chain([(inner.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let item = &inner[from..at];
                from = (at + 1).min(inner.len());
                if !item.trim().is_empty() {
                    found.extend(
                        paths(item).into_iter().map(|(path, name)| (format!("{before}{path}"), name)),
                    );
                }
            }
            _ => {}
        }
    }
    found
}

/// The use trees of a text, and the text without them and without visibilities.
fn uses(text: &str) -> (Vec<String>, String) {
    let (mut trees, mut rest) = (Vec::new(), String::new());
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let line = line.trim_start();
        let item = line.strip_prefix("pub").map_or(line, |rest| {
            let rest = rest.trim_start();
            rest.strip_prefix('(').and_then(|rest| rest.split_once(')')).map_or(rest, |(_, rest)| rest)
        });
        let Some(tree) = item.trim_start().strip_prefix("use ") else {
            rest += item;
            rest.push('\n');
            continue;
        };
        let mut tree = tree.to_owned();
        while !tree.contains(';') {
            tree.push(' ');
            tree += lines.next().unwrap().trim();
        }
        trees.push(tree.split(';').next().unwrap().to_owned());
    }
    (trees, rest)
}

/// The paths in a text: words with `::` between them.
fn named(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c| !is_word(c) && c != ':')
        .map(|path| path.trim_matches(':'))
        .filter(|path| path.contains("::"))
}

impl Sources {
    fn read(folder: &Path) -> Self {
        let mut modules = Self(BTreeMap::new());
        modules.add(folder, &mut Vec::new());
        modules
    }

    fn add(&mut self, folder: &Path, module: &mut Module) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            if name == "tests" {
                continue;
            }
            let of_folder = ["lib", "mod"].contains(&name.as_str());
            if !of_folder {
                module.push(name);
            }
            if path.is_dir() {
                self.add(&path, module);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
                let code: Vec<&str> = code.lines().map(|line| line.split("//").next().unwrap()).collect();
                self.0.insert(module.clone(), code.join("\n"));
            }
            if !of_folder {
                module.pop();
            }
        }
    }

    /// The path from the crate's root, of one that is written in `module`; `None` if it leads out of the crate.
    fn absolute(&self, module: &Module, path: &str) -> Option<Module> {
        let mut words = path.split("::").peekable();
        let mut from = module.clone();
        match *words.peek()? {
            "crate" => from.clear(),
            "super" | "self" => {}
            child => {
                from.push(child.to_owned());
                return self.0.contains_key(&from).then(|| {
                    from.extend(words.skip(1).map(str::to_owned));
                    from
                });
            }
        }
        for word in words {
            match word {
                "crate" | "self" => {}
                "super" => drop(from.pop()),
                word => from.push(word.to_owned()),
            }
        }
        Some(from)
    }

    /// Who names whom. What a module only passes on counts as named where it is defined.
    fn imports(&self) -> Imports {
        let mut known: BTreeMap<(Module, String), Module> = BTreeMap::new();
        let mut all: Vec<(Module, Module)> = Vec::new();
        for (module, text) in &self.0 {
            let (trees, rest) = uses(text);
            for (path, name) in trees.iter().flat_map(|tree| paths(tree)) {
                let Some(target) = self.absolute(module, &path) else { continue };
                if let Some(name) = name.or_else(|| target.last().cloned()) {
                    known.insert((module.clone(), name), target.clone());
                }
                all.push((module.clone(), target));
            }
            all.extend(named(&rest).filter_map(|path| Some((module.clone(), self.absolute(module, path)?))));
        }
        let mut imports = Imports::new();
        for (module, target) in all {
            let (home, name) = self.home(&known, target, 0);
            if home != module {
                imports.entry(module).or_default().insert(home, name);
            }
        }
        imports
    }

    /// The module that defines what a path names, and its name.
    fn home(
        &self,
        known: &BTreeMap<(Module, String), Module>,
        path: Module,
        passed: u32,
    ) -> (Module, String) {
        let depth = (0..=path.len()).rev().find(|&depth| self.0.contains_key(&path[..depth])).unwrap();
        let home = path[..depth].to_vec();
        let Some(name) = path.get(depth) else { return (home, String::from("self")) };
        match known.get(&(home.clone(), name.clone())) {
            Some(further) if passed < 16 && *further != path => self.home(known, further.clone(), passed + 1),
            _ => (home, name.clone()),
        }
    }
}

/// A ring of imports, if there is one.
fn ring(imports: &Imports) -> Option<Vec<String>> {
    fn follow(imports: &Imports, way: &mut Vec<Module>, over: &mut BTreeSet<Module>) -> Option<Vec<String>> {
        let module = way.last().unwrap().clone();
        for (target, name) in imports.get(&module).into_iter().flatten() {
            if let Some(from) = way.iter().position(|known| known == target) {
                let text = |module: &Module| module.join("::");
                let ring = way[from..].iter().map(text).chain([format!("{}::{name}", text(target))]);
                return Some(ring.collect());
            }
            if !over.contains(target) {
                way.push(target.clone());
                let found = follow(imports, way, over);
                way.pop();
                if found.is_some() {
                    return found;
                }
            }
        }
        over.insert(module);
        None
    }
    let mut over = BTreeSet::new();
    imports.keys().find_map(|module| follow(imports, &mut vec![module.clone()], &mut over))
}

#[test]
fn no_modules_of_the_emulators_rooms_import_each_other() {
    let emulator = Path::new(env!("CARGO_MANIFEST_DIR")).join("../emulator");
    for (room, least) in [
        ("ptx", 20),
        ("weak-memory", 20),
        ("timed", 20),
        ("node", 20),
        ("libcuda", 20),
        ("libnccl", 20),
        ("libibverbs", 20),
        ("libnvidia-ml", 1),
    ] {
        let imports = Sources::read(&emulator.join(room).join("src")).imports();
        assert!(imports.values().map(BTreeMap::len).sum::<usize>() >= least, "{room}: imports are not found");
        if let Some(ring) = ring(&imports) {
            panic!("{room}: {}", ring.join(" -> "));
        }
    }
}

#[test]
fn rings_are_found_behind_names_that_are_passed_on() {
    let sources = |texts: &[(&str, &str)]| {
        let module =
            |path: &str| path.split("::").filter(|word| !word.is_empty()).map(str::to_owned).collect();
        Sources(texts.iter().map(|(path, text)| (module(path), (*text).to_owned())).collect())
    };
    let passed_on = [
        ("", "mod a;\nmod b;\npub use a::{inner::Inner, A};"),
        ("a", "mod inner;\npub struct A(crate::b::B);"),
        ("a::inner", "pub struct Inner;"),
    ];
    let with = |b| sources(&[passed_on.as_slice(), &[("b", b)]].concat());
    let found = ring(&with("use super::{\n    A as Other,\n};\npub(in crate::a) struct B;").imports());
    assert_eq!(found.unwrap(), ["a", "b", "a::A"]);
    assert_eq!(ring(&with("use super::Inner;\npub(in crate::a) struct B;").imports()), None);
}
