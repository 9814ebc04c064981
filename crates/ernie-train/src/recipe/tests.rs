//! The reference recipe is the defaults; wrong recipes are told everything at once; overrides land where they should.

use std::path::Path;

use super::*;
use crate::error::Error;

fn repository(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes").join(path)
}

fn parse(text: &str, overrides: &[&str]) -> Result<Recipe> {
    let overrides: Vec<String> = overrides.iter().map(|&item| item.to_owned()).collect();
    Recipe::parse(text, "r.toml", Path::new("/recipes"), &overrides, Path::new("/here"))
}

const SMALL: &str = "[model]\npreset = \"nano\"\n[data]\ntrain = [\"a.txt\"]\n";

fn problems(text: &str, overrides: &[&str]) -> Vec<String> {
    match parse(text, overrides) {
        Err(Error::Recipe { problems, .. }) => problems,
        other => panic!("expected a list of problems, got {other:?}"),
    }
}

#[test]
fn reference_recipe_equals_the_defaults_and_documents_every_key() {
    let path = repository("reference.toml");
    let recipe = Recipe::load(&path, &[], Path::new("/")).unwrap();
    let mut expected = Recipe::default();
    expected.model.preset = Some("nano".into());
    expected.data.train = vec![BUNDLED.into()];
    assert_eq!(recipe, expected);

    let text = std::fs::read_to_string(&path).unwrap();
    expected.model.config = Some("c".into());
    expected.model.weights = Some("w".into());
    let full = toml::Table::try_from(&expected).unwrap();
    let sections: Vec<&str> = text.split("\n[").collect();
    for (table, keys) in &full {
        let Some(keys) = keys.as_table() else { continue };
        let section = sections
            .iter()
            .find(|section| section.starts_with(&format!("{table}]")))
            .unwrap_or_else(|| panic!("[{table}] is missing from the reference recipe"));
        for key in keys.keys() {
            assert!(
                section.lines().any(|line| line.trim_start_matches("# ").starts_with(&format!("{key} = "))),
                "{table}.{key} is missing from the reference recipe"
            );
        }
    }
}

#[test]
fn shipped_recipes_are_valid() {
    let mut seen = 0;
    for entry in std::fs::read_dir(repository("")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            Recipe::load(&path, &[], Path::new("/")).unwrap();
            seen += 1;
        }
    }
    assert!(seen >= 3);
}

#[test]
fn resolved_recipe_reads_back_as_itself() {
    let recipe = parse(SMALL, &["optimizer.lr=1e-7", "data.tokenizer={ train = 512 }", "seed=7"]).unwrap();
    let text = recipe.to_toml().unwrap();
    let again = Recipe::parse(&text, "r", Path::new("/elsewhere"), &[], Path::new("/there")).unwrap();
    assert_eq!(recipe, again);
}

#[test]
fn relative_paths_belong_to_where_they_are_written() {
    let recipe = parse(SMALL, &["data.held_out=b.txt"]).unwrap();
    assert_eq!(recipe.data.train, ["/recipes/a.txt"]);
    assert_eq!(recipe.data.held_out, ["/here/b.txt"]);
    let recipe = parse(SMALL, &["data.train=[\"x.jsonl\", \"/abs.txt\", \"bundled\"]"]).unwrap();
    assert_eq!(recipe.data.train, ["/here/x.jsonl", "/abs.txt", "bundled"]);
    let recipe = parse("[model]\nconfig = \"c.json\"\n[data]\ntrain = \"[a].txt\"\n", &[]).unwrap();
    assert_eq!(recipe.model.config.as_deref(), Some(Path::new("/recipes/c.json")));
    assert_eq!(recipe.data.train, ["/recipes/[a].txt"]);
}

#[test]
fn a_hub_name_stays_a_name() {
    let recipe = parse(SMALL, &["data.tokenizer=baidu/ERNIE-4.5-0.3B-PT"]).unwrap();
    assert_eq!(recipe.data.tokenizer, TokenizerSource::Model("baidu/ERNIE-4.5-0.3B-PT".into()));
}

#[test]
fn an_override_of_the_model_takes_the_place_of_its_siblings() {
    let recipe = parse(SMALL, &["model.config=c.json"]).unwrap();
    assert_eq!(recipe.model.preset, None);
    assert_eq!(recipe.model.config.as_deref(), Some(Path::new("/here/c.json")));
}

#[test]
fn all_problems_are_listed_at_once() {
    let text =
        "seeds = 1\n[model]\n[data]\ntrain = []\nformats = 3\n[optimizer]\nlr = \"fast\"\neps = 0\n[nonsense]\na = 1\n";
    let found = problems(text, &["schedule.stepz=3"]);
    for key in ["seeds", "data.formats", "optimizer.lr", "nonsense", "schedule.stepz"] {
        assert!(found.iter().any(|problem| problem.starts_with(key)), "{key} not in {found:?}");
    }
    let text = "[data]\ntrain = []\n[optimizer]\nlr = -1\neps = 0\nbetas = [1.0, nan]\n[batch]\nrows = 0\n[schedule]\nsteps = 0\n";
    let found = problems(text, &[]);
    for key in
        ["model", "data.train", "optimizer.lr", "optimizer.eps", "optimizer.betas", "batch.rows", "schedule.steps"]
    {
        assert!(found.iter().any(|problem| problem.starts_with(key)), "{key} not in {found:?}");
    }
    assert!(found.iter().all(|problem| !problem.contains('\n')));
}

#[test]
fn numbers_that_are_not_numbers_are_refused() {
    for value in ["nan", "inf", "-inf", "-1", "\"x\"", "[1]", "true"] {
        let found = problems(SMALL, &[&format!("optimizer.lr={value}")]);
        assert!(found[0].starts_with("optimizer.lr"), "{value}: {found:?}");
    }
    assert!(parse(SMALL, &["optimizer.lr=0"]).is_ok());
    assert!(parse(SMALL, &["optimizer.lr=1e10"]).is_ok());
}

#[test]
fn what_is_not_built_says_so() {
    for (set, key) in
        [("parallel.dp=2", "parallel.dp"), ("parallel.ep=8", "parallel.ep"), ("sampler.kind=priority", "sampler.kind")]
    {
        match parse(SMALL, &[set]) {
            Err(error @ Error::NotBuilt { .. }) => {
                assert!(error.to_string().starts_with(key));
                assert!(error.is_input());
            }
            other => panic!("{set}: {other:?}"),
        }
    }
}

#[test]
fn broken_overrides_and_files_are_one_line() {
    for set in ["", "=", "a", "a..b=1", "a b=1", "model.=1", "a.b.c.d.e=1"] {
        let error = parse(SMALL, &[set]).unwrap_err();
        assert!(!error.to_string().contains('\n'), "{error}");
    }
    let error = parse("[model\npreset=", &[]).unwrap_err();
    assert!(matches!(error, Error::Syntax { .. }));
    assert!(!error.to_string().contains('\n'), "{error}");
}

proptest::proptest! {
    #![proptest_config(crate::test_cases())]

    #[test]
    fn no_text_panics(text in "\\PC{0,120}", set in "\\PC{0,40}") {
        let _ = parse(&text, &[&set]);
    }

    #[test]
    fn no_damage_to_a_recipe_panics(at in 0usize..6000, byte in 0u8..128) {
        let mut bytes = std::fs::read(repository("reference.toml")).unwrap();
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Ok(text) = String::from_utf8(bytes) {
            let _ = parse(&text, &[]);
            if let Some(cut) = text.get(..at) {
                let _ = parse(cut, &[]);
            }
        }
    }
}
