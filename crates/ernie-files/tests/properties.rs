//! Whatever a file's bytes are, reading them ends: in values or in one clear line, without a panic and within memory that
//! the file's size justifies. Cases are 2,500 a format, or `ERNIE_TEST_CASES`.

mod common;

use std::path::Path;

use common::{Gguf as Made, Random, cases, mutate, peak_virtual_bytes, shard};
use ernie_files::gguf::Gguf;
use ernie_files::{Checkpoint, Error};

/// More than any of these small files could justify, and far below what their lengths may ask for.
const MEMORY_BYTES: u64 = 1 << 30;

/// Runs `read` on many broken forms of `sound`, written to `path`.
fn survives(
    number: u64,
    sound: &[u8],
    front: usize,
    path: &Path,
    seed: u64,
    mut read: impl FnMut() -> Result<(), Error>,
) {
    let before = peak_virtual_bytes();
    let mut random = Random(seed);
    let mut taken = 0;
    for case in 0..number {
        let mut bytes = sound.to_vec();
        mutate(&mut bytes, front, &mut random);
        std::fs::write(path, &bytes).unwrap();
        match read() {
            Ok(()) => taken += 1,
            Err(error) => {
                let message = error.to_string();
                assert!(error.is_input(), "case {case}: {message}");
                assert!(!message.contains('\n') && message.len() < 2_000, "case {case}: {message}");
            }
        }
    }
    // Some changes touch data alone, so some files stay sound; most do not.
    assert!(taken > 0 && taken < number, "{taken} of {number}");
    if let (Some(before), Some(after)) = (before, peak_virtual_bytes()) {
        assert!(after - before < MEMORY_BYTES, "{} bytes were reserved", after - before);
    }
}

fn read_checkpoint(path: &Path) -> Result<(), Error> {
    let checkpoint = Checkpoint::open(path)?;
    let mut total = 0;
    for info in checkpoint.tensors() {
        let bytes = checkpoint.bytes(&info.name)?;
        assert_eq!(bytes.len(), info.bytes());
        assert_eq!(bytes.len(), info.elements() * info.dtype.size_bytes());
        total += bytes.len() as u64;
        // Every byte is really there.
        assert!(bytes.iter().map(|&byte| u64::from(byte)).sum::<u64>() < u64::MAX);
    }
    assert_eq!(total, checkpoint.total_bytes());
    Ok(())
}

#[test]
fn safetensors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    shard(&path, &["a", "layers.0.weight", "b", "layers.1.weight"]);
    let sound = std::fs::read(&path).unwrap();
    survives(cases(), &sound, sound.len() - 64, &path, 1, || read_checkpoint(&path));
}

#[test]
fn a_real_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/dense/model.safetensors");
    let sound = std::fs::read(fixture).unwrap();
    // Larger, so fewer: its header has the real names and shapes.
    survives(cases().div_ceil(5), &sound, 4096, &path, 2, || read_checkpoint(&path));
}

#[test]
fn index() {
    let folder = tempfile::tempdir().unwrap();
    shard(&folder.path().join("one.safetensors"), &["a", "b"]);
    shard(&folder.path().join("two.safetensors"), &["c"]);
    let sound = br#"{"metadata":{"total_size":48},"weight_map":{"a":"one.safetensors","b":"one.safetensors","c":"two.safetensors"}}"#;
    let path = folder.path().join("model.safetensors.index.json");
    survives(cases(), sound, sound.len(), &path, 3, || read_checkpoint(folder.path()));
}

#[test]
fn gguf() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    let sound = Made::sound().bytes();
    survives(cases(), &sound, sound.len() - 100, &path, 4, || {
        let gguf = Gguf::open(&path)?;
        for tensor in gguf.tensors() {
            let bytes = gguf.bytes(&tensor.name)?;
            let rows = tensor.elements() / tensor.shape[tensor.shape.len() - 1];
            let row = tensor.kind.row_bytes(tensor.shape[tensor.shape.len() - 1]).unwrap();
            assert_eq!(bytes.len(), rows * row);
            assert!(bytes.iter().map(|&byte| u64::from(byte)).sum::<u64>() < u64::MAX);
        }
        for key in gguf.metadata().keys() {
            let _ = gguf.get_u32(key);
            let _ = gguf.get_f32(key);
            let _ = gguf.get_strings(key);
            let _ = gguf.get_i64s(key);
            let _ = gguf.get_f32s(key);
        }
        Ok(())
    });
}

#[test]
fn bytes_without_any_sense() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    let mut random = Random(5);
    for _ in 0..cases() / 5 {
        let mut bytes: Vec<u8> = (0..random.below(200)).map(|_| random.next() as u8).collect();
        if random.below(2) == 0 && bytes.len() > 8 {
            bytes[..8].copy_from_slice(b"GGUF\x03\0\0\0");
        } else if bytes.len() > 9 {
            bytes[1..8].fill(0);
            bytes[8] = b'{';
        }
        std::fs::write(&path, &bytes).unwrap();
        assert!(Checkpoint::open(&path).is_err());
        // An all but empty GGUF file may be sound.
        let _ = Gguf::open(&path);
    }
}
