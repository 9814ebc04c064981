//! What ships beside the program says what the program does: the unit, the container and the dashboard of `deploy`, and the
//! flags and metrics of the documentation.
#![cfg(feature = "http")]

mod common;

use common::serving::{Serving, completion, get};
use common::{good, parity};
use std::{collections::BTreeSet, fs, path::Path, process::Command};

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// Words of a text that begin with `prefix`, as far as they are made of small letters, digits and what is in `also`.
fn words<'a>(text: &'a str, prefix: &str, also: &str) -> BTreeSet<&'a str> {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || also.contains(c);
    text.split(|c| !is_word(c)).filter(|word| word.starts_with(prefix) && word.len() > prefix.len()).collect()
}

/// The flags of `ernie serve`.
fn flags_of_serve() -> BTreeSet<String> {
    let at = tempfile::tempdir().expect("a folder");
    let help = good(at.path(), &["serve", "--help"]).out;
    words(&help, "--", "-").into_iter().map(str::to_owned).collect()
}

#[test]
fn unit_and_container_start_what_there_is() {
    let known = flags_of_serve();
    let unit = read("deploy/ernie.service");
    let start = unit.lines().find(|line| line.starts_with("ExecStart=")).expect("a start");
    let container = read("deploy/Containerfile");
    let arguments = container.lines().find(|line| line.starts_with("CMD ")).expect("arguments");
    for line in [start, arguments] {
        let flags = words(line, "--", "-");
        assert!(flags.contains("--listen") && flags.contains("--api-key-file"), "{line}");
        assert!(flags.iter().all(|flag| known.contains(*flag)), "{line}: {known:?}");
    }
    // More time to stop than the drain takes, and more descriptors than connections.
    let number = |key: &str| -> u32 {
        let line = unit.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_else(|| panic!("no {key}"));
        line.parse().expect("a number")
    };
    assert!(number("TimeoutStopSec=") > 30 + 5 && number("LimitNOFILE=") >= 1024 + 100);
}

#[test]
#[allow(clippy::print_stderr)]
fn systemd_takes_the_unit() {
    let at = tempfile::tempdir().expect("a folder");
    let unit = read("deploy/ernie.service").replace("/usr/local/bin/ernie", env!("CARGO_BIN_EXE_ernie"));
    let path = at.path().join("ernie.service");
    fs::write(&path, unit).expect("a unit");
    let Ok(output) = Command::new("systemd-analyze").arg("verify").arg(&path).output() else {
        return eprintln!("skipped: there is no `systemd-analyze` here");
    };
    let said = String::from_utf8_lossy(&output.stderr);
    // It looks at what else the machine starts, too.
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("ernie")).collect();
    assert!(ours.is_empty(), "{said}");
}

#[test]
fn flags_of_the_documentation_are_those_of_the_program() {
    let documentation = read("docs/serving.md");
    let tables: String = documentation.lines().filter(|line| line.starts_with("| `--")).collect();
    let told = words(&tables, "--", "-");
    let known = flags_of_serve();
    for flag in &told {
        assert!(known.contains(*flag), "docs/serving.md: there is no {flag}");
    }
    let common = ["--help", "--quiet", "--threads"];
    for flag in known.iter().filter(|flag| !common.contains(&flag.as_str())) {
        assert!(told.contains(flag.as_str()), "docs/serving.md does not explain {flag}");
    }
}

/// Names of what a server counts, as Prometheus stores them.
fn metrics_of_a_server() -> BTreeSet<String> {
    let at = tempfile::tempdir().expect("a folder");
    let model = parity("dense");
    let server = Serving::start(at.path(), &[model.to_str().expect("a path")]);
    server.wait_until_ready();
    // What has a label is there once it has happened.
    assert!(completion(&server.address, r#"{"prompt": [5, 6], "max_tokens": 1}"#).starts_with("HTTP/1.1 200"));
    assert!(get(&server.address, "/nothing").starts_with("HTTP/1.1 404"));
    let answer = get(&server.address, "/metrics");
    let kinds = answer.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let names = kinds.flat_map(|(name, kind)| match kind {
        "counter" => vec![format!("{name}_total")],
        "info" => vec![format!("{name}_info")],
        "histogram" => ["", "_bucket", "_count", "_sum"].map(|part| format!("{name}{part}")).to_vec(),
        _ => vec![name.to_owned()],
    });
    names.collect()
}

#[test]
fn dashboard_and_documentation_name_what_is_counted() {
    let counted = metrics_of_a_server();
    assert!(counted.len() > 30, "{counted:?}");
    let dashboard: serde_json::Value = serde_json::from_str(&read("deploy/grafana.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().expect("what a panel shows"));
    let shown: Vec<&str> = targets.map(|target| target["expr"].as_str().expect("an expression")).collect();
    assert!(shown.len() > panels.len() && shown.iter().all(|shown| shown.contains("ernie_")), "{shown:?}");
    for name in shown.iter().flat_map(|shown| words(shown, "ernie_", "_")) {
        assert!(counted.contains(name), "deploy/grafana.json: nothing counts {name}");
    }
    let documentation = read("docs/serving.md");
    let table: String = documentation.lines().filter(|line| line.starts_with("| `ernie_")).collect();
    let told = words(&table, "ernie_", "_");
    for name in &told {
        assert!(counted.contains(*name), "docs/serving.md: nothing counts {name}");
    }
    let parts = ["_bucket", "_count", "_sum"];
    for name in counted.iter().filter(|name| !parts.iter().any(|part| name.ends_with(part))) {
        assert!(told.contains(name.as_str()), "docs/serving.md does not explain {name}");
    }
}
