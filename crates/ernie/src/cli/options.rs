//! Options that several commands share, as they are typed.

use crate::{
    adapters::Adapter,
    failure::{Failure, Result},
};
use clap::{Args, ValueEnum, builder::TypedValueParser};
use ernie_model::WeightsAs;

/// What every command takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// Worker threads [default: all cores]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Everywhere")]
    pub(crate) threads: Option<u16>,
    /// Say nothing but data, warnings and errors
    #[arg(long, short, global = true, help_heading = "Everywhere")]
    pub(crate) quiet: bool,
}

/// One JSON document on stdout.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Json {
    /// Print one JSON document on stdout
    #[arg(long)]
    pub(crate) json: bool,
}

/// What the weights become while loading, and what stands beside them.
#[derive(Clone, Debug, Args)]
pub(crate) struct WeightsOption {
    /// What to compute on: the weights as stored, or what they become while loading
    #[arg(long, value_name = "FORM", default_value = "native", hide_possible_values = false)]
    weights: WeightsForm,
    /// An adapter beside the weights, as PEFT writes it and as a run that trains one leaves it in checkpoint-N/adapter; `serve` takes several, each
    /// under its NAME [default: the folder's, or its run's]
    #[arg(long, value_name = "DIR[=NAME]", value_parser = clap::builder::OsStringValueParser::new().try_map(Adapter::typed))]
    pub(crate) adapter: Vec<Adapter>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum WeightsForm {
    /// As stored
    Native,
    /// Widened to f32; all arithmetic is f32
    F32,
    /// bf16 weights and activations, f32 accumulation
    Bf16,
    /// Rounded to 8 bits, a scale a row
    Int8,
    /// Rounded to 4 bits, a scale and a minimum every 32; embedding and head to 8
    Int4,
}

impl WeightsOption {
    /// The form's name, as it is typed.
    pub(crate) fn name(&self) -> &'static str {
        match self.weights {
            WeightsForm::Native => "native",
            WeightsForm::F32 => "f32",
            WeightsForm::Bf16 => "bf16",
            WeightsForm::Int8 => "int8",
            WeightsForm::Int4 => "int4",
        }
    }

    /// The form asked for.
    pub(crate) fn get(&self) -> Result<WeightsAs> {
        Ok(match self.weights {
            WeightsForm::Native => WeightsAs::Native,
            WeightsForm::F32 => WeightsAs::F32,
            WeightsForm::Bf16 => WeightsAs::Bf16,
            WeightsForm::Int8 => WeightsAs::Int8,
            WeightsForm::Int4 => WeightsAs::Int4,
        })
    }

    /// Refuses several adapters, where all that runs goes through the same.
    pub(crate) fn one_adapter(&self) -> Result<()> {
        let [_, _, ..] = &self.adapter[..] else { return Ok(()) };
        let names: Vec<&str> = self.adapter.iter().map(|adapter| adapter.name.as_str()).collect();
        Err(Failure::input(format!("--adapter: {} were given ({}), expected one here", names.len(), names.join(", ")))
            .hint("`ernie serve` takes several, and each request names its own"))
    }
}

/// A list of token ids, `5,6,7`.
pub(crate) fn parse_ids(text: &str) -> std::result::Result<Vec<u32>, String> {
    let inner = text.trim().trim_start_matches('[').trim_end_matches(']');
    let ids: std::result::Result<Vec<u32>, String> = inner
        .split(|c: char| c == ',' || c.is_whitespace())
        .filter(|part| !part.is_empty())
        .map(|part| {
            part.parse::<u32>().map_err(|_| format!("`{part}` is not a token id, expected numbers such as 5,6,7"))
        })
        .collect();
    let ids = ids?;
    if ids.is_empty() {
        return Err("expected at least one token id, such as 5,6,7".to_owned());
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::parse_ids;

    #[test]
    fn ids_are_read_as_people_write_them() {
        assert_eq!(parse_ids("5,6,7"), Ok(vec![5, 6, 7]));
        assert_eq!(parse_ids("[5, 6 7]"), Ok(vec![5, 6, 7]));
        for bad in ["", ",", "-1", "5,x", "4294967296", "1.5"] {
            assert!(parse_ids(bad).is_err(), "{bad}");
        }
    }
}
