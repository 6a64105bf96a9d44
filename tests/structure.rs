//! The folders of `src` use each other in one direction: a folder imports only what
//! docs/architecture.md lists below it. A type name is defined once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The folders with their layers. The lowest layer, which uses no other, has the largest number.
fn layers() -> BTreeMap<String, usize> {
    let document = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let list = document
        .split_once("```layers\n")
        .expect("a list of layers")
        .1
        .split_once("```")
        .unwrap()
        .0;
    let layer = |(height, line): (usize, &str)| {
        line.split(", ").map(|name| (name.to_owned(), height)).collect::<Vec<_>>()
    };
    list.lines().enumerate().flat_map(layer).collect()
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let is_source = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs");
    files
        .into_iter()
        .filter(is_source)
        .chain(folders.iter().flat_map(|folder| sources(folder)))
        .collect()
}

/// The folders that a file imports from the crate. Its tests may import more.
fn imports(source: &str) -> BTreeSet<String> {
    let code = source.split("#[cfg(test)]").next().unwrap_or_default();
    let code: String = code
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .fold(String::new(), |code, line| code + line + "\n");
    let mut imports = BTreeSet::new();
    for (at, path) in code.match_indices("crate::") {
        let rest = &code[at + path.len()..];
        if let Some(tree) = rest.strip_prefix('{') {
            imports.extend(heads(tree));
        } else {
            imports.insert(name(rest));
        }
    }
    imports
}

fn name(path: &str) -> String {
    path.chars().take_while(|letter| letter.is_ascii_lowercase() || *letter == '_').collect()
}

/// The first names of a nested import.
fn heads(tree: &str) -> Vec<String> {
    let (mut heads, mut depth, mut begins) = (Vec::new(), 0, true);
    for (at, letter) in tree.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => begins = true,
            _ if depth == 0 && begins && !letter.is_whitespace() => {
                heads.push(name(&tree[at..]));
                begins = false;
            }
            _ => {}
        }
    }
    heads
}

#[test]
fn a_folder_uses_only_folders_below_it() {
    let layers = layers();
    let source = root().join("src");
    let mut wrong = Vec::new();
    for file in sources(&source) {
        let path = file.strip_prefix(&source).unwrap();
        let folder = path
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_string_lossy()
            .trim_end_matches(".rs")
            .to_owned();
        if ["lib", "main"].contains(&folder.as_str())
            || path.to_string_lossy().ends_with("tests.rs")
        {
            continue;
        }
        let own = *layers
            .get(&folder)
            .unwrap_or_else(|| panic!("docs/architecture.md does not list {folder}"));
        for import in imports(&fs::read_to_string(&file).unwrap()) {
            let is_below = layers.get(&import).is_none_or(|height| *height > own);
            if import != folder && !is_below {
                wrong.push(format!("{} uses {import}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "against the order in docs/architecture.md:\n{}", wrong.join("\n"));
}

/// The types that a file defines outside its tests.
fn types(source: &str) -> impl Iterator<Item = &str> {
    let code = source.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    code.lines().filter_map(|line| {
        let line = line.trim_start();
        let line = match line.strip_prefix("pub") {
            Some(rest) => rest.trim_start_matches("(super)").trim_start_matches("(crate)"),
            None => line,
        };
        let defined = ["struct ", "enum ", "trait "]
            .iter()
            .find_map(|keyword| line.trim_start().strip_prefix(keyword))?;
        defined.split(|letter: char| !letter.is_alphanumeric()).next()
    })
}

#[test]
fn a_type_name_is_defined_once() {
    let mut defined: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in sources(&root().join("src")) {
        let path = file.display().to_string();
        if path.ends_with("tests.rs") || path.contains("/tests/") {
            continue;
        }
        for name in types(&fs::read_to_string(&file).unwrap()) {
            defined.entry(name.to_owned()).or_default().push(path.clone());
        }
    }
    // Each command has arguments of its own.
    defined.remove("Args").expect("the types are found");
    defined.retain(|_, files| files.len() > 1);
    assert!(defined.is_empty(), "{defined:#?}");
}

#[test]
fn types_are_found_in_every_form() {
    let source = "pub struct A {\n}\nenum B<T> {\npub(super) trait C: D {\n    struct E(F);\n\
        // struct G\n#[cfg(test)]\nmod tests {\nstruct H;";
    assert_eq!(types(source).collect::<Vec<_>>(), ["A", "B", "C", "E"]);
}

#[test]
fn imports_are_found_in_every_form() {
    let source = "//! crate::ignored\nuse crate::{\n    a::{b, c::d},\n    e,\n    f::G,\n};\nuse \
        crate::h::i;\nfn x() { crate::j::k() }\n#[cfg(test)]\nuse crate::tests;";
    assert_eq!(imports(source).into_iter().collect::<Vec<_>>(), ["a", "e", "f", "h", "j"]);
}
