//! What a graph is made of, and the walk from its end to its leaves.
//!
//! Nodes are numbered in the order they are made, so descending numbers are a topological order and the walk is a heap. Each closure is taken
//! out as it is used: what it captured (the activations) is freed there and then.

use std::cell::Cell;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use candle_core::Tensor;

use crate::slice::sum as add;
use crate::{Error, Parameter, Result};

/// Gradient of the output → one gradient for each parent, in order; `None` where the parent needs none.
pub(crate) type Backward = Box<dyn FnOnce(&Tensor) -> Result<Vec<Option<Tensor>>> + Send>;

/// Is told of a parameter whose gradient nothing can add to any more in this walk.
pub(crate) type Told<'a> = &'a mut dyn FnMut(&Arc<Parameter>) -> Result<()>;

pub(crate) struct Node {
    id: u64,
    pub(crate) kind: Kind,
}

pub(crate) enum Kind {
    Leaf(Arc<Parameter>),
    /// Where a graph begins that is walked by itself: the gradient that arrived here.
    Input(Mutex<Option<Tensor>>),
    Op {
        parents: Vec<Option<Arc<Node>>>,
        backward: Mutex<Option<Backward>>,
    },
}

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static RECORDING: Cell<bool> = const { Cell::new(true) };
}

/// Whether this thread records.
pub(crate) fn is_recording() -> bool {
    RECORDING.get()
}

/// Runs `f` without recording on this thread: its values have no memory and cost none.
pub fn no_grad<T>(f: impl FnOnce() -> T) -> T {
    let _guard = Recording::set(false);
    f()
}

/// Restores what it found when dropped, so that an early return or a panic cannot leave recording off.
pub struct Recording(bool);

impl Recording {
    /// Switches recording on this thread until the guard is dropped.
    pub fn set(on: bool) -> Self {
        Self(RECORDING.replace(on))
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        RECORDING.set(self.0);
    }
}

impl Node {
    pub(crate) fn new(kind: Kind) -> Arc<Self> {
        Arc::new(Self { id: NEXT_ID.fetch_add(1, Ordering::Relaxed), kind })
    }

    fn parents(&self) -> &[Option<Arc<Node>>] {
        match &self.kind {
            Kind::Op { parents, .. } => parents,
            Kind::Leaf(_) | Kind::Input(_) => &[],
        }
    }
}

/// Brings the gradients of `seeds` to the leaves that they depend on. With `told`, each parameter is named to it as soon as all of its leaves
/// have been passed: nothing that is still to be walked reads it or adds to its gradient. One that no gradient reaches is not named.
///
/// The memory of the graph is consumed.
///
/// # Errors
/// [`Error::Backward`] where a part of it was walked before; what `told` fails with.
pub(crate) fn walk(seeds: Vec<(Arc<Node>, Tensor)>, mut told: Option<Told<'_>>) -> Result<()> {
    // Only who is told needs to know how often a parameter is met.
    let mut uses = if told.is_some() { uses(seeds.iter().map(|(node, _)| node)) } else { HashMap::new() };
    let (mut gradients, mut queue) = (HashMap::new(), BinaryHeap::new());
    for (node, seed) in seeds {
        gradients.insert(node.id, seed);
        queue.push(node);
    }
    let mut passed = HashSet::new();
    while let Some(node) = queue.pop() {
        // A node that several children pushed is met several times in a row; the first takes all.
        let gradient = gradients.remove(&node.id);
        match (&node.kind, gradient) {
            (Kind::Leaf(parameter), gradient) => {
                if let Some(gradient) = gradient {
                    parameter.accumulate(gradient)?;
                }
                let Some(told) = &mut told else { continue };
                let left = uses.get_mut(&Arc::as_ptr(parameter)).filter(|_| passed.insert(node.id));
                if let Some(left) = left {
                    *left -= 1;
                    if *left == 0 {
                        told(parameter)?;
                    }
                }
            }
            (Kind::Input(arrived), Some(gradient)) => {
                if let Ok(mut arrived) = arrived.lock() {
                    *arrived = Some(gradient);
                }
            }
            (Kind::Op { parents, backward }, Some(gradient)) => {
                let backward = backward.lock().ok().and_then(|mut slot| slot.take());
                let backward = backward.ok_or(Error::Backward("this graph was walked before"))?;
                for (parent, share) in parents.iter().zip(backward(&gradient)?) {
                    match (parent, share) {
                        (Some(parent), Some(share)) => match gradients.remove(&parent.id) {
                            Some(sum) => drop(gradients.insert(parent.id, add(&sum, &share)?)),
                            None => {
                                queue.push(parent.clone());
                                gradients.insert(parent.id, share);
                            }
                        },
                        // An op that adds to a parameter where it lies has nothing to pass on, and has passed its leaf all the same.
                        (Some(parent), None) if matches!(parent.kind, Kind::Leaf(_)) => queue.push(parent.clone()),
                        _ => {}
                    }
                }
            }
            (Kind::Input(_) | Kind::Op { .. }, None) => {}
        }
    }
    Ok(())
}

/// How many leaves of each parameter the graph behind `roots` has.
fn uses<'a>(roots: impl Iterator<Item = &'a Arc<Node>>) -> HashMap<*const Parameter, usize> {
    let mut uses = HashMap::new();
    leaves(roots, |parameter| *uses.entry(Arc::as_ptr(parameter)).or_insert(0) += 1);
    uses
}

/// Calls `f` with the parameter of each leaf of the graph behind `roots`, in no order.
pub(crate) fn leaves<'a>(roots: impl Iterator<Item = &'a Arc<Node>>, mut f: impl FnMut(&Arc<Parameter>)) {
    let mut pending: Vec<&Arc<Node>> = roots.collect();
    let mut seen = HashSet::new();
    while let Some(node) = pending.pop() {
        if seen.insert(node.id) {
            if let Kind::Leaf(parameter) = &node.kind {
                f(parameter);
            }
            pending.extend(node.parents().iter().flatten());
        }
    }
}

// A long chain of values must not be dropped by recursion: a deep graph would overflow the stack.
impl Drop for Node {
    fn drop(&mut self) {
        let mut pending = Vec::new();
        if let Kind::Op { parents, .. } = &mut self.kind {
            pending.append(parents);
        }
        while let Some(parent) = pending.pop() {
            let Some(mut node) = parent.and_then(Arc::into_inner) else { continue };
            if let Kind::Op { parents, .. } = &mut node.kind {
                pending.append(parents);
            }
        }
    }
}

impl PartialEq for Node {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}
impl Eq for Node {}
impl PartialOrd for Node {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Node {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.id.cmp(&other.id)
    }
}
