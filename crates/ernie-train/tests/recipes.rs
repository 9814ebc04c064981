//! Every shipped recipe is one.

use std::path::Path;

use ernie_train::Recipe;

#[test]
fn shipped_recipes_are_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            Recipe::load(&path, &[], &folder).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            count += 1;
        }
    }
    assert!(count >= 5, "{count} recipes in {}", folder.display());
}
