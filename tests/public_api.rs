//! What an embedder sees: nothing of the crates that minivmm is made from, so that their versions are its own affair, and
//! errors that a program can match. Read from rustdoc's JSON, which is of no stable toolchain: where it changes, this test
//! fails with the word that it does not know.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use minivmm::{
    BalloonError, ConsoleInput, Controls, Events, Exit, GuestConsole, Machine, MachineBuilder, MachineState,
    PauseError, StartError, Stats,
};
use serde_json::Value;

/// The crates of this repository that the library shows something of. It must give each such thing a name of its own.
const OURS: [&str; 5] = ["minivmm", "boot", "devices", "diskimage", "virtio"];
/// Whose types and traits may be in the API beside these: `Spec` reads and writes itself (serde). With the feature `cli`, which
/// this test leaves out, it is also the command line's arguments (clap).
const THEIRS: [&str; 5] = ["std", "core", "alloc", "serde_core", "serde"];
/// Errors with public fields, what happened being one of them.
const STRUCTS: [&str; 4] = ["Crash", "ExpectError", "ShareError", "UnknownFormat"];

/// Enums whose variants are all there will ever be.
const FIXED: &[&str] = &[];

/// rustdoc's JSON of one crate.
struct Docs(Value);

impl Docs {
    /// Those of [`OURS`], made in one run of cargo with what the lints' step has checked already. Only rustdoc is told that
    /// unstable options are in order: told to cargo, it would make every dependency anew.
    fn of_ours() -> [(&'static str, Self); OURS.len()] {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
        let out = Command::new(env!("CARGO"))
            .args(["doc", "--quiet", "--no-default-features", "--lib", "--no-deps", "--target-dir"])
            .arg(target)
            .args(OURS.map(|package| format!("--package={package}")))
            .env("RUSTDOC", root.join("tests/support/rustdoc-unstable.sh"))
            .env("RUSTDOCFLAGS", "-Zunstable-options --output-format=json --cap-lints=allow")
            .current_dir(root)
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        OURS.map(|package| {
            let text = std::fs::read(target.join("doc").join(format!("{package}.json"))).unwrap();
            (package, Docs(serde_json::from_slice(&text).unwrap()))
        })
    }

    /// An item, if it is this crate's and documented.
    fn item(&self, id: &Value) -> Option<&Value> {
        self.0["index"].get(id.to_string())
    }

    /// Where an item is defined, its crate first. One that is defined in a hidden module has only its own name and number,
    /// and one that nobody can name not even that.
    fn path(&self, id: &Value) -> String {
        if let Some(path) = self.0["paths"][id.to_string()]["path"].as_array() {
            return path.iter().map(|part| part.as_str().unwrap()).collect::<Vec<_>>().join("::");
        }
        let own = self.item(&self.0["root"]).unwrap()["name"].as_str().unwrap();
        let name = self.item(id).map_or("hidden", |item| item["name"].as_str().unwrap());
        format!("{own}::{id}::{name}")
    }

    /// The item that another crate calls so.
    fn find(&self, path: &str) -> Value {
        let paths = self.0["paths"].as_object().unwrap();
        let mut own = paths.iter().filter(|(_, summary)| summary["crate_id"] == 0);
        let found = own.find(|(id, _)| self.path(&id.parse().unwrap()) == path);
        found.unwrap_or_else(|| panic!("{path} is not documented")).0.parse().unwrap()
    }
}

/// All that can be named or is mentioned.
#[derive(Default)]
struct Api {
    /// Types and modules, with where they are defined; and whether they are an enum, an error, to be extended.
    named: BTreeMap<String, [bool; 3]>,
    /// What is mentioned, and where.
    mentioned: BTreeSet<(String, String)>,
    /// What documents refer to, and where.
    linked: BTreeSet<(String, String)>,
}

impl Api {
    fn of_library() -> &'static Self {
        static API: OnceLock<Api> = OnceLock::new();
        API.get_or_init(|| {
            let docs = Docs::of_ours();
            let mut api = Api::default();
            api.walk(&docs, &docs[0].1, &docs[0].1.0["root"], "minivmm");
            api
        })
    }

