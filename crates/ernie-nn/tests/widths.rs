//! A layer's ops in bf16 beside the same ops in f32: results and gradients are as near as roundings to 2^-9 let them be.

mod common;

use std::sync::Arc;

use common::numbers;
use ernie_nn::ops::{self, Angles, Expert};
use ernie_nn::{Heads, Parameter, Result, Span, Value, Weight, Width};

fn near(what: &str, narrow: &[f32], wide: &[f32]) {
    assert_eq!(narrow.len(), wide.len(), "{what}");
    let length = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let (whole, apart) = (length(&mut wide.iter().copied()), length(&mut narrow.iter().zip(wide).map(|(a, b)| a - b)));
    assert!(apart <= 0.02 * whole + 1e-6, "{what}: {apart} of {whole}");
    assert!(apart > 0.0 || whole == 0.0, "{what} was not rounded");
}

/// Builds the same graph in both widths over weights of these shapes, and compares its value and every weight's gradient.
fn check(what: &str, shapes: &[&[usize]], graph: impl Fn(Width, &[Arc<Parameter>]) -> Result<Value>) -> Result<()> {
    let run = |width: Width| -> Result<(Vec<f32>, Vec<Vec<f32>>)> {
        let weights = shapes
            .iter()
            .zip(1..)
            .map(|(shape, seed)| Parameter::multiplied_in(width, "w", numbers(shape.iter().product(), seed), shape))
            .collect::<Result<Vec<_>>>()?;
        let y = graph(width, &weights)?;
        let seed = Value::from_vec(numbers(y.shape().iter().product(), 99), y.shape())?;
        let numbers = y.to_vec()?;
        match y.shape() {
            [1] => y.backward()?,
            // An f32 sum of rounded numbers, so that a gradient comes in.
            _ => ops::weighted_sum(
                &ops::add(&Value::from_vec(vec![0.0; numbers.len()], y.shape())?, &y)?,
                seed.tensor(),
            )?
            .backward()?,
        }
        Ok((numbers, weights.iter().map(|weight| weight.grad_vec()).collect::<Result<_>>()?))
    };
    let (wide, narrow) = (run(Width::F32)?, run(Width::Bf16)?);
    near(what, &narrow.0, &wide.0);
    for (i, (narrow, wide)) in narrow.1.iter().zip(&wide.1).enumerate() {
        near(&format!("gradient {i} of {what}"), narrow, wide);
    }
    Ok(())
}

#[test]
fn a_block_of_attention() -> Result<()> {
    let (rows, hidden) = (70, 24);
    let heads = Heads { query_heads: 4, kv_heads: 2, head_dim: 8 };
    let spans = [Span { slot: 0, rows: 0..41, past: 0 }, Span { slot: 0, rows: 41..70, past: 0 }];
    let positions: Vec<u32> = (0..41).chain(0..29).collect();
    let angles = Angles::new(&positions, heads.head_dim, 1e4);
    check(
        "attention",
        &[&[hidden], &[32, hidden], &[16, hidden], &[16, hidden], &[hidden, 32], &[rows, hidden]],
        |width, w| {
            let x = w[5].value();
            let normed = ops::rms_norm_to(width, &x, &w[0].value(), 1e-5)?;
            let q = ops::rope(&ops::linear(&normed, &w[1])?, &angles)?;
            let k = ops::rope(&ops::linear(&normed, &w[2])?, &angles)?;
            let v = ops::linear(&normed, &w[3])?;
            assert_eq!((normed.width(), q.width(), v.width()), (width, width, width));
            let out = ops::linear(&ops::attention(&q, &k, &v, &spans, heads)?, &w[4])?;
            let sum = ops::add(&x, &out)?;
            assert_eq!(sum.width(), Width::F32);
            Ok(sum)
        },
    )
}

#[test]
fn a_gated_unit_with_biases() -> Result<()> {
    check("mlp", &[&[12], &[40, 12], &[40, 12], &[12, 40], &[40], &[33, 12]], |width, w| {
        let normed = ops::rms_norm_to(width, &w[5].value(), &w[0].value(), 1e-5)?;
        let gate = ops::add_row(&ops::linear(&normed, &w[1])?, &w[4].value())?;
        let inner = ops::swiglu(&gate, &ops::linear(&normed, &w[2])?)?;
        assert_eq!(inner.width(), width);
        ops::linear(&inner, &w[3])
    })
}

#[test]
fn routed_experts() -> Result<()> {
    let (rows, hidden, count) = (50, 16, 4);
    let mut shapes: Vec<&[usize]> = vec![&[50, 16]];
    for _ in 0..count {
        shapes.extend([&[12, 16][..], &[12, 16], &[16, 12]]);
    }
    // The router does not round, so both choose alike.
    let router = Parameter::from_vec("gate", numbers(count * hidden, 7), &[count, hidden])?;
    let ones = Value::from_vec(vec![1.0; hidden], &[hidden])?;
    check("experts", &shapes, |width, w| {
        let x = w[0].value();
        let normed = ops::rms_norm_to(width, &x, &ones, 1e-5)?;
        let routing = ops::route(&ops::linear(&x, &router)?, &[], 2, 1e-12)?;
        assert_eq!((routing.logits.width(), routing.logits.dim(0)), (Width::F32, rows));
        let weight = |i: usize| Weight::Parameter(w[i].clone());
        let expert = |e: usize| Expert {
            gate_proj: weight(1 + 3 * e),
            up_proj: weight(2 + 3 * e),
            down_proj: weight(3 + 3 * e),
        };
        let experts: Vec<_> = (0..count).map(expert).collect();
        let y = ops::experts(&normed, &routing, &experts)?;
        assert_eq!(y.width(), width);
        Ok(y)
    })
}

#[test]
fn a_router_takes_rounded_rows_in_f32() -> Result<()> {
    let router = Parameter::from_vec("gate", numbers(3 * 16, 7), &[3, 16])?;
    let x = Parameter::from_vec("x", numbers(5 * 16, 8), &[5, 16])?;
    let ones = Value::from_vec(vec![1.0; 16], &[16])?;
    let rounded = ops::rms_norm_to(Width::Bf16, &x.value(), &ones, 1e-5)?;
    let logits = ops::linear(&rounded, &router)?;
    assert_eq!((rounded.width(), logits.width()), (Width::Bf16, Width::F32));
    let same = ops::linear(&Value::from_vec(rounded.to_vec()?, &[5, 16])?, &router)?;
    assert_eq!(logits.to_vec()?, same.to_vec()?);
    ops::sum(&logits)?.backward()?;
    assert!(x.grad_vec()?.iter().any(|g| *g != 0.0) && router.grad_vec()?.iter().all(|g| *g != 0.0));
    Ok(())
}

#[test]
fn the_head_and_its_loss() -> Result<()> {
    let targets: Vec<i64> = (0..200).map(|i| if i % 7 == 0 { ops::IGNORED } else { i * 13 % 50 }).collect();
    let ones = Value::from_vec(vec![1.0; 24], &[24])?;
    check("head", &[&[50, 24], &[200, 24]], |width, w| {
        let hidden = ops::rms_norm_to(width, &w[1].value(), &ones, 1e-5)?;
        Ok(ops::head_cross_entropy(&hidden, &Weight::Parameter(w[0].clone()), &targets, 0.01)?.loss)
    })
}
