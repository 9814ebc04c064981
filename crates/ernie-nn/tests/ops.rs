//! Every op against its plain twin: the result, and the gradient of every input as candle differentiates it.

mod common;

use candle_core::{Device, Tensor, Var};
use common::numbers;
use ernie_nn::ops::{self, Angles, Expert, plain};
use ernie_nn::{Form, Heads, Linear, Packer, Parameter, Span, Through, Value, Weight, no_grad};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn tensor(shape: &[usize], seed: u64) -> Tensor {
    Tensor::from_vec(numbers(shape.iter().product(), seed), shape, &Device::Cpu).expect("a small tensor")
}

fn close(what: &str, ours: &[f32], twin: &Tensor, tolerance: f32) {
    let twin: Vec<f32> = twin.flatten_all().and_then(|t| t.to_vec1()).expect("a readable twin");
    assert_eq!(ours.len(), twin.len(), "{what}");
    let largest = twin.iter().fold(1.0f32, |max, x| max.max(x.abs()));
    for (i, (a, b)) in ours.iter().zip(&twin).enumerate() {
        assert!((a - b).abs() <= tolerance * largest, "{what}[{i}]: {a} and {b}");
    }
}

/// Runs both sides on the same inputs, weights the outputs by the same numbers, and compares everything.
fn check(
    what: &str,
    inputs: &[Tensor],
    ours: impl Fn(&[Value], &[std::sync::Arc<Parameter>]) -> ernie_nn::Result<Value>,
    twin: impl Fn(&[Tensor]) -> candle_core::Result<Tensor>,
) -> Outcome {
    let parameters: Vec<_> = inputs.iter().map(|t| Parameter::new("x", t.copy().expect("a copy"))).collect();
    let vars = inputs.iter().map(Var::from_tensor).collect::<Result<Vec<_>, _>>()?;
    let twins: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();

    let values: Vec<Value> = parameters.iter().map(|p| p.value()).collect();
    let (mine, theirs) = (ours(&values, &parameters)?, twin(&twins)?);
    close(what, &mine.to_vec()?, &theirs, 2e-5);

    let seed = tensor(mine.shape(), 99);
    ops::weighted_sum(&mine, &seed)?.backward()?;
    let gradients = (theirs * &seed)?.sum_all()?.backward()?;
    for (i, (parameter, var)) in parameters.iter().zip(&vars).enumerate() {
        let zeros = var.zeros_like()?;
        close(&format!("d {what} / d input {i}"), &parameter.grad_vec()?, gradients.get(var).unwrap_or(&zeros), 5e-5);
    }
    Ok(())
}

#[test]
fn linear_matches_its_twin() -> Outcome {
    for (rows, ins, outs) in [(1, 7, 5), (3, 64, 33), (17, 48, 16)] {
        let inputs = [tensor(&[rows, ins], 1), tensor(&[outs, ins], 2)];
        check("linear", &inputs, |v, p| ops::linear(&v[0], &p[1]), |t| plain::linear(&t[0], &t[1]))?;
    }
    Ok(())
}

#[test]
fn adding_and_normalising_is_the_same_recorded_or_not() -> Outcome {
    let inputs = [tensor(&[3, 33], 1), tensor(&[3, 33], 2), tensor(&[33], 3)];
    let parameters: Vec<_> = inputs.iter().map(|t| Parameter::new("x", t.clone())).collect();
    let values: Vec<Value> = parameters.iter().map(|p| p.value()).collect();
    let run = || ops::add_rms_norm(&values[0], &values[1], &values[2], 1e-5);
    let (recorded, plain) = (run()?, no_grad(run)?);
    assert!(recorded.1.is_recorded() && !plain.1.is_recorded());
    assert_eq!((recorded.0.to_vec()?, recorded.1.to_vec()?), (plain.0.to_vec()?, plain.1.to_vec()?));
    assert!(no_grad(|| ops::add_rms_norm(&values[0], &values[2], &values[2], 1e-5)).is_err());
    Ok(())
}

#[test]
fn rms_norm_matches_its_twin() -> Outcome {
    let inputs = [tensor(&[9, 40], 3), tensor(&[40], 4)];
    check("rms_norm", &inputs, |v, _| ops::rms_norm(&v[0], &v[1], 1e-5), |t| plain::rms_norm(&t[0], &t[1], 1e-5))
}