    fn walk(&mut self, all: &[(&str, Docs)], docs: &Docs, id: &Value, place: &str) {
        let item = docs.item(id).unwrap_or_else(|| panic!("{place} has no item {id}"));
        let place = format!("{place}::{}", item["name"].as_str().unwrap_or("impl"));
        let (kind, inner) = item["inner"].as_object().unwrap().iter().next().unwrap();
        for link in item["links"].as_object().unwrap().values() {
            if docs.item(link).is_none() {
                self.linked.insert((docs.path(link), place.clone()));
            }
        }
        match kind.as_str() {
            // Made by the compiler, or for every type there is.
            "impl" if inner["is_synthetic"] == true || !inner["blanket_impl"].is_null() => return,
            "impl" => {
                if inner["trait"]["path"] == "Error" {
                    let path = docs.path(&inner["for"]["resolved_path"]["id"]);
                    self.named.entry(path).or_default()[1] = true;
                }
            }
            "use" => return self.follow(all, docs, &inner["id"], &place),
            "struct" | "enum" | "trait" | "union" | "type_alias" => {
                let extended = item["attrs"].to_string().contains("non_exhaustive");
                let known = self.named.entry(docs.path(id)).or_default();
                (known[0], known[2]) = (kind == "enum", extended);
            }
            "module" | "function" | "struct_field" | "variant" | "constant" | "assoc_type"
            | "assoc_const" => {}
            other => panic!("{place} is a {other}, which this test does not know"),
        }
        self.inside(all, docs, inner, &place);
    }

    /// A re-export, perhaps of another crate of ours.
    fn follow(&mut self, all: &[(&str, Docs)], docs: &Docs, id: &Value, place: &str) {
        if docs.item(id).is_some() {
            return self.walk(all, docs, id, place);
        }
        let path = docs.path(id);
        let owner = path.split("::").next().unwrap();
        match all.iter().find(|(name, _)| *name == owner) {
            Some((_, docs)) => self.walk(all, docs, &docs.find(&path), place),
            None => drop(self.mentioned.insert((path, place.to_owned()))),
        }
    }

    /// All that an item has or mentions.
    fn inside(&mut self, all: &[(&str, Docs)], docs: &Docs, value: &Value, place: &str) {
        match value {
            Value::Object(fields) => {
                if let (Some(_), Some(id)) = (fields.get("path"), fields.get("id")) {
                    self.mentioned.insert((docs.path(id), place.to_owned()));
                }
                for (key, value) in fields {
                    match (key.as_str(), value) {
                        ("items" | "fields" | "variants" | "impls" | "tuple", Value::Array(children))
                            if children.iter().all(|child| child.is_number() || child.is_null()) =>
                        {
                            // What is not public has no number here.
                            children
                                .iter()
                                .filter(|id| id.is_number())
                                .for_each(|id| self.walk(all, docs, id, place));
                        }
                        _ => self.inside(all, docs, value, place),
                    }
                }
            }
            Value::Array(values) => values.iter().for_each(|value| self.inside(all, docs, value, place)),
            _ => {}
        }
    }

    /// What is mentioned and is neither of `theirs` nor can be named through the library, with who mentions it.
    fn strangers(&self, theirs: &[&str]) -> Vec<String> {
        let stranger = |path: &str| {
            let owner = path.split("::").next().unwrap();
            !theirs.contains(&owner) && !self.named.contains_key(path)
        };
        let strangers = self.mentioned.iter().filter(|(path, _)| stranger(path));
        strangers.map(|(path, place)| format!("{path} in {place}")).collect()
    }
}

#[test]
fn api_has_nothing_of_the_crates_that_it_is_made_from() {
    let api = Api::of_library();
    let strangers = api.strangers(&THEIRS);
    assert!(strangers.is_empty(), "{strangers:#?}");
    // It has looked: at fields, signatures and traits.
    assert!(api.named.len() > 40 && api.mentioned.len() > 300, "{} {}", api.named.len(), api.mentioned.len());
    for (crate_name, place) in [("serde_core", "Spec"), ("std", "KernelError")] {
        let without: Vec<_> = THEIRS.into_iter().filter(|name| *name != crate_name).collect();
        let found = api.strangers(&without);
        assert!(found.iter().any(|line| line.contains(place)), "{crate_name} in {place}: {found:#?}");
    }
}

