//! Speculation: guesses of the next tokens, and whether trying them pays.
//!
//! A guess is what followed the last few ids where they stood before (prompt lookup; Saxena 2023,
//! github.com/apoorvumang/prompt-lookup-decoding). The engine reads guessed rows together with the row that it must read
//! anyway and keeps a guess while it equals the token that it picks, so an answer's tokens are the same with and
//! without; only time differs. A guessed row is tried while its chance to be kept is higher than its cost: the chance
//! is learned from each request's own guesses, the cost from the time that steps take.

/// Ids that must match before what followed them is a guess.
const MATCH: std::ops::RangeInclusive<usize> = 2..=4;

/// How far back a match is looked for.
const WINDOW: usize = 16_384;

/// After so many tokens without a guess one is tried again.
const RETRY_TOKENS: usize = 64;

/// How much one guess tells about the next.
const LEARN: f64 = 0.2;

/// At most `most` ids that may follow `ids`; the longest match counts, the latest among equals.
pub(super) fn guess(ids: &[u32], most: usize) -> Vec<u32> {
    let window = &ids[ids.len().saturating_sub(WINDOW)..];
    let mut best: Option<(usize, usize)> = None;
    for end in (1..window.len()).rev() {
        let matched = window[..end].iter().rev().zip(window.iter().rev()).take(*MATCH.end());
        let length = matched.take_while(|(before, last)| before == last).count();
        if MATCH.contains(&length) && best.is_none_or(|(longest, _)| length > longest) {
            best = Some((length, end));
            if length == *MATCH.end() {
                break;
            }
        }
    }
    best.map_or_else(Vec::new, |(_, end)| window[end..].iter().take(most).copied().collect())
}

/// What a request has learned about its guesses.
#[derive(Debug, Clone)]
pub(super) struct Drafter {
    /// The chance that a guess is kept.
    chance: f64,
    /// Tokens since a guess was tried.
    rest: usize,
}

impl Default for Drafter {
    fn default() -> Self {
        Self { chance: 0.5, rest: 0 }
    }
}

impl Drafter {
    /// How many rows to try, up to `most`, when one costs `cost` tokens' worth of time.
    pub(super) fn depth(&self, most: usize, cost: f64) -> usize {
        let mut chance = 1.0;
        let pays = (0..most).take_while(|_| {
            chance *= self.chance;
            chance > cost
        });
        match pays.count() {
            // The text may have turned to something that repeats itself.
            0 if self.rest >= RETRY_TOKENS => most.min(1),
            depth => depth,
        }
    }

    /// Learns that `kept` of `tried` guesses were right.
    pub(super) fn learn(&mut self, tried: usize, kept: usize) {
        self.rest = if tried == 0 { self.rest + 1 } else { 0 };
        for _ in 0..kept {
            self.chance += LEARN * (1.0 - self.chance);
        }
        if kept < tried {
            self.chance -= LEARN * self.chance;
        }
    }
}

/// What rows cost: step time as a straight line over the number of rows, recent steps first.
#[derive(Debug, Clone, Default)]
pub(super) struct Pace {
    weight: f64,
    rows: f64,
    seconds: f64,
    rows_rows: f64,
    rows_seconds: f64,
}

impl Pace {
    /// Steps with more rows than this are bound by arithmetic and say nothing about a few rows more.
    const MOST_ROWS: usize = 48;

    /// Notes that a step of `rows` rows took `seconds`.
    pub(super) fn note(&mut self, rows: usize, seconds: f64) {
        if rows == 0 || rows > Self::MOST_ROWS {
            return;
        }
        let (rows, fade) = (rows as f64, 0.98);
        for (sum, new) in [
            (&mut self.weight, 1.0),
            (&mut self.rows, rows),
            (&mut self.seconds, seconds),
            (&mut self.rows_rows, rows * rows),
            (&mut self.rows_seconds, rows * seconds),
        ] {
            *sum = *sum * fade + new;
        }
    }

    /// What one row more costs in a step of `rows` rows, in tokens that the same time would have given: 1 where time
    /// grows with the rows, near 0 where weights are read once for all of them.
    pub(super) fn cost(&self, rows: usize) -> f64 {
        /// Of a step of one row, before anything was measured.
        const GUESS: f64 = 0.15;
        let rows = rows.max(1) as f64;
        let spread = self.rows_rows * self.weight - self.rows * self.rows;
        if self.weight < 4.0 || spread < 0.05 * self.weight * self.weight {
            return (GUESS * rows / (1.0 + GUESS * (rows - 1.0))).min(1.0);
        }
        let slope = (self.rows_seconds * self.weight - self.rows * self.seconds) / spread;
        let base = (self.seconds - slope * self.rows) / self.weight;
        let step = base + slope * rows;
        if step > 0.0 { (slope * rows / step).clamp(0.02, 1.0) } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_longest_latest_match_is_continued() {
        assert_eq!(guess(&[1, 2, 3, 9, 8, 1, 2, 3], 3), [9, 8, 1]);
        assert_eq!(guess(&[7, 2, 3, 5, 1, 2, 3, 6, 0, 2, 3], 1), [6], "the latest among equals");
        assert_eq!(guess(&[1, 2, 3, 5, 0, 2, 3, 6, 1, 2, 3], 1), [5], "the longest before the latest");
        assert_eq!(guess(&[4, 4, 4], 5), [4], "a match may overlap itself");
        assert!(guess(&[1, 2, 3], 5).is_empty() && guess(&[3, 1, 3], 5).is_empty() && guess(&[], 5).is_empty());
    }

    #[test]
    fn drafts_stop_where_they_do_not_pay_and_come_back() {
        let mut drafter = Drafter::default();
        assert_eq!(drafter.depth(8, 0.2), 2);
        (0..20).for_each(|_| drafter.learn(2, 2));
        assert_eq!(drafter.depth(8, 0.2), 8);
        assert_eq!(drafter.depth(8, 1.0), 0, "a row that costs a token never pays");
        (0..20).for_each(|_| drafter.learn(1, 0));
        assert_eq!(drafter.depth(8, 0.05), 0);
        (0..RETRY_TOKENS).for_each(|_| drafter.learn(0, 0));
        assert_eq!((drafter.depth(8, 0.05), drafter.depth(0, 0.05)), (1, 0));
    }

    #[test]
    fn the_cost_of_a_row_is_read_off_the_steps() {
        let mut pace = Pace::default();
        assert!(pace.cost(1) < 0.2 && pace.cost(16) > 0.7);
        (0..40).for_each(|i| pace.note(1 + i % 5, 0.010 + 0.001 * (1 + i % 5) as f64));
        assert!((pace.cost(1) - 1.0 / 11.0).abs() < 1e-6 && (pace.cost(30) - 0.75).abs() < 1e-6);
    }

    proptest! {
        #[test]
        fn guesses_stand_in_the_text(ids in prop::collection::vec(0u32..3, 0..60), most in 0usize..9) {
            let guess = guess(&ids, most);
            prop_assert!(guess.len() <= most);
            let length = guess.len() + 2;
            let stands = ids.windows(length).any(|w| w[..2] == ids[ids.len() - 2..] && w[2..] == guess[..]);
            prop_assert!(guess.is_empty() || stands);
        }
    }
}
