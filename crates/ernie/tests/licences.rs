//! Every crate that the program is built from has a licence on a short list.

use std::process::Command;

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Permissive licences whose notices suffice. An expression is accepted if one of its alternatives is made of these.
const ACCEPTED: [&str; 14] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Crates under a licence that is accepted for them alone, with the reason.
///
/// `option-ext` is a trait below `dirs`, which the hub client uses; MPL-2.0 asks for the source of changed files, and it is unchanged.
const EXCEPTIONS: [(&str, &str); 1] = [("option-ext", "MPL-2.0")];

/// Whether an SPDX expression (or the older form with slashes) allows what is on the list.
fn accepted(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ");
    let plain = expression.replace(['(', ')'], " ");
    // `(A OR B) AND C`: every part joined by AND must offer an accepted alternative.
    plain.split(" AND ").all(|part| part.split(" OR ").any(|licence| ACCEPTED.contains(&licence.trim())))
}

#[test]
fn every_dependency_has_a_licence_on_the_list() -> Outcome {
    let host = Command::new("rustc").arg("-vV").output()?;
    let host = String::from_utf8(host.stdout)?;
    let host = host.lines().find_map(|line| line.strip_prefix("host: ")).ok_or("rustc names no host")?;
    let mut metadata = Command::new(env!("CARGO"));
    metadata.args(["metadata", "--format-version", "1", "--offline", "--locked", "--filter-platform", host]);
    let output = metadata.current_dir(env!("CARGO_MANIFEST_DIR")).output()?;
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().ok_or("cargo metadata lists packages")?;
    let licence = |package: &serde_json::Value| package["license"].as_str().unwrap_or("none named").to_owned();
    let refused: Vec<String> = packages
        .iter()
        .filter(|package| !accepted(&licence(package)))
        .filter(|package| !EXCEPTIONS.contains(&(package["name"].as_str().unwrap_or_default(), &licence(package))))
        .map(|package| format!("{} {}: {}", package["name"], package["version"], licence(package)))
        .collect();
    assert!(packages.len() > 50, "only {} packages seen", packages.len());
    assert!(refused.is_empty(), "not on the list: {refused:#?}");
    Ok(())
}

#[test]
fn expressions_are_read_as_alternatives() {
    assert!(accepted("MIT OR GPL-3.0"));
    assert!(accepted("MIT/Apache-2.0"));
    assert!(accepted("(MIT OR Apache-2.0) AND Unicode-3.0"));
    assert!(!accepted("MIT AND GPL-3.0"));
    assert!(!accepted("none named"));
}
