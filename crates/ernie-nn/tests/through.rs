//! Adapters row by row: each row has the bits that it has alone, through its own adapter or none.

mod common;

use std::sync::Arc;

use common::numbers;
use ernie_nn::ops::{self, Expert};
use ernie_nn::{Adapter, Form, Linear, Packer, Parameter, Through, Value, Weight, no_grad};

type Outcome = Result<(), Box<dyn std::error::Error>>;

const INS: usize = 96;
const OUTS: usize = 80;

/// A linear with adapters 0 and 2; number 1 leaves it alone.
fn linear(form: Option<Form>, bias: bool) -> ernie_nn::Result<Linear> {
    let parameter =
        |rows: usize, columns: usize, seed| Parameter::from_vec("w", numbers(rows * columns, seed), &[rows, columns]);
    let weight = match form {
        Some(form) => {
            let mut packing = Packer::new(form, [OUTS, INS])?;
            packing.push(&numbers(OUTS * INS, 1))?;
            Weight::Packed(Arc::new(packing.finish()?))
        }
        None => Weight::Parameter(parameter(OUTS, INS, 1)?),
    };
    let bias = bias.then(|| Parameter::from_vec("b", numbers(OUTS, 2), &[OUTS])).transpose()?;
    let mut linear = Linear::new(weight, bias);
    for (number, rank) in [(0, 3), (2, 17)] {
        let (a, b) = (parameter(rank, INS, 10 + number as u64)?, parameter(OUTS, rank, 20 + number as u64)?);
        linear.adapt(number, Adapter::new(a, b, 0.5 + number as f64))?;
    }
    Ok(linear)
}

fn bits(value: &Value) -> ernie_nn::Result<Vec<u32>> {
    Ok(value.to_vec()?.into_iter().map(f32::to_bits).collect())
}

#[test]
fn a_row_has_the_bits_that_it_has_alone() -> Outcome {
    let by_row = [None, Some(2), Some(0), Some(1), None, Some(2), Some(2), Some(0), None];
    for form in [None, Some(Form::F32), Some(Form::INT8), Some(Form::int4())] {
        for bias in [false, true] {
            let mut linear = linear(form, bias)?;
            let x = Value::from_vec(numbers(by_row.len() * INS, 3), &[by_row.len(), INS])?;
            let through = Through::each(by_row.to_vec());
            let together = no_grad(|| linear.forward(&x, &through))?;
            let [both, _] = no_grad(|| Linear::forward_all([&linear, &linear], &x, &through))?;
            assert_eq!(bits(&together)?, bits(&both)?);
            linear.pack_adapters()?;
            assert_eq!(bits(&together)?, bits(&no_grad(|| linear.forward(&x, &through))?)?, "packed");
            for (row, which) in by_row.iter().enumerate() {
                let one = x.rows(&[row])?;
                let alone = no_grad(|| linear.forward(&one, &which.map_or(Through::Weights, Through::One)))?;
                assert_eq!(bits(&together.rows(&[row])?)?, bits(&alone)?, "{form:?}, row {row}");
            }
            // An adapter that leaves the weight alone is none, and one that does not is something.
            let plain = bits(&linear.forward(&x, &Through::Weights)?)?;
            assert_eq!(bits(&linear.forward(&x, &Through::One(1))?)?, plain);
            assert_ne!(bits(&linear.forward(&x, &Through::One(0))?)?, plain);
        }
    }
    Ok(())
}

#[test]
fn rows_are_put_back_where_they_came_from() -> Outcome {
    let x = Value::from_vec(vec![-0.0, 1.0, 2.0, 3.0, 4.0, 5.0], &[3, 2])?;
    let part = |data: Vec<f32>| -> ernie_nn::Result<Value> { Value::from_vec(data.clone(), &[data.len() / 2, 2]) };
    let sum = ops::add_at(&x, &[(&[2], part(vec![10.0, 20.0])?), (&[1], part(vec![0.5, 0.25])?)])?;
    let expect: [f32; 6] = [-0.0, 1.0, 2.5, 3.25, 14.0, 25.0];
    assert_eq!(bits(&sum)?, expect.map(f32::to_bits), "what is not named stays as it is");
    let placed = ops::place(&[(&[2, 0], x.rows(&[2, 0])?), (&[1], x.rows(&[1])?)])?;
    assert_eq!(bits(&placed)?, bits(&x)?);
    assert!(ops::add_at(&x, &[(&[3], part(vec![1.0, 1.0])?)]).is_err(), "no such row");
    assert!(ops::add_at(&x, &[(&[0, 1], part(vec![1.0, 1.0])?)]).is_err(), "a row is missing");
    assert!(ops::place(&[(&[1], part(vec![1.0, 1.0])?)]).is_err(), "a hole");
    Ok(())
}

/// Some tokens of a routing are routed as in all of it.
#[test]
fn a_part_of_a_batch_meets_its_own_experts() -> Outcome {
    let (tokens, hidden, width, count) = (7, 32, 48, 4);
    let weight = |rows, columns, seed| -> ernie_nn::Result<Weight> {
        Ok(Weight::Parameter(Parameter::from_vec("w", numbers(rows * columns, seed), &[rows, columns])?))
    };
    let expert = |at: u64| -> ernie_nn::Result<Expert> {
        let (gate_proj, up_proj) = (weight(width, hidden, at)?, weight(width, hidden, at + 1)?);
        Ok(Expert { gate_proj, up_proj, down_proj: weight(hidden, width, at + 2)? })
    };
    let experts: Vec<Expert> = (0..count as u64).map(|at| expert(10 * at)).collect::<Result<_, _>>()?;
    let x = Value::from_vec(numbers(tokens * hidden, 90), &[tokens, hidden])?;
    let routing = ops::route(&Value::from_vec(numbers(tokens * count, 91), &[tokens, count])?, &[], 2, 1e-12)?;
    let whole = no_grad(|| ops::experts(&x, &routing, &experts))?;
    let part = [5, 0, 3];
    let of_part = no_grad(|| ops::experts(&x.rows(&part)?, &routing.rows(&part)?, &experts))?;
    assert_eq!(bits(&of_part)?, bits(&whole.rows(&part)?)?);
    assert!(routing.rows(&[7]).is_err());
    Ok(())
}
