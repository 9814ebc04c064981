//! Scalars for TensorBoard: event files in `RUN/events`.
//!
//! An event file is a row of records `length u64 · masked crc32c(length) · data · masked crc32c(data)`, all little-endian; the data is the
//! protocol buffer `tensorboard.Event`, of which the handful of fields used here is spelled out below.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use super::{Observer, Recovered, Started, StepReport};
use crate::error::{Error, Result};

/// Name of the folder in a run folder.
pub const EVENTS_FOLDER: &str = "events";

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session_log: Option<SessionLog>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Scalar>,
}

#[derive(Clone, PartialEq, Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `SessionLog.START`: what earlier files say about this step and later ones is out of date.
const SESSION_START: i32 = 1;

/// Writes one event file.
pub struct EventsWriter {
    path: PathBuf,
    file: File,
}

impl EventsWriter {
    /// Begins a new event file in `folder/events`.
    pub fn open(folder: &Path) -> Result<Self> {
        let folder = folder.join(EVENTS_FOLDER);
        std::fs::create_dir_all(&folder).map_err(|error| Error::io(&folder, "cannot create the folder", error))?;
        let seconds = wall_time();
        // Several sessions may begin within one second; names stay in the order of time.
        let names = (0..1000).map(|n| folder.join(format!("events.out.tfevents.{:010}.{n:03}.ernie", seconds as u64)));
        let path = names.into_iter().find(|path| !path.exists());
        let path = path.unwrap_or_else(|| folder.join("events.out.tfevents.ernie"));
        let file = File::create(&path).map_err(|error| Error::io(&path, "cannot create the event file", error))?;
        let mut writer = Self { path, file };
        writer.write(Event { file_version: Some("brain.Event:2".into()), ..Event::default() })?;
        Ok(writer)
    }

    fn write(&mut self, mut event: Event) -> Result<()> {
        event.wall_time = wall_time();
        let record = record(&event.encode_to_vec());
        self.file.write_all(&record).map_err(|error| Error::io(&self.path, "cannot write the events", error))
    }
}

impl Observer for EventsWriter {
    fn started(&mut self, run: &Started) -> Result<()> {
        let session_log = Some(SessionLog { status: SESSION_START });
        self.write(Event { step: run.step as i64 + 1, session_log, ..Event::default() })
    }

    fn recovered(&mut self, recovered: &Recovered) -> Result<()> {
        // What came after the step it went back to is forgotten by whoever reads along.
        let session_log = Some(SessionLog { status: SESSION_START });
        self.write(Event { step: recovered.back_to as i64 + 1, session_log, ..Event::default() })
    }

    fn step(&mut self, report: &StepReport) -> Result<()> {
        let mut value = Vec::new();
        let mut add = |tag: String, number: f64| value.push(Scalar { tag, simple_value: Some(number as f32) });
        add("train/loss".into(), report.loss);
        add("train/lr".into(), report.lr);
        add("train/grad_norm".into(), report.grad_norm);
        add("train/tokens_per_s".into(), report.tokens_per_s);
        if let Some(evaluation) = report.evaluation {
            add("val/loss".into(), evaluation.loss);
            if let Some(bits) = evaluation.bits_per_byte {
                add("val/bits_per_byte".into(), bits);
            }
            if let Some(preferred) = evaluation.preferred {
                add("val/accuracy".into(), preferred.accuracy());
                add("val/margin".into(), preferred.margin());
            }
            if let Some(classified) = evaluation.classified {
                add("val/accuracy".into(), classified.accuracy());
                add("val/macro_f1".into(), classified.macro_f1);
            }
        }
        if let Some(preferred) = report.preferred {
            add("train/accuracy".into(), preferred.accuracy());
            add("train/margin".into(), preferred.margin());
        }
        if let Some(classified) = report.classified {
            add("train/accuracy".into(), classified.accuracy());
        }
        for router in &report.router {
            let layer = router.layer;
            add(format!("router/max_vio/layer_{layer}"), router.max_vio);
            add(format!("router/entropy/layer_{layer}"), router.entropy);
            add(format!("router/dead/layer_{layer}"), router.dead as f64);
        }
        self.write(Event { step: report.step as i64, summary: Some(Summary { value }), ..Event::default() })
    }
}

/// Seconds since 1970; 0 on a machine whose clock stands before that.
fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Frames `data` as one record.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length).to_le_bytes(), data, &masked_crc(data).to_le_bytes()].concat()
}

/// crc32c, rotated and shifted so that a checksum of data that holds checksums stays sound.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> Vec<Event> {
        let bytes = std::fs::read(path).unwrap();
        let mut rest = &bytes[..];
        let mut events = Vec::new();
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(rest[8..12], masked_crc(&rest[..8]).to_le_bytes());
            let data = &rest[12..12 + length];
            assert_eq!(rest[12 + length..16 + length], masked_crc(data).to_le_bytes());
            events.push(Event::decode(data).unwrap());
            rest = &rest[16 + length..];
        }
        events
    }

    #[test]
    fn records_are_framed_as_tensorboard_frames_them() {
        // The first record of a file TensorBoard wrote, at wall time 0: its version.
        let event = Event { file_version: Some("brain.Event:2".into()), ..Event::default() };
        assert_eq!(event.encode_to_vec(), b"\x1a\x0dbrain.Event:2");
        // crc32c("123456789") is the published check value.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(masked_crc(b"123456789"), 0xe306_9283_u32.rotate_right(15).wrapping_add(0xa282_ead8));
    }

    #[test]
    fn scalars_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventsWriter::open(folder.path()).unwrap();
        writer.step(&StepReport { step: 3, loss: 1.5, ..StepReport::default() }).unwrap();
        let second = EventsWriter::open(folder.path()).unwrap();
        assert_ne!(writer.path, second.path);
        let events = read(&writer.path);
        assert_eq!(events[0].file_version.as_deref(), Some("brain.Event:2"));
        assert_eq!(events[1].step, 3);
        let values = &events[1].summary.as_ref().unwrap().value;
        assert_eq!((values[0].tag.as_str(), values[0].simple_value), ("train/loss", Some(1.5)));
    }
}
