//! The documents match the program: tables, examples and links that could drift are compared with
//! it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use groupcast::{
    accept::decode::{RecipientRule, Rules, decode},
    api::explain,
    config::{Config, ConfigFile, EmptyRecipients},
    settle::result::JobResult,
    telemetry::metrics::ALL,
};
use serde_json::Value;

#[test]
fn every_key_in_the_documents_is_accepted_by_the_configuration() {
    for key in config_table().keys() {
        let variable = format!("GROUPCAST__{}", key.replace('.', "__").to_uppercase());
        // The value may be wrong, but the key must be known.
        let refusal = load(SMALLEST, &[(&variable, "?")]).err().unwrap_or_default();
        assert!(!refusal.contains("unknown"), "{key}: {refusal}");
    }
}

#[test]
fn every_key_that_the_configuration_accepts_is_in_the_documents() {
    let documented = config_table();
    let sections: BTreeSet<&str> = documented
        .keys()
        .filter_map(|key| key.rsplit_once('.'))
        .map(|(section, _)| section)
        .collect();
    for section in sections {
        let variable =
            format!("GROUPCAST__{}__ZZZZZZZZ", section.replace('.', "__").to_uppercase());
        let refusal = load(SMALLEST, &[(&variable, "?")]).expect_err("there is no such key");
        let allowed = refusal
            .rsplit_once("allowed are ")
            .unwrap_or_else(|| panic!("no allowed keys are named: {refusal}"))
            .1;
        for variable in allowed.split(", ") {
            let key = variable.trim_start_matches("GROUPCAST__").to_lowercase().replace("__", ".");
            let is_section =
                documented.keys().any(|documented| documented.starts_with(&format!("{key}.")));
            assert!(
                is_section || documented.contains_key(&key),
                "docs/configuration.md lacks {key}"
            );
        }
    }
}

#[test]
fn every_default_in_the_documents_is_the_one_in_effect() {
    let documented = config_table();
    let second_command =
        SMALLEST.replace("[apps.default]", "[apps.default]\ncommand = \"send_group_msg\"");
    let mut defaults = effective(&second_command);
    defaults.extend(effective(SMALLEST));
    for key in defaults.keys() {
        assert!(documented.contains_key(key), "docs/configuration.md lacks {key}");
    }
    for (key, default) in &documented {
        match default.as_str() {
            "required" => {
                assert!(SMALLEST.contains(key.rsplit('.').next().unwrap()), "{key} has a default")
            }
            "–" => {
                assert!(
                    !defaults.contains_key(key),
                    "docs/configuration.md lacks the default of {key}: {:?}",
                    defaults[key]
                )
            }
            default => {
                let literal = default.trim_matches('`');
                let (section, name) = key.rsplit_once('.').unwrap();
                let written = match section {
                    "apps.default" => SMALLEST
                        .replace("[apps.default]", &format!("[apps.default]\n{name} = {literal}")),
                    "apps.default.group_msg" => {
                        format!("{second_command}[{section}]\n{name} = {literal}\n")
                    }
                    _ => format!("{SMALLEST}[{section}]\n{name} = {literal}\n"),
                };
                assert!(defaults.contains_key(key), "{key} has no default");
                assert_eq!(effective(&written)[key], defaults[key], "the default of {key}");
            }
        }
    }
}

#[test]
fn the_command_table_has_the_commands_of_the_help_and_no_others() {
    let help = groupcast(&["--help"]);
    let listed = help.split_once("Commands:\n").expect("a list of commands").1;
    let offered: BTreeSet<&str> = listed
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .filter(|&command| command != "help")
        .collect();
    let page = read("docs/commands.md");
    let documented: BTreeSet<&str> = rows(section(&page, "## All commands"))
        .map(|cells| cells[0].trim_matches('`').strip_prefix("groupcast ").expect("a command"))
        .collect();
    assert_eq!(documented, offered);
}

#[test]
fn the_options_of_send_in_the_documents_are_those_of_its_help() {
    let help = groupcast(&["send", "--help"]);
    let offered: BTreeSet<&str> = options_in(&help)
        .filter(|option| !["--app", "--config", "--help", "--version"].contains(option))
        .collect();
    let page = read("docs/commands.md");
    let row = section(&page, "## All commands")
        .lines()
        .find(|line| line.starts_with("| `groupcast send`"))
        .expect("its row");
    assert_eq!(options_in(row).collect::<BTreeSet<_>>(), offered);
}

#[test]
fn the_job_in_the_readme_is_a_valid_job() {
    let job = json_example("## A job");
    let rules = Rules {
        max_job_bytes: 1 << 20,
        batch_size: 500,
        empty_recipients: EmptyRecipients::Reject,
        recipients: RecipientRule::Always,
    };
    decode(job.to_string().as_bytes(), &rules).unwrap();
    validate("job", &job);
}