#[test]
fn rope_matches_its_twin() -> Outcome {
    let positions = [0, 1, 2, 7, 100, 3];
    let angles = Angles::new(&positions, 8, 500_000.0);
    let (cos, sin): (Vec<_>, Vec<_>) = (0..6).map(|row| angles.at(row)).unzip();
    let table = |rows: Vec<&[f32]>| Tensor::from_vec(rows.concat(), (6, 4), &Device::Cpu);
    let (cos, sin) = (table(cos)?, table(sin)?);
    let inputs = [tensor(&[6, 24], 5)];
    check("rope", &inputs, |v, _| ops::rope(&v[0], &angles), |t| plain::rope(&t[0], &cos, &sin))
}

#[test]
fn swiglu_matches_its_twin() -> Outcome {
    let inputs = [(tensor(&[5, 37], 6) * 9.0)?, tensor(&[5, 37], 7)];
    check("swiglu", &inputs, |v, _| ops::swiglu(&v[0], &v[1]), |t| plain::swiglu(&t[0], &t[1]))
}

fn spans(lengths: &[usize]) -> Vec<Span> {
    let mut start = 0;
    let mut span = |&length: &usize| {
        start += length;
        Span { slot: 0, rows: start - length..start, past: 0 }
    };
    lengths.iter().map(&mut span).collect()
}

#[test]
fn attention_matches_its_twin() -> Outcome {
    for (lengths, n, k, d) in
        [(vec![1], 1, 1, 4), (vec![5, 1, 9], 4, 2, 16), (vec![70, 3], 6, 2, 8), (vec![130], 3, 3, 32)]
    {
        let heads = Heads { query_heads: n, kv_heads: k, head_dim: d };
        let (rows, spans) = (lengths.iter().sum(), spans(&lengths));
        let inputs = [tensor(&[rows, n * d], 8), tensor(&[rows, k * d], 9), tensor(&[rows, k * d], 10)];
        check(
            "attention",
            &inputs,
            |v, _| ops::attention(&v[0], &v[1], &v[2], &spans, heads),
            |t| plain::attention(&t[0], &t[1], &t[2], &spans, heads),
        )?;
    }
    Ok(())
}

#[test]
fn head_and_cross_entropy_match_their_twin() -> Outcome {
    let (rows, hidden, vocab) = (150, 12, 31);
    let targets: Vec<i64> = (0..rows).map(|i| (i * 7 % vocab) as i64).collect();
    let index = Tensor::from_vec(targets.clone(), rows, &Device::Cpu)?;
    let inputs = [tensor(&[rows, hidden], 11), tensor(&[vocab, hidden], 12)];
    check(
        "cross_entropy",
        &inputs,
        |v, p| Ok(ops::head_cross_entropy(&v[0], &Weight::Parameter(p[1].clone()), &targets, 0.125)?.loss),
        |t| (plain::head_cross_entropy(&t[0], &t[1], &index)? * 0.125)?.reshape(1),
    )
    .and_then(|()| {
        let factors: Vec<f32> = (0..rows).map(|i| (i % 5) as f32 / 2.0 - 1.0).collect();
        let weights = Tensor::from_vec(factors.clone(), (rows, 1), &Device::Cpu)?;
        check(
            "weighted_cross_entropy",
            &inputs,
            |v, p| {
                let head = Weight::Parameter(p[1].clone());
                Ok(ops::weighted_head_cross_entropy(&v[0], &head, &targets, &factors)?.loss)
            },
            |t| (plain::token_losses(&t[0], &t[1], &index)? * &weights)?.sum_all()?.reshape(1),
        )
    })
    .and_then(|()| {
        let head = Weight::Parameter(Parameter::new("head", inputs[1].clone()));
        let nothing = ops::head_cross_entropy(&Value::constant(inputs[0].clone()), &head, &[ops::IGNORED; 150], 1.0)?;
        assert_eq!((nothing.counted, nothing.loss.scalar()?), (0, 0.0));
        nothing.loss.backward()?;
        Ok(())
    })
}

