//! Packed products against their twins: at every level, in any company, from every format.

mod common;

use common::{Random, close, each_level, same};
use ernie_kernels::packed::{Activations, Builder, GROUP, Kind, Matrix, Product, multiply, products};
use ernie_kernels::{Format, Level, Rows, formats, reference};
use proptest::prelude::*;

/// The formats that are packed exactly.
const STORED: [Format; 9] = [
    Format::Int8,
    Format::Q8_0,
    Format::Q4_0,
    Format::Q4_1,
    Format::Q5_0,
    Format::Q5_1,
    Format::Q4K,
    Format::Q5K,
    Format::Q6K,
];

/// Rows of random bytes whose scales are ordinary f16 numbers.
fn stored_bytes(random: &mut Random, format: Format, out: usize, k: usize) -> Vec<u8> {
    let size = format.block_bytes();
    let mut bytes: Vec<u8> = (0..out * format.row_bytes(k).unwrap()).map(|_| random.between(0, 255) as u8).collect();
    let halves: &[usize] = match format {
        Format::Q8_0 | Format::Q4_0 | Format::Q5_0 => &[0],
        Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[0, 2],
        Format::Q6K => &[208],
        _ => &[],
    };
    for block in bytes.chunks_exact_mut(size) {
        for &at in halves {
            block[at..at + 2].copy_from_slice(&half::f16::from_f32(random.unit() * 0.1).to_le_bytes());
        }
    }
    bytes
}

/// A packed matrix of stored rows, and the rows widened by the format's own definition.
fn stored(random: &mut Random, format: Format, out: usize, k: usize) -> (Matrix, Vec<f32>) {
    let bytes = stored_bytes(random, format, out, k);
    let scales: Vec<f32> = (0..out).map(|_| random.unit()).collect();
    let rows = Rows {
        format,
        bytes: &bytes,
        scales: (format == Format::Int8).then_some(&scales[..]),
        out_features: out,
        in_features: k,
    };
    let mut wide = vec![0.0; out * k];
    if k > 0 {
        for (o, wide) in wide.chunks_exact_mut(k).enumerate() {
            let size = format.row_bytes(k).unwrap();
            formats::widen_row(format, &bytes[o * size..][..size], wide);
            if format == Format::Int8 {
                wide.iter_mut().for_each(|w| *w *= scales[o]);
            }
        }
    }
    (Matrix::pack(&rows), wide)
}

fn product(x: &[f32], rows: usize, w: &Matrix) -> Vec<f32> {
    let mut y = vec![f32::NAN; rows * w.out_features()];
    let x = Activations::new(x, rows, w.in_features());
    multiply(&x, &mut [Product { rows: 0..rows, w, y: &mut y }]);
    for made in products(&x, &[w, w]) {
        same(&made, &y, "into a new vector");
    }
    y
}

/// Every level's product equals the twin's, bit for bit; where bytes go through tile registers they have a twin of their own.
fn check(x: &[f32], rows: usize, w: &Matrix, what: &str) {
    // The twin cannot count rows without elements.
    let expected = if w.in_features() == 0 { vec![0.0; rows * w.out_features()] } else { reference::packed(x, w) };
    each_level(|level| {
        let (y, what) = (product(x, rows, w), format!("{what}, {:?} at {level}", w.kind()));
        if level < Level::Amx || w.kind() != Kind::Int8 || w.in_features() == 0 {
            return same(&y, &expected, &what);
        }
        let (expected, bounds) = reference::packed_bf16(x, w);
        for (i, ((y, expected), bound)) in y.iter().zip(&expected).zip(bounds).enumerate() {
            assert!(y == expected || (y - expected).abs() <= bound, "{what}: {i}: {y} not {expected} within {bound}");
        }
    });
}

fn quantized(random: &mut Random, kind: Kind, out: usize, k: usize) -> Matrix {
    let mut builder = Builder::new(kind, out, k);
    builder.push(&random.floats(out * k));
    builder.finish()
}

