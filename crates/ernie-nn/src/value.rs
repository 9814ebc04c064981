//! A tensor that remembers how it was made, and the walk that turns that memory into gradients.
//!
//! Reverse-mode differentiation over a graph that is recorded while it runs. A node holds its parents and
//! one closure that maps the gradient of its output to the gradients of its parents. Nodes are numbered
//! in the order they are made, so descending numbers are a topological order and the walk is a heap.
//! Each closure is taken out as it is used: what it captured (the activations) is freed there and then.

use std::cell::Cell;
use std::collections::{BinaryHeap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Tensor;

use crate::slice::{Slice, View, sum as add, tensor, wide, width};
use crate::{Error, Parameter, Result, Width};

/// Gradient of the output → one gradient for each parent, in order; `None` where the parent needs none.
type Backward = Box<dyn FnOnce(&Tensor) -> Result<Vec<Option<Tensor>>> + Send>;

/// A tensor of f32 (or, between the ops of a layer that is trained in bf16, of bf16) and, while recording, the node that made it. Cheap to clone.
#[derive(Clone)]
pub struct Value {
    tensor: Tensor,
    node: Option<Arc<Node>>,
    kept: Option<Kept>,
}

/// What a backward pass keeps of a value: its numbers, or how to make them again from what is kept anyway.
#[derive(Clone)]
pub(crate) enum Kept {
    Numbers(Tensor),
    Remade(Arc<Remake>),
}

/// Numbers that are made when a backward pass first asks for them, and forgotten with the last that may.
pub(crate) struct Remake {
    make: Box<dyn Fn() -> Result<Tensor> + Send + Sync>,
    made: Mutex<Option<Tensor>>,
}

impl Kept {
    pub(crate) fn tensor(&self) -> Result<Tensor> {
        match self {
            Self::Numbers(tensor) => Ok(tensor.clone()),
            Self::Remade(remake) => {
                let mut made = remake.made.lock().unwrap_or_else(PoisonError::into_inner);
                match &*made {
                    Some(tensor) => Ok(tensor.clone()),
                    None => Ok(made.insert((remake.make)()?).clone()),
                }
            }
        }
    }
}

struct Node {
    id: u64,
    kind: Kind,
}

enum Kind {
    Leaf(Arc<Parameter>),
    Op { parents: Vec<Option<Arc<Node>>>, backward: Mutex<Option<Backward>> },
}

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static RECORDING: Cell<bool> = const { Cell::new(true) };
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

impl Value {
    /// A value without memory: no gradient flows into it.
    pub fn constant(tensor: Tensor) -> Self {
        Self { tensor, node: None, kept: None }
    }

    /// A constant over `data`, row-major.
    ///
    /// # Errors
    /// [`Error::Candle`] if `data` does not fill `shape`.
    pub fn from_vec(data: Vec<f32>, shape: &[usize]) -> Result<Self> {
        Ok(Self::constant(tensor(data, shape)?))
    }

    /// The leaf of `parameter`: recorded when it is trainable and recording is on.
    pub(crate) fn leaf(parameter: &Arc<Parameter>) -> Self {
        let record = RECORDING.get() && parameter.is_trainable();
        let node = record.then(|| Arc::new(Node::new(Kind::Leaf(parameter.clone()))));
        Self { tensor: parameter.tensor().clone(), node, kept: None }
    }

    /// The result of an op. `backward` is kept only if a gradient is wanted by some parent.
    pub(crate) fn from_op(
        output: Tensor,
        parents: &[&Value],
        backward: impl FnOnce(&Tensor) -> Result<Vec<Option<Tensor>>> + Send + 'static,
    ) -> Self {
        let node = needs_grad(parents).then(|| {
            let parents = parents.iter().map(|parent| parent.node.clone()).collect();
            Arc::new(Node::new(Kind::Op { parents, backward: Mutex::new(Some(Box::new(backward))) }))
        });
        Self { tensor: output, node, kept: None }
    }

    /// The same value, of which backward passes keep `make` instead of numbers. `make` gives these again, to the bit, and is cheap beside a
    /// product; what it captures is kept by this value's own backward pass anyway.
    pub(crate) fn remade_by(mut self, make: impl Fn() -> Result<Tensor> + Send + Sync + 'static) -> Self {
        if self.is_recorded() {
            self.kept = Some(Kept::Remade(Arc::new(Remake { make: Box::new(make), made: Mutex::new(None) })));
        }
        self
    }

    /// What an op that needs these numbers again keeps of them.
    pub(crate) fn kept(&self) -> Kept {
        self.kept.clone().unwrap_or_else(|| Kept::Numbers(self.tensor.clone()))
    }

    /// The plain tensor.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// Its shape.
    pub fn shape(&self) -> &[usize] {
        self.tensor.dims()
    }

    /// Its size along `dim`; 1 where it has no such dim.
    pub fn dim(&self, dim: usize) -> usize {
        self.shape().get(dim).copied().unwrap_or(1)
    }

    /// The same numbers without memory.
    pub fn detach(&self) -> Self {
        Self::constant(self.tensor.clone())
    }

    /// Whether a gradient can flow through this value.
    pub fn is_recorded(&self) -> bool {
        self.node.is_some()
    }

    /// Whether this is a parameter itself.
    pub(crate) fn is_leaf(&self) -> bool {
        self.node.as_ref().is_some_and(|node| matches!(node.kind, Kind::Leaf(_)))
    }

    /// A copy of the numbers, row-major.
    pub fn to_vec(&self) -> Result<Vec<f32>> {
        Ok(self.view()?.floats().to_vec())
    }

    /// Some of its rows, in the order asked for, without memory.
    ///
    /// # Shapes
    /// `[T, n]` → `[rows.len(), n]`
    ///
    /// # Errors
    /// [`Error::Shape`] if a row is not there.
    pub fn rows(&self, rows: &[usize]) -> Result<Self> {
        let wide = wide(&self.tensor)?;
        let (width, all) = (self.dim(1), Slice::of(&wide)?);
        let mut chosen = Vec::with_capacity(rows.len() * width);
        for &row in rows {
            let line = (row < self.dim(0)).then(|| &all[row * width..(row + 1) * width]);
            chosen
                .extend_from_slice(line.ok_or_else(|| Error::shape("rows", format!("row {row} of {}", self.dim(0))))?);
        }
        Self::from_vec(chosen, &[rows.len(), width])
    }

    /// The number in a value of one element.
    pub fn scalar(&self) -> Result<f32> {
        match &*self.slice()? {
            [one] => Ok(*one),
            _ => Err(Error::shape("scalar", format!("{:?} is not one element", self.shape()))),
        }
    }

    pub(crate) fn slice(&self) -> Result<Slice<'_>> {
        Slice::of(&self.tensor)
    }

    /// The numbers, of either width.
    pub(crate) fn view(&self) -> Result<View<'_>> {
        View::of(&self.tensor)
    }

    /// In which width its numbers are held.
    pub fn width(&self) -> Width {
        width(&self.tensor)
    }

    /// Adds the gradient of this scalar into every trainable [`Parameter`] it depends on.
    ///
    /// The memory of the graph is consumed: a second call finds nothing to walk.
    ///
    /// # Errors
    /// [`Error::Backward`] if the value is not a recorded scalar, or was walked before.
    pub fn backward(&self) -> Result<()> {
        if self.tensor.elem_count() != 1 {
            return Err(Error::Backward("only a scalar has a gradient to start from"));
        }
        let root = self.node.clone().ok_or(Error::Backward("nothing was recorded"))?;
        let mut gradients = HashMap::from([(root.id, tensor(vec![1.0], self.shape())?)]);
        let mut queue = BinaryHeap::from([root]);
        while let Some(node) = queue.pop() {
            // A node that several children pushed is met several times in a row; the first takes all.
            let Some(gradient) = gradients.remove(&node.id) else { continue };
            match &node.kind {
                Kind::Leaf(parameter) => parameter.accumulate(gradient)?,
                Kind::Op { parents, backward } => {
                    let backward = backward.lock().ok().and_then(|mut slot| slot.take());
                    let backward = backward.ok_or(Error::Backward("this graph was walked before"))?;
                    for (parent, share) in parents.iter().zip(backward(&gradient)?) {
                        let (Some(parent), Some(share)) = (parent, share) else { continue };
                        match gradients.remove(&parent.id) {
                            Some(sum) => gradients.insert(parent.id, add(&sum, &share)?),
                            None => {
                                queue.push(parent.clone());
                                gradients.insert(parent.id, share)
                            }
                        };
                    }
                }
            }
        }
        Ok(())
    }
}

/// Whether any of `parents` asks for a gradient while this thread records.
pub(crate) fn needs_grad(parents: &[&Value]) -> bool {
    RECORDING.get() && parents.iter().any(|parent| parent.node.is_some())
}

impl Node {
    fn new(kind: Kind) -> Self {
        Self { id: NEXT_ID.fetch_add(1, Ordering::Relaxed), kind }
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

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let recorded = if self.is_recorded() { ", recorded" } else { "" };
        write!(f, "Value({:?}{recorded})", self.shape())
    }
}
