//! Integers of a checkpoint that `quantization_config` describes: what lies beside them.

use ernie_files::{Checkpoint, Dtype};

use super::{Found, Part, Seen, Source, Weights};
use crate::config::Quantization;
use crate::weights::convert::{self, Kind};
use crate::weights::{Format, nibbles};
use crate::{Error, Result};

impl Weights {
    /// The scales `NAME_scale` of an 8-bit tensor, one a row.
    pub(super) fn scales(&mut self, found: &Found) -> Result<Vec<f32>> {
        let (stored, shape) = (&found.place.stored, &found.seen.shape);
        let name = format!("{stored}_scale");
        let &[rows, _] = shape.as_slice() else {
            return Err(Error::tensor(&self.place, stored, "8-bit, but no matrix"));
        };
        if found.place.part != Part::Whole {
            return Err(Error::tensor(
                &self.place,
                stored,
                "8-bit in a fused or transposed layout, which is not built",
            ));
        }
        let Some(seen) = self.see(&name)? else { return Err(self.missing(&name)) };
        if seen.scaled || (seen.shape != [rows, 1] && seen.shape != [rows]) {
            let problem = format!("expected {rows} float scales, found shape {:?}", seen.shape);
            return Err(Error::tensor(&self.place, &name, problem));
        }
        let Source::Checkpoint(checkpoint) = &self.source else { return Err(self.missing(&name)) };
        let bytes = checkpoint.bytes(&name)?;
        if !convert::all_finite(seen.kind, &bytes) {
            return Err(Error::tensor(&self.place, &name, convert::NOT_FINITE));
        }
        let scales = convert::widen(seen.kind, &bytes, None, [rows, 1]);
        self.taken.insert(name, rows);
        Ok(scales)
    }

    /// A tensor of four bits, of which only parts are stored: `NAME_packed` and what belongs to it.
    pub(super) fn see_packed(&self, checkpoint: &Checkpoint, stored: &str) -> Result<Option<Seen>> {
        let name = format!("{stored}_packed");
        let Some(info) = checkpoint.info(&name) else { return Ok(None) };
        let refuse = |problem: String| Err(Error::tensor(&self.place, &name, problem));
        if self.config.quantization != Some(Quantization::Int4Group) {
            return refuse("packed integers without a `pack-quantized` group in config.json".to_owned());
        }
        let (Dtype::I32, &[rows, words]) = (info.dtype, info.shape.as_slice()) else {
            return refuse(format!("expected an I32 matrix, found {} {:?}", info.dtype, info.shape));
        };
        let shape = vec![rows, words.saturating_mul(8)];
        Ok(Some(Seen { kind: Kind::Format(Format::Q4_1), shape, scaled: false, packed: true }))
    }

    /// A tensor of four bits as blocks.
    pub(super) fn blocks(&mut self, found: &Found) -> Result<(Format, Vec<u8>)> {
        let stored = &found.place.stored;
        let refuse = |name: &str, problem: &str| Err(Error::tensor(&self.place, name, problem));
        let (&[rows, columns], Part::Whole) = (found.seen.shape.as_slice(), found.place.part) else {
            return refuse(stored, "4-bit in a fused or transposed layout, which is not built");
        };
        let Source::Checkpoint(checkpoint) = &self.source else { return Err(self.missing(stored)) };
        let [packed, scale, zero, shape] =
            ["packed", "scale", "zero_point", "shape"].map(|part| format!("{stored}_{part}"));

        let Some(seen) = self.see(&scale)? else { return Err(self.missing(&scale)) };
        let bytes = checkpoint.bytes(&scale)?;
        let groups = match seen.shape.as_slice() {
            &[outputs, groups] if outputs == rows && seen.kind.bytes(rows, groups) == Some(bytes.len()) => groups,
            other => return refuse(&scale, &format!("expected {rows} rows of float scales, found shape {other:?}")),
        };
        if seen.scaled || !convert::all_finite(seen.kind, &bytes) {
            return refuse(&scale, "holds values that are not finite (NaN or infinity), or no floats");
        }
        let scales = convert::widen(seen.kind, &bytes, None, [rows, groups]);
        let zeros = match checkpoint.info(&zero) {
            None => None,
            Some(info) if info.dtype == Dtype::I32 => Some(checkpoint.bytes(&zero)?),
            Some(info) => return refuse(&zero, &format!("expected I32, found {}", info.dtype)),
        };
        if checkpoint.info(&shape).is_some_and(|info| info.dtype == Dtype::I64)
            && *checkpoint.bytes(&shape)? != [rows, columns].map(|n| (n as u64).to_le_bytes()).concat()
        {
            return refuse(&shape, &format!("expected [{rows}, {columns}], as the integers have it"));
        }

        let integers = checkpoint.bytes(&packed)?;
        let zeros = zeros.as_deref();
        let all = nibbles::Packed { shape: [rows, columns], integers: &integers, scales: &scales, zeros };
        if let Err(problem) = all.check() {
            return refuse(&packed, &problem);
        }
        let (format, blocks) = all.blocks();
        if !convert::all_finite(Kind::Format(format), &blocks) {
            return refuse(&scale, "holds scales beyond the range of f16, which is not built");
        }
        let parts = [packed, scale, zero, shape].map(|name| {
            let elements = checkpoint.info(&name).map_or(0, |info| info.elements());
            (name, elements)
        });
        // The tensor itself is none that is stored.
        self.taken.remove(stored);
        self.taken.extend(parts);
        Ok((format, blocks))
    }
}
