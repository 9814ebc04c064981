//! Finding checkpoints by what lies in a folder; whole runs are tested in `tests/`.

use super::*;

/// A folder that looks like a checkpoint of `step` whose `weights` file has `bytes` bytes but should have `expected`.
fn fake(run: &Path, step: u64, bytes: usize, expected: u64, version: u32) {
    let path = run.join(format!("checkpoint-{step}"));
    std::fs::create_dir_all(path.join(STATE_FOLDER)).unwrap();
    std::fs::write(path.join("weights"), vec![0; bytes]).unwrap();
    let loader = LoaderState { version: 1, seed: 0, seq_len: 1, drawn: vec![], samplers: vec![], data: vec![] };
    let files = BTreeMap::from([("weights".to_owned(), expected)]);
    let state = State {
        version,
        step,
        tokens: 0,
        optimizer_steps: step,
        loader,
        commit: String::new(),
        base_crc32c: None,
        standing: Standing::default(),
        files,
    };
    std::fs::write(path.join(STATE_FOLDER).join(STATE_FILE), serde_json::to_vec(&state).unwrap()).unwrap();
}

#[test]
fn newest_is_the_largest_step_that_is_whole() {
    let run = tempfile::tempdir().unwrap();
    let step = || newest(run.path()).unwrap().map(|(step, _)| step);
    assert_eq!(step(), None);
    fake(run.path(), 9, 4, 4, VERSION);
    fake(run.path(), 10, 4, 4, VERSION);
    assert_eq!(step(), Some(10));
    fake(run.path(), 11, 3, 4, VERSION);
    assert_eq!(step(), Some(10));
    fake(run.path(), 12, 4, 4, VERSION + 1);
    assert!(newest(run.path()).unwrap_err().is_input());
    assert_eq!(newest(&run.path().join("nothing")).unwrap(), None);
}

#[test]
fn pruning_counts_only_what_is_whole_and_leaves_nothing_behind() {
    let run = tempfile::tempdir().unwrap();
    for step in 1..=4 {
        fake(run.path(), step, 4, 4, VERSION);
    }
    fake(run.path(), 5, 1, 4, VERSION);
    keep_newest(run.path(), 0, None).unwrap();
    assert_eq!(list(run.path()).unwrap().len(), 5);
    keep_newest(run.path(), 2, None).unwrap();
    let steps: Vec<u64> = list(run.path()).unwrap().iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, [3, 4, 5]);
    assert_eq!(std::fs::read_dir(run.path()).unwrap().count(), 3);
}

proptest::proptest! {
    #![proptest_config(crate::test_cases())]

    #[test]
    fn no_state_file_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200), at in 0usize..200, byte in 0u8..=255) {
        let run = tempfile::tempdir().unwrap();
        fake(run.path(), 1, 4, 4, VERSION);
        let file = run.path().join("checkpoint-1").join(STATE_FOLDER).join(STATE_FILE);
        let mut damaged = std::fs::read(&file).unwrap();
        let at = at % damaged.len();
        damaged[at] = byte;
        std::fs::write(&file, &damaged).unwrap();
        let _ = newest(run.path());
        std::fs::write(&file, &damaged[..at]).unwrap();
        let _ = newest(run.path());
        std::fs::write(&file, &bytes).unwrap();
        let _ = newest(run.path());
    }
}