#[test]
fn every_format_widens_from_panels_as_from_its_blocks() {
    let mut random = Random(1);
    for format in STORED {
        for (out, k) in [(1, 256), (17, 512), (40, 768)] {
            let (w, wide) = stored(&mut random, format, out, k);
            let mut row = vec![0.0; k];
            for o in 0..out {
                w.widen_row(o, &mut row);
                same(&row, &wide[o * k..][..k], &format!("{} row {o} of {out} x {k}", format.name()));
            }
        }
    }
}

#[test]
fn every_format_multiplies_as_its_twin() {
    let mut random = Random(2);
    for format in STORED {
        for (rows, out, k) in [(1, 16, 256), (3, 33, 512), (8, 50, 256), (21, 100, 512)] {
            let (w, _) = stored(&mut random, format, out, k);
            let x = random.floats(rows * k);
            check(&x, rows, &w, &format!("{} {rows} x {k} x {out}", format.name()));
        }
    }
}

#[test]
fn other_blocks_multiply_as_their_twin() {
    // Kinds that no format of ours has: the kernels take any block of 16 to 128.
    let mut random = Random(3);
    for (rows, out, k) in [(1, 18, 300), (5, 49, 131), (17, 65, 128), (2, 1, 1), (50, 430, 1313), (33, 33, 513)] {
        for group in [32, 64, 128] {
            let w = quantized(&mut random, Kind::int4(group), out, k);
            check(&random.floats(rows * k), rows, &w, &format!("int4 {rows} x {k} x {out}"));
        }
        let w = quantized(&mut random, Kind::Int8, out, k);
        check(&random.floats(rows * k), rows, &w, &format!("int8 {rows} x {k} x {out}"));
    }
}

#[test]
fn extremes_are_exact() {
    let mut random = Random(4);
    for (rows, out, k) in [(1, 16, 128), (9, 48, 4096), (20, 49, 1024)] {
        // All weights and activations at the ends of their grids, of one sign and of both.
        for signs in [false, true] {
            let end = |random: &mut Random| if signs && random.next().is_multiple_of(2) { -1.0 } else { 1.0 };
            let weights: Vec<f32> = (0..out * k).map(|_| end(&mut random)).collect();
            let x: Vec<f32> = (0..rows * k).map(|_| -3e38 * end(&mut random)).collect();
            let small: Vec<f32> = x.iter().map(|x| x * 1e-38 * 1e-30).collect();
            for kind in [Kind::Int8, Kind::int4(32), Kind::int4(128)] {
                let mut builder = Builder::new(kind, out, k);
                builder.push(&weights);
                let w = builder.finish();
                check(&small, rows, &w, "small");
                if k == 128 {
                    check(&x, rows, &w, "large");
                }
            }
        }
        // The stored extremes: bytes of -128 and 127.
        let bytes: Vec<u8> = (0..out * k).map(|i| if i % 3 == 0 { 0x80 } else { 0x7F }).collect();
        let scales = vec![1.0; out];
        let w = Matrix::pack(&Rows::from_int8(bytemuck::cast_slice(&bytes), &scales, out, k));
        check(&vec![-1.0; rows * k], rows, &w, "bytes");
    }
}

#[test]
fn empty_shapes_are_nothing() {
    each_level(|_| {
        for (rows, out, k) in [(0, 5, 64), (3, 0, 64), (3, 5, 0), (0, 0, 0)] {
            for kind in [Kind::Int8, Kind::int4(32)] {
                let w = quantized(&mut Random(5), kind, out, k);
                let y = product(&vec![1.0; rows * k], rows, &w);
                assert!(y.len() == rows * out && y.iter().all(|&y| y == 0.0), "{rows} x {k} x {out}: {y:?}");
            }
        }
        multiply(&Activations::new(&[], 0, 7), &mut []);
    });
}