#[test]
fn experts_match_their_twin() -> Outcome {
    let (rows, hidden, width, count, k) = (13, 10, 6, 4, 2);
    let mut inputs = vec![tensor(&[rows, hidden], 13), (tensor(&[rows, count], 14) * 3.0)?];
    for expert in 0..count as u64 {
        inputs.extend([
            tensor(&[width, hidden], 20 + expert),
            tensor(&[width, hidden], 30 + expert),
            tensor(&[hidden, width], 40 + expert),
        ]);
    }
    // The last expert is never chosen: its gradient is zeros.
    let bias = [0.3, 0.0, -0.2, -9.0];
    let indices = ops::route(&Value::constant(inputs[1].clone()), &bias, k, 1e-12)?.indices;
    let chosen = Tensor::from_vec(indices.clone(), (rows, k), &Device::Cpu)?;
    let twin = |t: &[Tensor]| {
        let experts: Vec<_> = t[2..].chunks(3).map(|e| [e[0].clone(), e[1].clone(), e[2].clone()]).collect();
        plain::experts(&t[0], &plain::route(&t[1], &chosen, 1e-12)?, &indices, &experts)
    };
    check(
        "experts",
        &inputs,
        |v, p| {
            let weight = |i: usize| Weight::Parameter(p[i].clone());
            let expert = |e: usize| Expert {
                gate_proj: weight(2 + 3 * e),
                up_proj: weight(3 + 3 * e),
                down_proj: weight(4 + 3 * e),
            };
            let experts: Vec<_> = (0..count).map(expert).collect();
            ops::experts(&v[0], &ops::route(&v[1], &bias, k, 1e-12)?, &experts)
        },
        twin,
    )?;
    // One by one they give the same.
    check(
        "dispatch",
        &inputs,
        |v, p| {
            ops::dispatch(&v[0], &ops::route(&v[1], &bias, k, 1e-12)?, count, |e, _, x| -> ernie_nn::Result<Value> {
                let inner = ops::swiglu(&ops::linear(x, &p[2 + 3 * e])?, &ops::linear(x, &p[3 + 3 * e])?)?;
                ops::linear(&inner, &p[4 + 3 * e])
            })
        },
        twin,
    )
}

/// The gradient passes a packed weight as it passes the same numbers in a parameter; the rounding of inputs on the way forward is as if it were not.
#[test]
fn gradients_pass_packed_weights() -> Outcome {
    let (rows, ins, outs) = (5, 64, 70);
    for (form, tolerance) in [(Form::F32, 2e-5), (Form::INT8, 0.02), (Form::int4(), 0.02)] {
        let mut packing = Packer::new(form, [outs, ins])?;
        packing.push(&tensor(&[outs, ins], 51).flatten_all()?.to_vec1()?)?;
        let packed = std::sync::Arc::new(packing.finish()?);
        let mut held = vec![0.0; outs * ins];
        held.chunks_exact_mut(ins).enumerate().for_each(|(at, row)| packed.row(at, row));
        let weight = Weight::Packed(packed);
        let same = Parameter::from_vec("same", held, &[outs, ins])?;
        same.set_trainable(false);
        let seed = tensor(&[rows, outs], 52);
        let targets = [3, ops::IGNORED, 69, 0, 64];
        let of = |weight: &Weight| -> ernie_nn::Result<[Vec<f32>; 3]> {
            let x = [0, 1, 2].map(|_| Parameter::new("x", tensor(&[rows, ins], 53)));
            ops::weighted_sum(&ops::multiply(&x[0].value(), weight)?, &seed)?.backward()?;
            let linears = [weight, weight].map(|weight| Linear::new(weight.clone(), None));
            let [a, b] = Linear::forward_all([&linears[0], &linears[1]], &x[1].value(), &Through::Weights)?;
            ops::weighted_sum(&ops::add(&a, &b)?, &seed)?.backward()?;
            ops::head_cross_entropy(&x[2].value(), weight, &targets, 0.5)?.loss.backward()?;
            Ok([x[0].grad_vec()?, x[1].grad_vec()?, x[2].grad_vec()?])
        };
        let (ours, theirs) = (of(&weight)?, of(&Weight::Parameter(same))?);
        for (at, (a, b)) in ours.iter().zip(&theirs).enumerate() {
            // Through a product nothing is rounded; the softmax sees what the forward product rounded.
            close(
                &format!("{form:?} {at}"),
                a,
                &Tensor::new(&b[..], &Device::Cpu)?,
                if at < 2 { 2e-5 } else { tolerance },
            );
        }
    }
    Ok(())
}

#[test]
fn the_correction_bias_selects_and_does_not_weigh() -> Outcome {
    let logits = Value::from_vec(vec![2.0, 1.0, 0.0, 0.0], &[1, 4])?;
    let plain = ops::route(&logits, &[], 2, 1e-12)?;
    assert_eq!(plain.indices, [0, 1]);
    let biased = ops::route(&logits, &[0.0, 0.0, 0.0, 1.0], 2, 1e-12)?;
    assert_eq!(biased.indices, [3, 0], "the bias lifts expert 3 over all others");
    let weights = biased.weights.to_vec()?;
    assert!((weights[0] / weights[1] - (-2.0f32).exp()).abs() < 1e-6, "{weights:?} are not those of the bare softmax");
    Ok(())
}

