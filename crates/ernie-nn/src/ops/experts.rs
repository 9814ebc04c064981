//! The routed experts of a layer as one op: sort, gather, three products an expert, combine.

use std::sync::Arc;

use candle_core::Tensor;
use ernie_kernels::experts::{self as kernel, Order};
use ernie_kernels::floats::{FloatVec, Floats};
use ernie_kernels::{fresh, swiglu};

use super::Routing;
use super::multiply::Products;
use crate::error::ensure;
use crate::packed::Job;
use crate::slice::{Slice, View, from_floats, tensor};
use crate::value::Kept;
use crate::{Error, Packed, Parameter, Result, Value, Weight, Width};

/// One expert: a SwiGLU of its own.
#[derive(Clone)]
pub struct Expert {
    /// `[M, h]`.
    pub gate_proj: Weight,
    /// `[M, h]`.
    pub up_proj: Weight,
    /// `[h, M]`.
    pub down_proj: Weight,
}

/// `y_t = Σ_slot w[t, slot] · expert(x_t)`: dropless, sorted by expert, deterministic.
///
/// # Shapes
/// `x: [T, h]`, routing of `T` tokens to `k` of `experts` → `[T, h]`. Each token adds its own `k` results,
/// best expert first, so its sum does not depend on its company. Packed experts pass no gradient: see [`super::dispatch()`].
pub fn experts(x: &Value, routing: &Routing, experts: &[Expert]) -> Result<Value> {
    let (rows, hidden, k) = (x.dim(0), x.dim(1), routing.weights.dim(1));
    ensure(routing.indices.len() == rows * k && routing.logits.dim(1) == experts.len(), "experts", || {
        format!("x {:?}, {} choices of {} experts", x.shape(), routing.indices.len(), experts.len())
    })?;
    let order = Order::new(&routing.indices, experts.len(), k);
    if let Some(packed) = experts.iter().map(packed).collect::<Option<Vec<_>>>() {
        let mut gathered = fresh::zeros(rows * k * hidden);
        kernel::gather(&*x.slice()?, hidden, &order, &mut gathered);
        let mut results = fresh::zeros(rows * k * hidden);
        packed_experts(&gathered, &order, &packed, &mut results)?;
        let mut out = fresh::zeros(rows * hidden);
        kernel::combine(&results, Some(&routing.weights.slice()?), hidden, &order, &mut out);
        return Value::from_vec(out, &[rows, hidden]);
    }
    let trained: Option<Vec<_>> = experts.iter().flat_map(parameters).collect();
    let trained = trained.ok_or_else(|| Error::shape("experts", "some are packed and some are trained"))?;
    let products = Products(trained.first().map_or(Width::F32, |parameter| parameter.products()));
    let mut gathered = FloatVec::zeros(products.0, rows * k * hidden);
    kernel::gather(x.view()?.floats(), hidden, &order, &mut gathered);
    let mut results = FloatVec::zeros(products.0, rows * k * hidden);
    let mut kept = Vec::new();
    for (index, expert) in experts.iter().enumerate().filter(|(index, _)| !order.rows(*index).is_empty()) {
        let count = order.rows(index).len();
        let span = order.rows(index).start * hidden..order.rows(index).end * hidden;
        let [gate, up, down] = parameters(expert);
        let (Some(gate_proj), Some(up_proj), Some(down_proj)) = (gate, up, down) else { continue };
        let width = expert.gate_proj.out_features();
        let x = gathered.view().part(span.clone());
        let gate = products.forward(x, &Slice::of(gate_proj.tensor())?, [count, hidden, width]);
        let up = products.forward(x, &Slice::of(up_proj.tensor())?, [count, hidden, width]);
        let mut inner = FloatVec::zeros(products.0, gate.len());
        swiglu::forward(&gate, &up, &mut inner);
        let y = results.view_mut().part_mut(span);
        products.forward_into(inner.view(), &Slice::of(down_proj.tensor())?, y, [count, width, hidden]);
        kept.push((index, gate, up));
    }
    let mut out = fresh::zeros(rows * hidden);
    kernel::combine(&results, Some(&routing.weights.slice()?), hidden, &order, &mut out);
    drop((gathered, results));
    let out = match products.0 {
        Width::F32 => tensor(out, &[rows, hidden])?,
        width => from_floats(Floats::F32(&out).to_width(width), &[rows, hidden])?,
    };

    let trained: Vec<_> = trained.into_iter().map(Parameter::value).collect();
    let parents: Vec<&Value> = [x, &routing.weights].into_iter().chain(&trained).collect();
    let backward = Backward {
        products,
        x: x.kept(),
        hidden,
        weights: routing.weights.tensor().clone(),
        experts: trained.iter().map(|value| value.tensor().clone()).collect(),
        order,
        kept,
    };
    Ok(Value::from_op(out, &parents, move |gradient| backward.run(gradient)))
}

fn packed(expert: &Expert) -> Option<[&Packed; 3]> {
    let [gate, up, down] = [&expert.gate_proj, &expert.up_proj, &expert.down_proj].map(|weight| weight.packed());
    Some([gate?, up?, down?])
}

