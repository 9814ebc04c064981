//! What is told of on the way back, and parts of a graph that are run again: the same bits, at the right time.

mod common;

use std::collections::HashMap;
use std::sync::Arc;

use common::numbers;
use ernie_nn::ops::{self, Angles, Expert, Outputs};
use ernie_nn::{Adapter, Form, Heads, Linear, Packer, Parameter, Result, Span, Through, Value, Weight, Width, no_grad};

const ROWS: usize = 6;
const HIDDEN: usize = 8;

/// A small model: a tied embedding, two layers with routed experts, a head.
struct Model {
    width: Width,
    all: Vec<Arc<Parameter>>,
}

impl Model {
    fn new(width: Width) -> Result<Self> {
        let mut all = Vec::new();
        let mut add = |name: String, shape: &[usize], width: Width| -> Result<()> {
            let data = numbers(shape.iter().product(), all.len() as u64 + 1);
            all.push(Parameter::multiplied_in(width, name, data, shape)?);
            Ok(())
        };
        add("embed".into(), &[12, HIDDEN], width)?;
        for layer in 0..2 {
            add(format!("{layer}.norm"), &[HIDDEN], width)?;
            for which in ["q", "k", "v", "o"] {
                add(format!("{layer}.{which}"), &[HIDDEN, HIDDEN], width)?;
            }
            add(format!("{layer}.norm2"), &[HIDDEN], width)?;
            add(format!("{layer}.router"), &[2, HIDDEN], Width::F32)?;
            for expert in 0..2 {
                add(format!("{layer}.{expert}.gate"), &[5, HIDDEN], width)?;
                add(format!("{layer}.{expert}.up"), &[5, HIDDEN], width)?;
                add(format!("{layer}.{expert}.down"), &[HIDDEN, 5], width)?;
            }
        }
        Ok(Self { width, all })
    }

    /// A layer's output, and its router's probabilities.
    fn layer(width: Width, w: &[Arc<Parameter>], angles: &Angles, x: &Value) -> Result<(Vec<Value>, Vec<u32>)> {
        let normed = ops::rms_norm_to(width, x, &w[0].value(), 1e-5)?;
        let [q, k, v] = [1, 2, 3].map(|at| ops::linear(&normed, &w[at]));
        let heads = Heads { query_heads: 2, kv_heads: 2, head_dim: 4 };
        let span = Span { slot: 0, rows: 0..ROWS, past: 0 };
        let attended = ops::attention(&ops::rope(&q?, angles)?, &ops::rope(&k?, angles)?, &v?, &[span], heads)?;
        let h = ops::add(x, &ops::linear(&attended, &w[4])?)?;
        let normed = ops::rms_norm_to(width, &h, &w[5].value(), 1e-5)?;
        let routing = ops::route(&ops::linear(&normed, &w[6])?, &[], 2, 1e-12)?;
        let weight = |at: usize| Weight::Parameter(w[at].clone());
        let expert = |e: usize| Expert {
            gate_proj: weight(7 + 3 * e),
            up_proj: weight(8 + 3 * e),
            down_proj: weight(9 + 3 * e),
        };
        let fed = ops::experts(&normed, &routing, &[expert(0), expert(1)])?;
        Ok((vec![ops::add(&h, &fed)?, routing.probabilities], routing.indices))
    }

    /// A loss of all of it, with a term on the routers.
    fn loss(&self, again: bool) -> Result<Value> {
        let angles = Angles::new(&[0, 1, 2, 3, 4, 5], 4, 1e4);
        let table = Weight::Parameter(self.all[0].clone());
        let mut x = ops::embedding(&[1, 5, 5, 0, 11, 3], &table)?;
        let mut terms = Vec::new();
        for layer in self.all[1..].chunks(13) {
            let (width, w, angles) = (self.width, layer.to_vec(), angles.clone());
            let run = move |x: &Value, _| Self::layer(width, &w, &angles, x);
            let (outputs, chosen) = if again { ops::recomputed(&x, run)? } else { run(&x, Outputs::Read)? };
            assert_eq!(chosen.len(), 2 * ROWS);
            x = outputs[0].clone();
            terms.push(ops::balance_loss(&outputs[1], &[0.7, 0.3], ROWS)?);
            terms.push(ops::orthogonal_loss(&layer[6].value())?);
        }
        let mut loss = ops::head_cross_entropy(&x, &table, &[5, 5, 0, 11, 3, ops::IGNORED], 0.2)?.loss;
        for term in terms {
            loss = ops::add(&loss, &term)?;
        }
        Ok(loss)
    }

    fn gradients(&self) -> Result<Vec<Vec<u32>>> {
        let bits = |p: &Arc<Parameter>| Ok(p.grad_vec()?.into_iter().map(f32::to_bits).collect());
        self.all.iter().map(bits).collect()
    }

    fn forget(&self) {
        self.all.iter().for_each(|parameter| parameter.zero_grad());
    }
}

