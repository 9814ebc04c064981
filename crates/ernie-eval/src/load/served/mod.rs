//! Load on a server from outside, over HTTP: how long readers wait, how much it does, and what it refuses.
//!
//! The clock of a request starts when it was due, not when this side got round to sending it, so that a server that falls
//! behind is not forgiven (coordinated omission). In an open loop requests come when they come; in a closed loop each of
//! some readers asks again when it was answered. The same seed gives the same requests at the same times.

mod summary;
mod target;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ernie_serve::engine::uniform;

pub use summary::{Goal, Quantiles, Summary};
pub use target::{Ended, Failure, Sample, Target};

use super::{Arrival, Workload, setting};
use crate::Result;
use target::Ask;

/// Requests that may be open at a time in an open loop; what comes beyond is a failure of its own kind.
const MOST_OPEN: usize = 4096;

/// Stack of a thread that reads one answer.
const STACK: usize = 512 << 10;

/// Who asks when.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pace {
    /// Requests come at random, so many a second in the mean, whatever became of the earlier ones.
    RatePerS(f64),
    /// So many readers, each with one request at a time.
    Clients(usize),
}

/// The requests of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    /// How many and how long.
    pub workload: Workload,
    /// When.
    pub pace: Pace,
    /// Prompts are of ids from three tenths of this up to it: 1000 is within the vocabularies of real models, and what begins at
    /// 300 is beyond the single bytes and special tokens of most.
    pub vocab: u32,
    /// Seconds after which no further request is made.
    pub most_s: f64,
    /// Share of the readers that go away before their answer ends.
    pub leave_share: f64,
}

impl Load {
    /// The requests, in the order in which they are made.
    ///
    /// # Errors
    /// [`crate::Error::Setting`] for a setting out of its range.
    pub fn arrivals(&self) -> Result<Vec<Arrival>> {
        if !(0.0..=1.0).contains(&self.leave_share) {
            return Err(setting("leave_share", self.leave_share, "a share of 0 to 1"));
        }
        if self.most_s.is_nan() || self.most_s <= 0.0 {
            return Err(setting("most_s", self.most_s, "seconds above 0"));
        }
        let rate = match self.pace {
            Pace::RatePerS(rate) => rate,
            Pace::Clients(0) => return Err(setting("clients", 0, "at least 1")),
            Pace::Clients(more) if more > MOST_OPEN => {
                return Err(setting("clients", more, &format!("at most {MOST_OPEN}")));
            }
            Pace::Clients(_) => f64::INFINITY,
        };
        if self.vocab == 0 {
            return Err(setting("vocab", 0, "at least 1"));
        }
        let first = (u64::from(self.vocab) * 3 / 10) as u32;
        let mut arrivals = self.workload.arrivals((self.vocab - first) as usize, rate)?;
        arrivals.iter_mut().flat_map(|arrival| &mut arrival.prompt).for_each(|id| *id += first);
        Ok(arrivals)
    }

    /// After how many tokens the reader of request `n` goes away, if it does.
    fn leave_after(&self, n: usize, max_tokens: usize) -> Option<usize> {
        let seed = self.workload.seed ^ 0x6c65_6176_6572_7321;
        let draw = |what: u64| uniform(seed, 2 * n as u64 + what);
        (draw(0) < self.leave_share).then(|| 1 + (draw(1) * max_tokens as f64 / 2.0) as usize)
    }
}

/// Makes the requests and waits for all of them: what became of each, and the seconds that it took.
///
/// # Errors
/// [`crate::Error::Setting`] for a setting out of its range. What the server does is in the samples.
pub fn run(target: &Target, load: &Load) -> Result<(Vec<Sample>, f64)> {
    let arrivals = load.arrivals()?;
    let samples = Mutex::new(Vec::with_capacity(arrivals.len()));
    let keep = |sample: Sample| match samples.lock() {
        Ok(mut samples) => samples.push(sample),
        Err(poisoned) => poisoned.into_inner().push(sample),
    };
    let start = Instant::now();
    let ask = |n: usize, due_s: f64| {
        let Arrival { prompt, max_tokens, sampling, .. } = &arrivals[n];
        let leave_after = load.leave_after(n, *max_tokens);
        keep(target.complete(&Ask { prompt, max_tokens: *max_tokens, sampling, leave_after }, start, due_s));
    };
    match load.pace {
        Pace::Clients(clients) => {
            let next = AtomicUsize::new(0);
            thread::scope(|scope| {
                for _ in 0..clients.min(arrivals.len()) {
                    // One that cannot be started is done without: the others take its requests.
                    let _ = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, || {
                        loop {
                            let (n, due_s) = (next.fetch_add(1, Ordering::Relaxed), start.elapsed().as_secs_f64());
                            if n >= arrivals.len() || due_s > load.most_s {
                                break;
                            }
                            ask(n, due_s);
                        }
                    });
                }
            });
        }
        Pace::RatePerS(_) => {
            let open = AtomicUsize::new(0);
            thread::scope(|scope| {
                for (n, arrival) in arrivals.iter().enumerate().take_while(|(_, a)| a.at_s <= load.most_s) {
                    let due_s = arrival.at_s;
                    thread::sleep(Duration::from_secs_f64((due_s - start.elapsed().as_secs_f64()).max(0.0)));
                    let (open, ask) = (&open, &ask);
                    let one = move || {
                        ask(n, due_s);
                        open.fetch_sub(1, Ordering::Relaxed);
                    };
                    let free = open.fetch_add(1, Ordering::Relaxed) < MOST_OPEN;
                    if !free || thread::Builder::new().stack_size(STACK).spawn_scoped(scope, one).is_err() {
                        open.fetch_sub(1, Ordering::Relaxed);
                        let ended = Ended::Failed(Failure::ClientLimit);
                        keep(Sample { due_s, first_token_s: None, gaps_s: Vec::new(), end_s: due_s, tokens: 0, ended });
                    }
                }
            });
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    Ok((samples.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner), seconds))
}
