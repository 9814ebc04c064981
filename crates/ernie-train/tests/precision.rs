//! Training in bf16 goes where training in f32 goes.

mod common;

use common::Room;
use ernie_train::observe::read_metrics;

/// The losses of a run of some steps.
fn losses(room: &Room, kind: &str) -> Vec<f64> {
    room.run(kind, kind, false, &["schedule.steps=60", "evaluation.every=0"]).unwrap();
    read_metrics(&room.path(kind)).unwrap().iter().map(|line| line.loss).collect()
}

#[test]
fn losses_stay_together() {
    let room = Room::new(20_000);
    for kind in ["dense", "moe"] {
        let (wide, narrow) = (losses(&room, kind), losses(&room, &format!("{kind}-bf16")));
        assert_eq!((wide.len(), narrow.len()), (60, 60));
        assert!(wide[59] < 0.8 * wide[0], "{kind} learns nothing: {wide:?}");
        assert!(narrow != wide, "{kind}: bf16 made no difference at all");
        // Steps of 64 tokens: one of them may fall to another expert. Twenty together show a drift and no chance.
        for (at, (wide, narrow)) in wide.chunks(20).zip(narrow.chunks(20)).enumerate() {
            let apart = wide.iter().sum::<f64>() / narrow.iter().sum::<f64>() - 1.0;
            assert!(apart.abs() < 0.005, "{kind}, steps from {}: {apart}", at * 20);
        }
    }
}