#[test]
fn errors_can_be_matched_and_can_grow() {
    let errors: Vec<_> = Api::of_library().named.iter().filter(|(_, [_, error, _])| *error).collect();
    assert!(errors.len() >= 18, "{errors:#?}");
    for (path, [is_enum, _, non_exhaustive]) in errors {
        let name = path.rsplit("::").next().unwrap();
        assert!(*is_enum || STRUCTS.contains(&name), "{path} is no enum");
        assert!(*non_exhaustive, "{path} cannot have another variant without breaking programs");
    }
}

#[test]
fn choices_can_grow() {
    let named = &Api::of_library().named;
    let enums: Vec<_> = named.iter().filter(|(_, [is_enum, ..])| *is_enum).collect();
    assert!(enums.len() >= 25, "{enums:#?}");
    let fixed: Vec<_> =
        enums.iter().filter(|(_, [.., grows])| !*grows).map(|(path, _)| path.as_str()).collect();
    assert_eq!(fixed, FIXED.to_vec(), "another variant of these breaks programs");
    for holder in ["DiskHolder", "TapHolder"] {
        let found = named.iter().find(|(path, _)| path.ends_with(&format!("::{holder}")));
        assert!(found.is_some_and(|(_, [.., grows])| *grows), "{holder}");
    }
}

#[test]
fn documents_lead_nowhere_that_is_hidden() {
    let hidden = |path: &str| {
        ["cli", "control", "image"].iter().any(|name| path.starts_with(&format!("minivmm::{name}")))
    };
    let api = Api::of_library();
    let bad: Vec<_> =
        api.linked.iter().filter(|(path, _)| hidden(path) && !api.named.contains_key(path)).collect();
    assert!(bad.is_empty(), "{bad:#?}");
}

#[test]
fn program_in_the_documents_is_one_that_compiles() {
    let (page, library) = (include_str!("../docs/library.md"), include_str!("../src/lib.rs"));
    let program = page.split("```rust\n").nth(1).unwrap().split("```").next().unwrap();
    // The tests compile those of the documentation.
    assert!(program.lines().count() > 5);
    for line in program.lines().filter(|line| !line.is_empty()) {
        assert!(library.contains(&format!("\n//! {line}\n")), "{line}");
    }
}

#[test]
fn a_machine_has_all_that_a_program_needs_of_it() {
    fn between_threads<T: Send + Sync + 'static>() {}
    between_threads::<Machine>();
    between_threads::<Controls>();
    between_threads::<GuestConsole>();
    between_threads::<ConsoleInput>();
    between_threads::<Events>();
    between_threads::<Exit>();
    between_threads::<StartError>();
    let _: fn(MachineBuilder) -> Result<Machine, StartError> = MachineBuilder::start;
    let _: fn(&Machine) -> Arc<Exit> = Machine::wait;
    let _: fn(&Machine, Duration) -> Option<Arc<Exit>> = Machine::wait_for;
    let _: fn(&Machine, Duration) -> Result<(), PauseError> = Machine::pause;
    let _: [fn(&Machine); 4] = [Machine::resume, Machine::power_button, Machine::reset, Machine::kill];
    let _: fn(&Machine) -> Option<Arc<Exit>> = Machine::exit_status;
    let _: fn(&Machine, u64) -> Result<(), BalloonError> = Machine::set_balloon;
    let _: fn(&Machine) -> Option<Stats> = Machine::stats;
    let _: fn(&Machine) -> Events = Machine::events;
    let _: fn(&Machine) -> GuestConsole = Machine::console;
    let _: fn(&Machine) -> MachineState = Machine::state;
    // From other threads as well.
    let _: fn(&Controls, Duration) -> Result<(), PauseError> = Controls::pause;
    let _: [fn(&Controls); 4] = [Controls::resume, Controls::power_button, Controls::reset, Controls::kill];
    let _: fn(&Controls) -> Option<Arc<Exit>> = Controls::exit_status;
    let _: fn(&Controls, u64) -> Result<(), BalloonError> = Controls::set_balloon;
    let _: fn(&Controls) -> Option<Stats> = Controls::stats;
    let _: fn(&Controls) -> Events = Controls::events;
}
