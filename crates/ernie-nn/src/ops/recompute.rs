//! A part of a graph that keeps its input alone and is run once more on the way back.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Tensor;

use super::elementwise::passed_on;
use crate::slice::tensor;
use crate::tape::{Recording, leaves, walk};
use crate::value::needs_grad;
use crate::{Error, Result, Value};

/// Whether anybody reads the numbers of what a part of a graph gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outputs {
    /// They are read.
    Read,
    /// The part runs for what it records alone, so that its last product need not be made ([`crate::Linear::last`]).
    Unread,
}

/// `f(x)`, of which the backward pass keeps `x` and makes the rest again (Chen et al., arXiv:1604.06174, with a part of the graph for a segment):
/// memory for one forward pass more.
///
/// `f` gives what the rest of the graph may go on from, and something beside, which is that of the first run. It must depend on `x`, on
/// parameters, and on what does not change until the backward pass; then values and gradients have the bits of `f` itself. It is told whether
/// its outputs will be read: those of the second run are not. A parameter that `f` uses is whole ([`Value::backward_telling`]) once the second
/// run has been walked.
///
/// # Errors
/// What `f` fails with.
pub fn recomputed<T>(
    x: &Value,
    f: impl Fn(&Value, Outputs) -> Result<(Vec<Value>, T)> + Send + 'static,
) -> Result<(Vec<Value>, T)> {
    // Recorded as it will be again, for an op may go another way where nothing is: this says which parameters there are, and goes.
    let begin =
        |x: &Tensor, recorded: bool| if recorded { Value::input(x.clone()) } else { Value::constant(x.clone()) };
    let recorded = needs_grad(&[x]);
    let (outputs, beside) = f(&begin(x.tensor(), recorded), Outputs::Read)?;
    let (mut names, mut parameters) = (std::collections::HashSet::new(), Vec::new());
    leaves(outputs.iter().filter_map(Value::node), |parameter| {
        if names.insert(Arc::as_ptr(parameter)) {
            parameters.push(parameter.clone());
        }
    });
    let outputs: Vec<Value> = outputs.into_iter().map(|output| output.detach()).collect();
    let uses: Vec<Value> = parameters.iter().map(|parameter| parameter.value()).collect();
    let parents: Vec<&Value> = std::iter::once(x).chain(&uses).collect();
    if !needs_grad(&parents) {
        return Ok((outputs, beside));
    }

    // The outputs' gradients wait here until all that can have arrived; then this one node is walked.
    let waiting: Arc<Mutex<Vec<Option<Tensor>>>> = Arc::new(Mutex::new(vec![None; outputs.len()]));
    let (arrived, kept, leaf, count) = (waiting.clone(), x.tensor().clone(), x.is_leaf(), parents.len());
    let mark = tensor(vec![0.0], &[1])?;
    let all = Value::from_op(mark.clone(), &parents, move |_| {
        let _guard = Recording::set(true);
        let x = begin(&kept, recorded);
        let (outputs, _) = f(&x, Outputs::Unread)?;
        let gradients = std::mem::take(&mut *arrived.lock().unwrap_or_else(PoisonError::into_inner));
        let mut seeds = Vec::with_capacity(outputs.len());
        for (output, gradient) in outputs.iter().zip(gradients) {
            if let (Some(node), Some(gradient)) = (output.node(), gradient) {
                seeds.push((node.clone(), passed_on(&gradient, output.is_leaf())?));
            }
        }
        // What the nodes hold is freed as they are walked.
        drop(outputs);
        walk(seeds, None)?;
        let mut shares = vec![None; count];
        if let (Some(first), Some(gradient)) = (shares.first_mut(), x.arrived()) {
            *first = Some(passed_on(&gradient, leaf)?);
        }
        Ok(shares)
    });
    let recorded = outputs.into_iter().enumerate().map(|(index, output)| {
        let (waiting, mark) = (waiting.clone(), mark.clone());
        Value::from_op(output.tensor().clone(), &[&all], move |gradient| {
            let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let place = waiting.get_mut(index).ok_or(Error::Backward("this graph was walked before"))?;
            *place = Some(gradient.clone());
            Ok(vec![Some(mark)])
        })
    });
    Ok((recorded.collect(), beside))
}
