//! A tensor that remembers how it was made.
//!
//! Reverse-mode differentiation over a graph that is recorded while it runs ([`crate::tape`]). A node holds its parents and
//! one closure that maps the gradient of its output to the gradients of its parents.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Tensor;

use crate::slice::{Slice, View, tensor, wide, width};
use crate::tape::{self, Kind, Node, is_recording};
use crate::{Error, Parameter, Result, Width};

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
        let record = is_recording() && parameter.is_trainable();
        let node = record.then(|| Node::new(Kind::Leaf(parameter.clone())));
        Self { tensor: parameter.tensor().clone(), node, kept: None }
    }

    /// Where a graph begins that is walked by itself: what its gradient is, [`Self::arrived`] says.
    pub(crate) fn input(tensor: Tensor) -> Self {
        Self { tensor, node: Some(Node::new(Kind::Input(Mutex::new(None)))), kept: None }
    }

    /// Takes the gradient that arrived at an [`Self::input`].
    pub(crate) fn arrived(&self) -> Option<Tensor> {
        match &self.node.as_ref()?.kind {
            Kind::Input(arrived) => arrived.lock().unwrap_or_else(PoisonError::into_inner).take(),
            Kind::Leaf(_) | Kind::Op { .. } => None,
        }
    }

    /// The node that made it, while recorded.
    pub(crate) fn node(&self) -> Option<&Arc<Node>> {
        self.node.as_ref()
    }

    /// The result of an op. `backward` is kept only if a gradient is wanted by some parent.
    pub(crate) fn from_op(
        output: Tensor,
        parents: &[&Value],
        backward: impl FnOnce(&Tensor) -> Result<Vec<Option<Tensor>>> + Send + 'static,
    ) -> Self {
        let node = needs_grad(parents).then(|| {
            let parents = parents.iter().map(|parent| parent.node.clone()).collect();
            Node::new(Kind::Op { parents, backward: Mutex::new(Some(Box::new(backward))) })
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
        tape::walk(self.seed()?, None)
    }

    /// As [`Self::backward`], and `told` of each parameter as soon as its gradient is whole: where it is used more than once, when all uses have
    /// been passed. It may then be changed and its gradient forgotten, while those before it in the model are still to come. A parameter that no
    /// gradient reaches is not named.
    ///
    /// # Errors
    /// As there, and what `told` fails with.
    pub fn backward_telling(&self, mut told: impl FnMut(&Arc<Parameter>) -> Result<()>) -> Result<()> {
        tape::walk(self.seed()?, Some(&mut told))
    }

    /// Where a walk begins: the gradient of a scalar towards itself.
    fn seed(&self) -> Result<Vec<(Arc<Node>, Tensor)>> {
        if self.tensor.elem_count() != 1 {
            return Err(Error::Backward("only a scalar has a gradient to start from"));
        }
        let root = self.node.clone().ok_or(Error::Backward("nothing was recorded"))?;
        Ok(vec![(root, tensor(vec![1.0], self.shape())?)])
    }
}

/// Whether any of `parents` asks for a gradient while this thread records.
pub(crate) fn needs_grad(parents: &[&Value]) -> bool {
    is_recording() && parents.iter().any(|parent| parent.node.is_some())
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let recorded = if self.is_recorded() { ", recorded" } else { "" };
        write!(f, "Value({:?}{recorded})", self.shape())
    }
}
