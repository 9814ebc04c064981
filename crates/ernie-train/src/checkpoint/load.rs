//! Reading a checkpoint back: tensors by name, every one used, every shape checked.

use std::collections::HashSet;
use std::path::Path;

use ernie_files::{Checkpoint, Dtype};
use ernie_model::Decoder;
use ernie_model::decoder::bias_name;
use ernie_nn::{Floats, FloatsMut, Width};

use super::{AVERAGE_FILE, MASTERS_FILE, MOMENTS_FILE, RECIPE_FILE, STATE_FILE, STATE_FOLDER, State, read_state};
use crate::average::Average;
use crate::error::{Error, Result};
use crate::optimizer::Optimizer;
use crate::recipe::Recipe;

/// Puts masters, correction biases, moments and the average back, and gives the state.
pub(crate) fn restore(
    path: &Path,
    decoder: &Decoder,
    optimizer: &mut Optimizer,
    average: Option<&mut Average>,
) -> Result<State> {
    let training = path.join(STATE_FOLDER);
    let state = read_state(path)?
        .ok_or_else(|| Error::state(&training.join(STATE_FILE), "no readable training state, expected one"))?;

    let mut masters = Tensors::open(&training.join(MASTERS_FILE))?;
    for parameter in decoder.trained() {
        let mut weights = vec![0.0; parameter.elements()];
        masters.read(parameter.name(), parameter.shape(), &mut weights)?;
        parameter.set(&weights)?;
    }
    for (layer, moe) in decoder.moe_layers() {
        let mut bias = moe.correction_bias();
        if !bias.is_empty() {
            masters.read(&bias_name(layer), &[1, bias.len()], &mut bias)?;
            moe.set_correction_bias(&bias)?;
        }
    }
    masters.finish()?;

    let mut moments = Tensors::open(&training.join(MOMENTS_FILE))?;
    optimizer.restore(state.optimizer_steps, |name, shape, first, second| {
        moments.read(&format!("{name}.first"), shape, first)?;
        if second.is_empty() {
            return Ok(());
        }
        match moments.read(&format!("{name}.second"), shape, second)?.find(|value| value < 0.0) {
            Some(value) => {
                Err(Error::state(&moments.path, format!("{name}.second holds {value}, expected no negative number")))
            }
            None => Ok(()),
        }
    })?;
    moments.finish()?;
    if let Some(average) = average {
        let mut averages = Tensors::open(&training.join(AVERAGE_FILE))?;
        average.restore(|name, shape, values| averages.read(name, shape, values).map(drop))?;
        averages.finish()?;
    }
    Ok(state)
}

/// The recipe a checkpoint was trained by.
pub(crate) fn read_recipe(path: &Path) -> Result<Recipe> {
    let file = path.join(STATE_FOLDER).join(RECIPE_FILE);
    Recipe::load(&file, &[], Path::new("/"))
}

/// A file of floats of which none may be left over.
struct Tensors {
    path: std::path::PathBuf,
    file: Checkpoint,
    unread: HashSet<String>,
}

impl Tensors {
    fn open(path: &Path) -> Result<Self> {
        let file = Checkpoint::open(path)?;
        let unread = file.tensors().map(|info| info.name.clone()).collect();
        Ok(Self { path: path.to_owned(), file, unread })
    }

    /// Fills `into` with a tensor of its width, and gives that back to look at.
    fn read<'a>(&mut self, name: &str, shape: &[usize], into: impl Into<FloatsMut<'a>>) -> Result<Floats<'a>> {
        let into = into.into();
        let (dtype, width) = match into.view().width() {
            Width::F32 => (Dtype::F32, 4),
            Width::Bf16 => (Dtype::Bf16, 2),
        };
        let wrong = |message: String| Err(Error::state(&self.path, format!("tensor {name}: {message}")));
        let Some(info) = self.file.info(name) else { return wrong("missing".into()) };
        if info.dtype != dtype || info.shape != shape {
            return wrong(format!("is {} {:?}, expected {dtype} {shape:?}", info.dtype, info.shape));
        }
        let bytes = self.file.bytes(name)?;
        if bytes.len() != width * into.len() {
            return wrong(format!("has {} bytes, expected {}", bytes.len(), width * into.len()));
        }
        self.unread.remove(name);
        Ok(into.set_bytes(&bytes))
    }

    fn finish(self) -> Result<()> {
        match self.unread.iter().min() {
            Some(name) => Err(Error::state(&self.path, format!("tensor {name}: the model has none of that name"))),
            None => Ok(()),
        }
    }
}
