//! Stored formats against the `gguf` package's own reading of random blocks (`fixtures/make_formats.py`).

mod common;

use common::{each_level, same};
use ernie_kernels::{Format, Rows, embedding, formats, linear, reference};

struct Case {
    format: Format,
    bytes: Vec<u8>,
    floats: Vec<f32>,
}

fn cases() -> Vec<Case> {
    let mut file: &[u8] = include_bytes!("fixtures/formats.bin");
    let mut take = |n: usize| {
        let (head, tail) = file.split_at(n);
        file = tail;
        head
    };
    (0..11)
        .map(|_| {
            let len = usize::from(take(1)[0]);
            let name = String::from_utf8(take(len).to_vec()).unwrap();
            let counts: Vec<usize> =
                take(8).chunks(4).map(|b| u32::from_le_bytes(b.try_into().unwrap()) as usize).collect();
            let bytes = take(counts[1]).to_vec();
            let floats = take(counts[0] * 4).chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            let format = *Format::ALL.iter().find(|f| f.name() == name).unwrap();
            Case { format, bytes, floats }
        })
        .collect()
}

#[test]
fn rows_widen_as_the_gguf_package_reads_them() {
    each_level(|level| {
        for case in cases() {
            let mut out = vec![f32::NAN; case.floats.len()];
            formats::widen_row(case.format, &case.bytes, &mut out);
            same(&out, &case.floats, &format!("{} at {level}", case.format.name()));
        }
    });
}

#[test]
fn int8_rows_widen_unscaled() {
    each_level(|_| {
        let bytes: Vec<u8> = (0..=255).collect();
        let mut out = vec![0.0; 256];
        formats::widen_row(Format::Int8, &bytes, &mut out);
        assert!(out.iter().zip(&bytes).all(|(&f, &b)| f == f32::from(b as i8)));
    });
}

#[test]
fn a_product_with_stored_rows_equals_the_product_with_their_floats() {
    // 1024 elements as 4 rows of 256: every format's block divides that. Unaligned on purpose.
    let mut random = common::Random(5);
    let x = random.floats(6 * 256);
    each_level(|level| {
        for case in cases() {
            let mut unaligned = vec![0_u8];
            unaligned.extend_from_slice(&case.bytes);
            for rows in [1, 2, 3, 4, 6] {
                let x = &x[..rows * 256];
                let stored = Rows {
                    format: case.format,
                    bytes: &unaligned[1..],
                    scales: None,
                    out_features: 4,
                    in_features: 256,
                };
                let (mut y, mut dense) = (vec![0.0; rows * 4], vec![0.0; rows * 4]);
                linear::forward(x, &stored, &mut y);
                linear::forward(x, &Rows::from_f32(&case.floats, 4, 256), &mut dense);
                let what = format!("{} x {rows} at {level}", case.format.name());
                same(&y, &dense, &what);
                let scale = case.floats.iter().fold(0.0_f32, |m, f| m.max(f.abs()));
                common::close(&y, &reference::linear(x, &case.floats, 256, 4), scale * 2e-5, 1e-5, &what);
            }
        }
    });
}

#[test]
fn embedding_rows_come_out_of_stored_tables() {
    for case in cases() {
        let table = Rows { format: case.format, bytes: &case.bytes, scales: None, out_features: 4, in_features: 256 };
        let mut out = vec![0.0; 3 * 256];
        embedding::gather(&table, &[2, 0, 2], &mut out);
        same(&out[..256], &case.floats[512..768], case.format.name());
        same(&out[256..512], &case.floats[..256], case.format.name());
        same(&out[512..], &case.floats[512..768], case.format.name());
    }
}