#[test]
fn the_result_in_the_readme_has_every_field_of_a_result_and_no_others() {
    let example = json_example("## Its result");
    let result: JobResult = serde_json::from_value(example.clone()).unwrap();
    assert_eq!(serde_json::to_value(&result).unwrap(), example);
    validate("result", &example);
}

#[test]
fn the_runbook_has_every_code_with_what_follows_and_what_to_do() {
    const BEGIN: &str = "<!-- codes: begin -->\n";
    const END: &str = "<!-- codes: end -->\n";
    let path = root().join("docs/operations.md");
    let runbook = fs::read_to_string(&path).unwrap();
    let (before, rest) = runbook.split_once(BEGIN).expect("where the tables begin");
    let (tables, after) = rest.split_once(END).expect("where the tables end");
    let expected = format!("\n{}\n", explain::tables());
    #[expect(clippy::disallowed_methods, reason = "of the test, not of the program")]
    let update = std::env::var_os("UPDATE_DOCUMENTS").is_some();
    if update {
        return fs::write(&path, format!("{before}{BEGIN}{expected}{END}{after}")).unwrap();
    }
    let differs = tables.lines().zip(expected.lines()).find(|(written, made)| written != made);
    assert!(
        tables == expected,
        "docs/operations.md is not what the program says (first difference: {differs:?}); write it \
            anew with\n  UPDATE_DOCUMENTS=1 cargo test --test promises documents::the_runbook"
    );
}

#[test]
fn every_relative_link_of_the_documents_leads_somewhere() {
    for document in documents() {
        let text = without_code(&fs::read_to_string(&document).unwrap());
        let links =
            text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link);
        for link in links.filter(|link| !link.contains("://")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() {
                document.clone()
            } else {
                document.parent().unwrap().join(file)
            };
            assert!(target.exists(), "{}: {link} does not exist", document.display());
            assert!(
                anchor.is_empty() || has_heading(&target, anchor),
                "{}: {link} has no such heading",
                document.display()
            );
        }
    }
}

#[test]
fn every_document_that_a_comment_names_exists() {
    let files = ["src", "tests", "deploy", "benches", "fuzz/fuzz_targets", "fuzz/seeds"]
        .map(files_below)
        .concat();
    let mut named = 0;
    for file in files {
        // Pictures and archives are not text.
        let Ok(text) = fs::read_to_string(&file) else { continue };
        for rest in text.split("docs/").skip(1) {
            let of_a_path =
                |letter: char| letter.is_ascii_alphanumeric() || "-_./".contains(letter);
            let path =
                rest.split(|letter| !of_a_path(letter)).next().unwrap().trim_end_matches('.');
            if path.ends_with(".md") {
                named += 1;
                assert!(
                    root().join("docs").join(path).exists(),
                    "{} names docs/{path}, which does not exist",
                    file.display()
                );
            }
        }
    }
    assert!(named >= 5, "{named} documents are named");
}

#[test]
fn every_page_is_in_the_list_of_contents() {
    let contents = read("docs/README.md");
    for entry in fs::read_dir(root().join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") && name != "README.md" {
            assert!(
                contents.contains(&format!("]({name})")),
                "docs/README.md does not list {name}"
            );
        }
    }
}

#[test]
fn the_readme_has_at_most_150_lines() {
    assert!(read("README.md").lines().count() <= 150);
}

/// Tables, code and the targets of links cannot wrap.
#[test]
fn prose_has_at_most_100_columns() {
    for document in documents() {
        let mut is_code = false;
        for (index, line) in fs::read_to_string(&document).unwrap().lines().enumerate() {
            let is_fence = line.trim_start().starts_with("```");
            is_code ^= is_fence;
            if is_fence || is_code || line.trim_start().starts_with('|') {
                continue;
            }
            let columns = without_targets(line).chars().count();
            assert!(columns <= 100, "{}:{} has {columns} columns", document.display(), index + 1);
        }
    }
}

const SMALLEST: &str =
    "[apps.default]\nsdk_app_id = 1400000000\nsecret_key = \"key\"\nregion = \"singapore\"\n";

fn load(text: &str, variables: &[(&str, &str)]) -> Result<Config, String> {
    let file = ConfigFile { path: "groupcast.toml".into(), text: text.to_owned() };
    let environment = variables.iter().map(|(name, value)| (name.into(), value.into()));
    Config::read(Some(&file), environment).map_err(|error| error.to_string())
}

