//! One step over eight micro-batches is the step over one: loss, gradients, their norm, and the routers' statistics.

mod common;

use common::Room;
use ernie_data::Batch;
use ernie_data::packing::Place;
use ernie_model::Decoder;
use ernie_train::recipe::{Normalise, Objective, ObjectiveKind, PreferenceLoss};
use ernie_train::step::{StepLoss, accumulate};

/// `rows` rows of arbitrary ids, documents and masks; no two rows have the same number of unmasked tokens.
fn rows(rows: usize, seq_len: usize) -> Vec<Batch> {
    let mut state = 12345_u64;
    let mut draw = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let row = |index: usize| {
        let ids: Vec<u32> = (0..seq_len).map(|_| draw(300) as u32).collect();
        let target = |at: usize| if at <= index || at % 5 == 3 { -100 } else { i64::from(ids[(at + 1) % seq_len]) };
        let targets = (0..seq_len).map(target).collect();
        let cut = 1 + draw(seq_len as u64 - 1) as usize;
        Batch {
            ids: ids.clone(),
            targets,
            lengths: vec![cut, seq_len - cut],
            rows: 1,
            seq_len,
            places: vec![Place { source: 0, row: index as u32 }],
        }
    };
    (0..rows).map(row).collect()
}

fn join(rows: &[Batch]) -> Batch {
    let mut whole = Batch::new(rows[0].seq_len);
    for row in rows {
        whole.ids.extend(&row.ids);
        whole.targets.extend(&row.targets);
        whole.lengths.extend(&row.lengths);
        whole.rows += row.rows;
        whole.places.extend(&row.places);
    }
    whole
}

fn gradients(decoder: &Decoder, micro_batches: &[Batch], objective: &Objective) -> (StepLoss, Vec<(String, Vec<f32>)>) {
    decoder.parameters().iter().for_each(|parameter| parameter.zero_grad());
    let loss = accumulate(decoder, micro_batches, objective).unwrap();
    let of = |p: &std::sync::Arc<ernie_nn::Parameter>| (p.name().to_owned(), p.grad_vec().unwrap());
    (loss, decoder.parameters().iter().map(of).collect())
}

fn check(kind: &str, objective: &Objective) {
    one_is_many(kind, objective);
    one_is_many(&format!("{kind}-bf16"), objective);
}

fn one_is_many(kind: &str, objective: &Objective) {
    let room = Room::new(2000);
    let trainer = room.trainer(kind, "run", false, &[]).unwrap();
    let decoder = trainer.decoder();
    let rows = rows(8, 16);
    let (whole, whole_grads) = gradients(decoder, &[join(&rows)], objective);
    for parts in [2, 4, 8] {
        let micro_batches: Vec<Batch> = rows.chunks(8 / parts).map(join).collect();
        let (sum, sum_grads) = gradients(decoder, &micro_batches, objective);
        assert_eq!(whole.units, sum.units);
        let relative = |a: f64, b: f64| (a - b).abs() / a.abs().max(1e-30);
        assert!(relative(whole.loss, sum.loss) <= 1e-6, "{} {}", whole.loss, sum.loss);
        assert!(
            (whole.router_loss - sum.router_loss).abs() <= 1e-6 * whole.loss,
            "{} {}",
            whole.router_loss,
            sum.router_loss
        );
        assert_eq!(whole.mtp_loss.is_some(), sum.mtp_loss.is_some());
        assert!(relative(whole.mtp_loss.unwrap_or(1.0), sum.mtp_loss.unwrap_or(1.0)) <= 1e-6);
        let norm = |grads: &[(String, Vec<f32>)]| {
            grads.iter().flat_map(|(_, grad)| grad).map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt()
        };
        assert!(relative(norm(&whole_grads), norm(&sum_grads)) <= 1e-6);
        for ((name, a), (_, b)) in whole_grads.iter().zip(&sum_grads) {
            let largest = a.iter().fold(0.0_f32, |most, g| most.max(g.abs()));
            let apart = a.iter().zip(b).fold(0.0_f32, |most, (a, b)| most.max((a - b).abs()));
            assert!(apart <= 1e-5 * largest.max(1e-12), "{kind} {parts} {name}: {apart} of {largest}");
        }
        let (whole_router, sum_router) = (whole.router(), sum.router());
        assert_eq!(whole_router.len(), sum_router.len());
        for (a, b) in whole_router.iter().zip(&sum_router) {
            assert_eq!((a.layer, &a.load, a.dead, a.max_vio), (b.layer, &b.load, b.dead, b.max_vio));
        }
        assert_eq!(whole.row_losses.concat().len(), sum.row_losses.concat().len());
    }
}

#[test]
fn dense() {
    check("dense", &Objective::default());
    check("dense", &Objective { normalise: Normalise::Constant, ..Objective::default() });
}

#[test]
fn pairs_of_answers() {
    let simpo =
        Objective { kind: ObjectiveKind::Dpo, preference: PreferenceLoss::Simpo, beta: 2.0, ..Objective::default() };
    check("dense", &simpo);
    check("moe", &Objective { sft_weight: 0.5, ..simpo });
}

#[test]
fn moe_with_every_router_term() {
    // Weights large enough that a mistake in any term would show in the routers' gradients.
    let objective = Objective { router_balance: 0.5, router_z: 0.1, router_orthogonal: 0.5, ..Objective::default() };
    check("moe", &objective);
    check("moe", &Objective { normalise: Normalise::Constant, ..objective });
    check("moe", &Objective::default());
}

#[test]
fn multi_token_prediction() {
    let objective = Objective { mtp_weight: 0.5, ..Objective::default() };
    check("dense-mtp", &objective);
    check("moe-mtp", &Objective { normalise: Normalise::Constant, ..objective });
}

#[test]
fn constant_normalisation_is_the_token_one_scaled() {
    let room = Room::new(2000);
    let trainer = room.trainer("dense", "run", false, &[]).unwrap();
    let rows = rows(3, 16);
    let (tokens, a) = gradients(trainer.decoder(), &rows, &Objective::default());
    let constant = Objective { normalise: Normalise::Constant, ..Objective::default() };
    let (loss, b) = gradients(trainer.decoder(), &rows, &constant);
    assert_eq!(tokens.loss, loss.loss);
    let share = tokens.units as f32 / 48.0;
    for ((_, a), (_, b)) in a.iter().zip(&b) {
        assert!(a.iter().zip(b).all(|(a, b)| (a * share - b).abs() < 1e-6));
    }
}