/// The products of all experts over rows sorted by expert, in two parallel regions.
fn packed_experts(x: &[f32], order: &Order, experts: &[[&Packed; 3]], results: &mut [f32]) -> Result<()> {
    let Some([gate, _, down]) = experts.first() else { return Ok(()) };
    let (hidden, width, pairs) = (gate.in_features(), gate.out_features(), order.pairs.len());
    let fits = |[gate, up, down]: &[&Packed; 3]| {
        [gate, up].iter().all(|w| (w.out_features(), w.in_features()) == (width, hidden))
            && (down.out_features(), down.in_features()) == (hidden, width)
    };
    ensure(down.out_features() * pairs == results.len() && experts.iter().all(fits), "experts", || {
        format!("experts of {hidden} by {width} differ")
    })?;
    let (mut gate, mut up) = (fresh::zeros(pairs * width), fresh::zeros(pairs * width));
    let mut jobs = jobs(order, experts, 0, width, &mut gate);
    jobs.extend(self::jobs(order, experts, 1, width, &mut up));
    Packed::multiply(x, hidden, jobs);
    let mut inner = fresh::zeros(pairs * width);
    swiglu::forward(&gate, &up, &mut inner);
    Packed::multiply(&inner, width, self::jobs(order, experts, 2, hidden, results));
    Ok(())
}

/// One product for each expert that has rows; `y: [pairs, out]` in the order of the rows.
fn jobs<'a>(
    order: &Order,
    experts: &[[&'a Packed; 3]],
    which: usize,
    out: usize,
    mut y: &'a mut [f32],
) -> Vec<Job<'a>> {
    let mut jobs = Vec::new();
    for (index, expert) in experts.iter().enumerate() {
        let rows = order.rows(index);
        let (mine, rest) = std::mem::take(&mut y).split_at_mut(rows.len() * out);
        y = rest;
        if !rows.is_empty() {
            jobs.push(Job { rows, w: expert[which], y: mine });
        }
    }
    jobs
}

fn parameters(expert: &Expert) -> [Option<&Arc<Parameter>>; 3] {
    [&expert.gate_proj, &expert.up_proj, &expert.down_proj].map(Weight::parameter)
}

/// What the backward pass keeps: inputs, routing, and gate and up of each expert that had rows.
struct Backward {
    products: Products,
    x: Kept,
    hidden: usize,
    weights: Tensor,
    /// Gate, up and down of each expert, in order.
    experts: Vec<Tensor>,
    order: Order,
    kept: Vec<(usize, FloatVec, FloatVec)>,
}

impl Backward {
    fn run(self, gradient: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let Self { products, x, hidden, weights, experts, order, kept } = self;
        let x = x.tensor()?;
        let pairs = order.pairs.len();
        let room = |n: usize| FloatVec::zeros(products.0, n);
        // Rows sorted by expert: each token's input and output gradient once for every choice.
        let (mut inputs, mut dy) = (room(pairs * hidden), fresh::zeros(pairs * hidden));
        kernel::gather(View::of(&x)?.floats(), hidden, &order, &mut inputs);
        kernel::gather(View::of(gradient)?.floats(), hidden, &order, &mut dy);
        let weight = Slice::of(&weights)?;
        let mut dweight = fresh::zeros(pairs);
        let mut dinputs = fresh::zeros(pairs * hidden);
        // An expert without tokens has a gradient of zeros, as it has in the fused form of the reference.
        let mut dexperts = experts.iter().map(Tensor::zeros_like).collect::<Result<Vec<_>, _>>()?;
        for (index, gate, up) in kept {
            let [w_gate, w_up, w_down] = &experts[3 * index..3 * index + 3] else { continue };
            let range = order.rows(index);
            let (rows, width) = (range.len(), gate.len() / range.len().max(1));
            let (up_shape, down_shape) = ([rows, hidden, width], [rows, width, hidden]);
            let span = range.start * hidden..range.end * hidden;
            let (x, dy) = (inputs.view().part(span.clone()), &mut dy[span.clone()]);
            let mut inner = fresh::zeros(gate.len());
            swiglu::forward(&gate, &up, &mut inner);
            let mut dinner = fresh::zeros(gate.len());
            let w_down = Slice::of(w_down)?;
            products.add_input_gradient(Floats::F32(dy), &w_down, (&mut dinner).into(), down_shape, false);
            // dw = dy · (W_down inner) = (dy W_down) · inner: the expert's output need not be kept.
            kernel::weigh(&order.pairs[range], &weight, dy, &inner, &mut dinner, &mut dweight);
            let dw = products.weight_gradient(Floats::F32(dy), Floats::F32(&inner), down_shape);
            dexperts[3 * index + 2] = tensor(dw, &[hidden, width])?;
            let (mut dgate, mut dup) = (room(gate.len()), room(gate.len()));
            swiglu::backward(&gate, &up, &dinner, &mut dgate, &mut dup);
            for (d, which) in [(&dgate, 0), (&dup, 1)] {
                let dw = products.weight_gradient(d.view(), x, up_shape);
                dexperts[3 * index + which] = tensor(dw, &[width, hidden])?;
            }
            for (d, w, add) in [(&dgate, w_gate, false), (&dup, w_up, true)] {
                let dx = (&mut dinputs[span.clone()]).into();
                products.add_input_gradient(d.view(), &Slice::of(w)?, dx, up_shape, add);
            }
        }
        let mut dx = fresh::zeros(x.elem_count());
        kernel::combine(&dinputs, None, hidden, &order, &mut dx);
        let mut gradients = vec![Some(tensor(dx, x.dims())?), Some(tensor(dweight, weights.dims())?)];
        gradients.extend(dexperts.into_iter().map(Some));
        Ok(gradients)
    }
}