#[test]
fn a_row_with_a_nan_poisons_itself_only() {
    let mut random = Random(6);
    let (rows, out, k) = (11, 20, 200);
    for kind in [Kind::Int8, Kind::int4(32)] {
        let w = quantized(&mut random, kind, out, k);
        let clean = random.floats(rows * k);
        each_level(|level| {
            let expected = product(&clean, rows, &w);
            for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = clean.clone();
                x[4 * k + 150] = poison;
                let y = product(&x, rows, &w);
                for row in 0..rows {
                    let (y, expected) = (&y[row * out..][..out], &expected[row * out..][..out]);
                    if row == 4 {
                        assert!(y.iter().all(|y| y.is_nan()), "{poison} at {level}: {y:?}");
                    } else {
                        same(y, expected, "a neighbour");
                    }
                }
            }
        });
    }
}

#[test]
fn tiny_groups_are_zeros_and_small_ones_are_not() {
    let w = quantized(&mut Random(7), Kind::Int8, 3, GROUP);
    assert!(product(&[1e-35; GROUP], 1, &w).iter().all(|&y| y == 0.0));
    // A power of two, which every rounding keeps.
    let tiny = 2_f32.powi(-100);
    let (large, small) = (product(&[1.0; GROUP], 1, &w), product(&[tiny; GROUP], 1, &w));
    close(&small, &large.iter().map(|y| y * tiny).collect::<Vec<_>>(), 0.0, 1e-6, "scaled");
}

#[test]
fn alone_and_in_company_rows_have_the_same_bits() {
    let mut random = Random(8);
    let (rows, k) = (70, 1184);
    let x = random.floats(rows * k);
    let matrices = [
        quantized(&mut random, Kind::Int8, 100, k),
        quantized(&mut random, Kind::int4(32), 7, k),
        quantized(&mut random, Kind::int4(64), 200, k),
    ];
    each_level(|level| {
        let all = Activations::new(&x, rows, k);
        let mut whole: Vec<Vec<f32>> = matrices.iter().map(|w| vec![0.0; rows * w.out_features()]).collect();
        let mut products: Vec<_> =
            matrices.iter().zip(&mut whole).map(|(w, y)| Product { rows: 0..rows, w, y }).collect();
        multiply(&all, &mut products);
        for (w, whole) in matrices.iter().zip(&whole) {
            let out = w.out_features();
            for range in [0..1, 69..70, 3..8, 10..26, 5..22, 20..53, 0..69] {
                let mut y = vec![0.0; range.len() * out];
                multiply(&all, &mut [Product { rows: range.clone(), w, y: &mut y }]);
                same(&y, &whole[range.start * out..range.end * out], &format!("rows {range:?} at {level}"));
                let alone = product(&x[range.start * k..range.end * k], range.len(), w);
                same(&alone, &y, &format!("rows {range:?} alone at {level}"));
            }
        }
    });
}

#[test]
fn threads_do_not_matter() {
    let mut random = Random(9);
    let (rows, out, k) = (40, 300, 512);
    let (w, x) = (quantized(&mut random, Kind::Int8, out, k), random.floats(rows * k));
    let run = |threads| {
        ernie_kernels::set_threads(threads);
        product(&x, rows, &w)
    };
    same(&run(1), &run(5), "threads");
}

#[test]
fn a_matrix_built_in_pieces_is_the_matrix_built_at_once() {
    let mut random = Random(10);
    let (out, k) = (75, 100);
    let weights = random.floats(out * k);
    for kind in [Kind::Int8, Kind::int4(32)] {
        let whole = Matrix::quantize(kind, &Rows::from_f32(&weights, out, k));
        for piece in [1, 7, 16, 33] {
            let mut builder = Builder::new(kind, out, k);
            for rows in weights.chunks(piece * k) {
                builder.push(rows);
            }
            assert_eq!((builder.missing(), builder.non_finite()), (0, 0));
            let built = builder.finish();
            let (mut a, mut b) = (vec![0.0; k], vec![0.0; k]);
            for row in 0..out {
                built.widen_row(row, &mut a);
                whole.widen_row(row, &mut b);
                same(&a, &b, &format!("row {row} in pieces of {piece}"));
            }
        }
    }
}

