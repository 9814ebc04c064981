//! New vectors, filled by all threads: what one thread fills the others wait for, and a prefill makes gigabytes of them.

use std::mem::MaybeUninit;

use crate::pool::{self, GRAIN};

/// `n` zeros.
pub fn zeros(n: usize) -> Vec<f32> {
    made(n, |_, piece| piece.fill(MaybeUninit::new(0.0)), |_, _| ())
}

/// A copy.
pub fn copy(x: &[f32]) -> Vec<f32> {
    mapped(x, |_, _| ())
}

/// A copy changed by `f`, which is called with the first index of a piece and the piece while it is in the cache.
pub(crate) fn mapped(x: &[f32], f: impl Fn(usize, &mut [f32]) + Sync + Send) -> Vec<f32> {
    let take = |at: usize, piece: &mut [MaybeUninit<f32>]| {
        for (to, &x) in piece.iter_mut().zip(&x[at..]) {
            to.write(x);
        }
    };
    made(x.len(), take, f)
}

/// `n` elements, written by `first`, which writes all of its piece, and then changed by `then`.
fn made(
    n: usize,
    first: impl Fn(usize, &mut [MaybeUninit<f32>]) + Sync + Send,
    then: impl Fn(usize, &mut [f32]) + Sync + Send,
) -> Vec<f32> {
    let mut made = Vec::with_capacity(n);
    pool::pieces(&mut made.spare_capacity_mut()[..n], GRAIN, |at, piece| {
        first(at, piece);
        let (start, len) = (piece.as_mut_ptr().cast::<f32>(), piece.len());
        // SAFETY: `first`, one of the two above, has written every element of the piece, which is borrowed until the end of this.
        then(at, unsafe { std::slice::from_raw_parts_mut(start, len) });
    });
    // SAFETY: the pieces cover the first `n` elements, and a panic in one would not have come here.
    unsafe { made.set_len(n) };
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_is_made_once() {
        for n in [0, 1, GRAIN - 1, GRAIN, 3 * GRAIN + 7] {
            let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
            assert_eq!(zeros(n), vec![0.0; n]);
            assert_eq!(copy(&x), x);
            let doubled = mapped(&x, |at, piece| {
                assert!(piece.first().is_none_or(|&first| first == at as f32));
                piece.iter_mut().for_each(|x| *x *= 2.0);
            });
            assert!(doubled.iter().zip(&x).all(|(d, x)| *d == 2.0 * x), "{n}");
        }
    }
}