/// The effective configuration by full key.
fn effective(text: &str) -> BTreeMap<String, toml::Value> {
    let printed =
        load(text, &[]).unwrap_or_else(|refusal| panic!("{refusal}\n{text}")).to_masked_toml();
    let mut keys = BTreeMap::new();
    flatten("", toml::Value::Table(toml::from_str(&printed).unwrap()), &mut keys);
    keys
}

fn flatten(prefix: &str, value: toml::Value, keys: &mut BTreeMap<String, toml::Value>) {
    match value {
        toml::Value::Table(table) => {
            let dot = if prefix.is_empty() { "" } else { "." };
            table
                .into_iter()
                .for_each(|(key, value)| flatten(&format!("{prefix}{dot}{key}"), value, keys));
        }
        value => {
            keys.insert(prefix.to_owned(), value);
        }
    }
}

/// The documented keys, those of an app for the app `default`, each with its documented default.
fn config_table() -> BTreeMap<String, String> {
    let page = read("docs/configuration.md");
    let keys = rows(section(&page, "## Keys"));
    let table: BTreeMap<_, _> = keys
        .map(|cells| (cells[0].trim_matches('`').replace("<app>", "default"), cells[1].to_owned()))
        .collect();
    assert!(!table.is_empty());
    table
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// The documents at the root and everything under docs/.
fn documents() -> Vec<PathBuf> {
    let at_the_root = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
        .map(|name| root().join(name));
    let pages = files_below("docs")
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    at_the_root.into_iter().chain(pages).collect()
}

fn files_below(folder: &str) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![root().join(folder)]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files
}

/// The text under a heading, up to the next heading of its level.
fn section<'a>(document: &'a str, heading: &str) -> &'a str {
    let after = document
        .split_once(&format!("\n{heading}\n"))
        .unwrap_or_else(|| panic!("no heading {heading}"))
        .1;
    after.split_once("\n## ").map_or(after, |(section, _)| section)
}

/// The cells of a table's rows, without its head.
fn rows(section: &str) -> impl Iterator<Item = Vec<&str>> {
    let body = section
        .lines()
        .skip_while(|line| !line.starts_with("|---"))
        .skip(1)
        .take_while(|line| line.starts_with('|'));
    body.map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
}

/// The first JSON example under a heading.
fn json_example(heading: &str) -> Value {
    let readme = read("README.md");
    let after = section(&readme, heading).split_once("```json\n").expect("an example").1;
    serde_json::from_str(after.split_once("```").expect("its end").0).unwrap()
}

fn options_in(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|letter: char| !(letter.is_ascii_lowercase() || letter == '-'));
    words.filter(|word| word.starts_with("--") && word.len() > 2)
}

fn without_targets(line: &str) -> String {
    let mut parts = line.split("](");
    let first = parts.next().unwrap().to_owned();
    parts.fold(first, |kept, part| kept + "]" + part.split_once(')').map_or(part, |(_, rest)| rest))
}

fn without_code(document: &str) -> String {
    document.split("```").step_by(2).collect()
}

/// Whether a heading has this anchor in the rendered document.
fn has_heading(document: &Path, anchor: &str) -> bool {
    let slug = |heading: &str| {
        let kept = heading.to_lowercase().replace(' ', "-");
        kept.chars()
            .filter(|letter| letter.is_alphanumeric() || matches!(letter, '-' | '_'))
            .collect::<String>()
    };
    let text = without_code(&fs::read_to_string(document).unwrap());
    text.lines()
        .filter(|line| line.starts_with('#'))
        .any(|line| slug(line.trim_start_matches('#').trim()) == anchor)
}

fn groupcast(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_groupcast")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Validates an example with `groupcast schema`.
fn validate(definition: &str, example: &Value) {
    let mut schema: Value = serde_json::from_str(&groupcast(&["schema"])).unwrap();
    schema["$ref"] = format!("#/$defs/{definition}").into();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let faults: Vec<String> =
        validator.iter_errors(example).map(|fault| fault.to_string()).collect();
    assert!(faults.is_empty(), "{definition}: {faults:?}");
    // The schema must not accept everything.
    assert!(!validator.is_valid(&Value::Array(Vec::new())));
}

#[test]
fn the_metrics_in_the_documents_are_those_of_the_program() {
    let page = read("docs/metrics.md");
    let documented: Vec<Vec<String>> = rows(section(&page, "## Metrics"))
        .map(|cells| cells.iter().map(|cell| cell.replace('`', "")).collect())
        .collect();
    let offered = ALL.iter().map(|metric| {
        let labels =
            if metric.labels.is_empty() { "–".to_owned() } else { metric.labels.join(", ") };
        [metric.name, metric.kind.as_str(), &labels, metric.unit, metric.meaning]
            .map(str::to_owned)
            .to_vec()
    });
    assert_eq!(documented, offered.collect::<Vec<_>>());
}