#[test]
fn int4_keeps_weights_that_lie_on_its_grid() {
    let mut random = Random(11);
    let (_, wide) = stored(&mut random, Format::Q4_1, 40, 256);
    // A group's ends must be taken for its grid to be found again.
    let mut weights = wide.clone();
    let mut expected = wide;
    for (group, expected) in weights.chunks_mut(32).zip(expected.chunks_mut(32)) {
        let (scale, minimum) = (half::f16::from_f32(0.031).to_f32(), half::f16::from_f32(-0.2).to_f32());
        for (i, (w, e)) in group.iter_mut().zip(expected).enumerate() {
            *w = (i % 16) as f32 * scale + minimum;
            *e = *w;
        }
    }
    let w = Matrix::quantize(Kind::int4(32), &Rows::from_f32(&weights, 40, 256));
    let mut row = vec![0.0; 256];
    for o in 0..40 {
        w.widen_row(o, &mut row);
        same(&row, &expected[o * 256..][..256], "on the grid");
    }
}

#[test]
fn rounding_stays_within_half_a_step() {
    let mut random = Random(12);
    let (out, k) = (20, 320);
    let weights = random.floats(out * k);
    let mut row = vec![0.0; k];
    for (kind, group, steps) in [(Kind::Int8, k, 254.0), (Kind::int4(32), 32, 15.0), (Kind::int4(64), 64, 15.0)] {
        let w = Matrix::quantize(kind, &Rows::from_f32(&weights, out, k));
        for o in 0..out {
            w.widen_row(o, &mut row);
            for (got, exact) in row.chunks(group).zip(weights[o * k..][..k].chunks(group)) {
                // Half a step of at most 2 / steps, and the f16 rounding of scale and minimum.
                close(got, exact, 1.0 / steps + 2e-3, 0.0, &format!("{kind:?}"));
            }
        }
    }
}

#[test]
fn weights_that_are_not_finite_are_counted() {
    let mut weights = vec![0.5; 3 * 40];
    weights[7] = f32::NAN;
    weights[50] = f32::INFINITY;
    for kind in [Kind::Int8, Kind::int4(32)] {
        let mut builder = Builder::new(kind, 3, 40);
        builder.push(&weights);
        assert_eq!(builder.non_finite(), 2);
        let w = builder.finish();
        let mut row = vec![0.0; 40];
        for o in 0..3 {
            w.widen_row(o, &mut row);
            assert!(row.iter().all(|w| w.is_finite()), "{kind:?}: {row:?}");
        }
    }
}

#[test]
fn memory_is_what_the_format_says() {
    let mut random = Random(13);
    let (out, k) = (64, 1024);
    for format in STORED {
        let (w, _) = stored(&mut random, format, out, k);
        let exact = match format {
            Format::Int8 => 1.0 + 4.0 / k as f64,
            // Sixths and fifths of bits are not packed: those values are bytes.
            Format::Q8_0 | Format::Q5_0 => 1.0 + 2.0 / 32.0,
            Format::Q5_1 => 1.0 + 4.0 / 32.0,
            Format::Q5K => 1.0 + 2.0 / 32.0 + 4.0 / 256.0,
            Format::Q6K => 1.0 + 1.0 / 16.0 + 2.0 / 256.0,
            _ => format.block_bytes() as f64 / format.block_elements() as f64,
        };
        // Q4_K's six-bit scales are bytes here.
        let exact = if format == Format::Q4K { 0.5 + 2.0 / 32.0 + 4.0 / 256.0 } else { exact };
        assert_eq!(w.bytes() as f64, exact * (out * k) as f64, "{}", format.name());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn any_shape_multiplies_as_its_twin(
        seed: u64, rows in 0_usize..24, out in 0_usize..70, k in 0_usize..300, kind in 0_usize..4, spread in -30_i32..30,
    ) {
        let mut random = Random(seed);
        let kind = [Kind::Int8, Kind::int4(32), Kind::int4(64), Kind::int4(128)][kind];
        let w = quantized(&mut random, kind, out, k);
        // Magnitudes that differ from element to element.
        let x: Vec<f32> =
            (0..rows * k).map(|_| random.unit() * 2_f32.powi(random.between(0, 8) as i32 + spread)).collect();
        check(&x, rows, &w, &format!("{rows} x {k} x {out}"));
    }
}