#[test]
fn router_losses_match_their_formulas() -> Outcome {
    let (rows, experts) = (11, 5);
    let dispatched = [0.4, 0.1, 0.2, 0.3, 0.0];
    let shares = Tensor::from_vec(dispatched.to_vec(), (1, experts), &Device::Cpu)?;
    check(
        "balance",
        &[tensor(&[rows, experts], 15)],
        |v, _| ops::balance_loss(&v[0], &dispatched, 22),
        |t| (t[0].broadcast_mul(&shares)?.sum_all()? * (experts as f64 / 22.0))?.reshape(1),
    )?;
    check(
        "z",
        &[tensor(&[rows, experts], 16)],
        |v, _| ops::z_loss(&v[0], 22),
        |t| (t[0].exp()?.sum(1)?.log()?.sqr()?.sum_all()? / 22.0)?.reshape(1),
    )?;
    let identity = Tensor::eye(experts, candle_core::DType::F32, &Device::Cpu)?;
    check(
        "orthogonal",
        &[tensor(&[experts, 7], 17)],
        |v, _| ops::orthogonal_loss(&v[0]),
        |t| {
            let unit = t[0].broadcast_div(&t[0].sqr()?.sum_keepdim(1)?.sqrt()?)?;
            ((unit.matmul(&unit.t()?)? - &identity)?.sqr()?.sum_all()? / (experts * experts) as f64)?.reshape(1)
        },
    )
}

#[test]
fn concat_matches_its_twin() -> Outcome {
    for (rows, m, n) in [(5, 3, 4), (1, 1, 7), (0, 2, 2)] {
        let x = [tensor(&[rows, m], 21), tensor(&[rows, n], 22)];
        check("concat", &x, |v, _| ops::concat(&v[0], &v[1]), |t| Tensor::cat(&[&t[0], &t[1]], 1))?;
    }
    let of = |shape: &[usize]| ernie_nn::Value::constant(tensor(shape, 23));
    assert!(ops::concat(&of(&[2, 3]), &of(&[3, 3])).is_err(), "rows differ");
    Ok(())
}

#[test]
fn embedding_rows_gather_and_scatter() -> Outcome {
    let ids = [3u32, 1, 3, 0];
    let index = Tensor::from_vec(ids.to_vec(), 4, &Device::Cpu)?;
    let table = [tensor(&[5, 6], 18)];
    check(
        "embedding",
        &table,
        |_, p| ops::embedding(&ids, &Weight::Parameter(p[0].clone())),
        |t| t[0].index_select(&index, 0),
    )?;
    assert!(ops::embedding(&[5], &Weight::Parameter(Parameter::new("e", table[0].clone()))).is_err());
    Ok(())
}

#[test]
fn gradients_meet_where_a_value_is_used_twice() -> Outcome {
    let x = [tensor(&[3, 4], 19)];
    check("add", &x, |v, _| ops::add(&ops::scale(&v[0], 2.0)?, &v[0]), |t| (&t[0] * 2.0)? + &t[0])?;
    let (x, row) = (tensor(&[3, 4], 20), tensor(&[4], 21));
    check("add_row", &[x, row], |v, _| ops::add_row(&v[0], &v[1]), |t| t[0].broadcast_add(&t[1]))
}

#[test]
fn parameters_do_not_share_a_gradient() -> Outcome {
    let (a, b) = (Parameter::new("a", tensor(&[2, 2], 1)), Parameter::new("b", tensor(&[2, 2], 2)));
    ops::sum(&ops::add(&a.value(), &b.value())?)?.backward()?;
    ops::sum(&a.value())?.backward()?;
    assert_eq!((a.grad_vec()?, b.grad_vec()?), (vec![2.0; 4], vec![1.0; 4]));
    Ok(())
}

#[test]
fn no_grad_records_nothing_and_a_graph_is_walked_once() -> Outcome {
    let p = Parameter::new("p", tensor(&[2, 2], 22));
    assert!(!ernie_nn::no_grad(|| p.value()).is_recorded());
    let loss = ops::sum(&p.value())?;
    loss.backward()?;
    assert!(loss.backward().is_err());
    p.set_trainable(false);
    assert!(!p.value().is_recorded());
    assert_eq!(p.grad_vec()?, [1.0; 4]);
    p.update(|weight, gradient| weight.iter_mut().zip(gradient).for_each(|(w, g)| *w -= g))?;
    p.zero_grad();
    assert_eq!(p.grad_vec()?, [0.0; 4]);
    Ok(())
}