#[test]
fn what_is_run_again_has_the_same_bits() -> Result<()> {
    for width in [Width::F32, Width::Bf16] {
        let model = Model::new(width)?;
        let loss = model.loss(false)?;
        loss.backward()?;
        let plain = model.gradients()?;
        assert!(plain.iter().all(|gradient| gradient.iter().any(|&bits| bits != 0)));
        model.forget();
        let again = model.loss(true)?;
        again.backward()?;
        assert_eq!(loss.scalar()?.to_bits(), again.scalar()?.to_bits());
        assert_eq!(plain, model.gradients()?, "{width:?}");
        assert!(again.backward().is_err(), "walked twice");
        // Unrecorded it is a call like any other; with the first layers frozen, as an adapter has it, too.
        assert!(!no_grad(|| model.loss(true))?.is_recorded());
        for frozen in &model.all[..14] {
            frozen.set_trainable(false);
        }
        let mut both = Vec::new();
        for again in [false, true] {
            model.forget();
            model.loss(again)?.backward()?;
            both.push(model.gradients()?);
        }
        assert!(both[0] == both[1] && both[0][20] == plain[20] && both[0][3].iter().all(|&bits| bits == 0));
    }
    Ok(())
}

#[test]
fn each_parameter_is_told_of_once_and_when_it_is_whole() -> Result<()> {
    for again in [false, true] {
        let model = Model::new(Width::F32)?;
        model.loss(again)?.backward()?;
        let whole = model.gradients()?;
        model.forget();
        // What is told of is spoiled there and then: nobody may read it after.
        let mut order = Vec::new();
        let mut told = HashMap::new();
        model.loss(again)?.backward_telling(|parameter| {
            let bits: Vec<u32> = parameter.grad_vec()?.into_iter().map(f32::to_bits).collect();
            assert!(told.insert(parameter.name().to_owned(), bits).is_none(), "{} twice", parameter.name());
            order.push(parameter.name().to_owned());
            parameter.zero_grad();
            parameter.update(|weights, _| weights.fill(f32::NAN))
        })?;
        assert_eq!(told.len(), model.all.len());
        for (parameter, whole) in model.all.iter().zip(&whole) {
            assert_eq!(&told[parameter.name()], whole, "{}", parameter.name());
        }
        // The tied table is used first and last; the last layer comes before the first.
        let at = |name: &str| order.iter().position(|known| known == name);
        assert_eq!(at("embed"), Some(order.len() - 1));
        assert!(at("1.q") < at("0.q") && at("1.norm") < at("0.1.down"));
    }
    Ok(())
}

#[test]
fn what_no_gradient_reaches_is_not_told_of() -> Result<()> {
    let [a, b] = ["a", "b"].map(|name| Parameter::from_vec(name, vec![1.0, 2.0], &[1, 2]));
    let (a, b) = (a?, b?);
    let frozen = Parameter::from_vec("frozen", vec![1.0, 2.0], &[1, 2])?;
    frozen.set_trainable(false);
    let _beside = ops::sum(&b.value())?;
    let mut names = Vec::new();
    let sum = ops::sum(&ops::add(&ops::add(&a.value(), &a.value())?, &frozen.value())?)?;
    sum.backward_telling(|parameter| {
        names.push((parameter.name().to_owned(), parameter.grad_vec()?));
        Ok(())
    })?;
    assert_eq!(names, [("a".to_owned(), vec![2.0, 2.0])]);
    // What the teller fails with ends the walk.
    let error = ernie_nn::Error::shape("told", "enough");
    let mut error = Some(error);
    let failed = ops::sum(&a.value())?.backward_telling(|_| error.take().map_or(Ok(()), Err));
    assert!(failed.is_err_and(|error| error.to_string() == "told: enough"));
    Ok(())
}

#[test]
fn a_product_that_nobody_reads_has_the_gradients_of_one_that_is_read() -> Result<()> {
    let parameter = |name: &str, shape: [usize; 2], width| {
        Parameter::multiplied_in(
            width,
            name,
            numbers(shape[0] * shape[1], name.len() as u64 + shape[1] as u64 * 7 + shape[0] as u64),
            &shape,
        )
    };
    for width in [Width::F32, Width::Bf16] {
        let (x, w) = (parameter("x", [3, 8], Width::F32)?, parameter("w", [5, 8], width)?);
        let (a, b) = (parameter("a", [2, 8], width)?, parameter("b", [5, 2], width)?);
        let mut packing = Packer::new(Form::F32, [5, 8])?;
        packing.push(&w.to_vec()?)?;
        let packed = Weight::Packed(Arc::new(packing.finish()?));
        for weight in [Weight::Parameter(w.clone()), packed] {
            let mut linear = Linear::new(weight, None);
            linear.adapt(0, Adapter::new(a.clone(), b.clone(), 0.5))?;
            for through in [Through::Weights, Through::One(0)] {
                let all = [&x, &w, &a, &b];
                let gradients = |outputs| -> Result<Vec<Vec<f32>>> {
                    all.iter().for_each(|parameter| parameter.zero_grad());
                    ops::sum(&ops::widen(&linear.last(outputs, &x.value(), &through)?)?)?.backward()?;
                    all.iter().map(|parameter| parameter.grad_vec()).collect()
                };
                let read = gradients(Outputs::Read)?;
                assert!(read[0].iter().any(|&gradient| gradient != 0.0));
                assert_eq!(read, gradients(Outputs::Unread)?);
            }
        }
    }
    Ok(())
}
