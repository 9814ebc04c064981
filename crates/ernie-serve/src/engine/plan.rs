//! The plan of a step: who is let in, and how many rows each running request gets.
//!
//! A pure function of numbers: it sees neither ids nor tensors nor the clock, which is why its promises can be tested
//! over any history. The promises:
//!
//! * a step never exceeds [`Limits::step_tokens`] rows nor [`Limits::max_running`] requests, and what has been let in
//!   never needs more than [`Limits::cache_tokens`] positions, even if every answer grows to its full length;
//! * every request that decodes gets its one row in every step: a long prompt never stalls an answer;
//! * the oldest request that still reads its prompt gets at least one row in every step, and the head of the queue is
//!   let in before anyone behind it: nobody starves.

/// What a step may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests that run at the same time.
    pub max_running: usize,
    /// Rows (tokens) of one forward pass. At least `max_running`.
    pub step_tokens: usize,
    /// Positions that the cache may hold in all.
    pub cache_tokens: usize,
}

/// A request in the queue, oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// Rows of its prompt.
    pub prefill: usize,
    /// Positions that it may come to need.
    pub reserve: usize,
}

/// A request that runs, in the order of admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running {
    /// Rows of its prompt that are not in the cache yet; 0 when it decodes.
    pub prefill_left: usize,
    /// Positions that it may come to need.
    pub reserve: usize,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// How many from the head of the queue are let in.
    pub admit: usize,
    /// Rows for each running request, the newly admitted ones at the end. 0 means it sits this step out.
    pub rows: Vec<usize>,
}

/// Plans a step.
pub fn plan(limits: &Limits, waiting: &[Waiting], running: &[Running]) -> Plan {
    let mut reserved = running.iter().fold(0usize, |sum, r| sum.saturating_add(r.reserve));
    let mut prefill: Vec<usize> = running.iter().map(|r| r.prefill_left).collect();
    let decoding = prefill.iter().filter(|&&left| left == 0).count();
    let mut budget = limits.step_tokens.saturating_sub(decoding);
    let mut asked = prefill.iter().fold(0usize, |sum, &left| sum.saturating_add(left));

    // Letting a request in that would get no row would only hold its reservation idle.
    let mut admit = 0;
    for request in waiting {
        let needed = reserved.saturating_add(request.reserve);
        if prefill.len() >= limits.max_running || needed > limits.cache_tokens || asked >= budget {
            break;
        }
        reserved = needed;
        asked = asked.saturating_add(request.prefill);
        prefill.push(request.prefill);
        admit += 1;
    }

    let rows = prefill
        .iter()
        .map(|&left| {
            if left == 0 {
                return 1;
            }
            let rows = left.min(budget);
            budget -= rows;
            rows
        })
        .collect();
    Plan { admit, rows }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { max_running: 4, step_tokens: 8, cache_tokens: 100 };

    fn waiting(prefill: usize) -> Waiting {
        Waiting { prefill, reserve: prefill + 4 }
    }

    fn running(prefill_left: usize) -> Running {
        Running { prefill_left, reserve: prefill_left + 4 }
    }

    #[test]
    fn decode_rows_come_first_and_prompts_share_the_rest_in_order() {
        let plan = plan(&LIMITS, &[waiting(3)], &[running(0), running(20), running(0)]);
        assert_eq!(plan, Plan { admit: 0, rows: vec![1, 6, 1] });
    }

    #[test]
    fn several_prompts_fit_into_one_step() {
        let plan = plan(&LIMITS, &[waiting(3), waiting(2), waiting(9), waiting(1)], &[]);
        assert_eq!(plan, Plan { admit: 3, rows: vec![3, 2, 3] });
    }

    #[test]
    fn the_head_of_the_queue_is_never_overtaken() {
        let head = Waiting { prefill: 2, reserve: 99 };
        let plan = plan(&LIMITS, &[head, waiting(1)], &[running(0)]);
        assert_eq!(plan, Plan { admit: 0, rows: vec![1] });
    }

    /// One life of an imaginary engine: what a request still has to do.
    #[derive(Debug, Clone)]
    struct Life {
        prefill: usize,
        decode: usize,
        reserve: usize,
        waited_steps: usize,
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Two hundred histories of at least a hundred random arrivals, steps and cancellations each.
        #[test]
        fn histories_keep_the_promises(
            max_running in 1usize..6,
            extra in 0usize..12,
            cache_tokens in 20usize..60,
            events in prop::collection::vec((0u8..4, 1usize..20, 1usize..8), 100..200),
        ) {
            let limits = Limits { max_running, step_tokens: max_running + extra, cache_tokens };
            let mut queue: Vec<Life> = Vec::new();
            let mut active: Vec<Life> = Vec::new();
            let step = |queue: &mut Vec<Life>, active: &mut Vec<Life>| -> Result<(), TestCaseError> {
                let w: Vec<_> = queue.iter().map(|l| Waiting { prefill: l.prefill, reserve: l.reserve }).collect();
                let r: Vec<_> = active.iter().map(|l| Running { prefill_left: l.prefill, reserve: l.reserve }).collect();
                let p = plan(&limits, &w, &r);
                prop_assert!(p.admit <= queue.len());
                active.extend(queue.drain(..p.admit));
                prop_assert_eq!(p.rows.len(), active.len());
                prop_assert!(active.len() <= limits.max_running);
                prop_assert!(p.rows.iter().sum::<usize>() <= limits.step_tokens);
                prop_assert!(active.iter().map(|l| l.reserve).sum::<usize>() <= limits.cache_tokens);
                if let Some(oldest) = active.iter().position(|l| l.prefill > 0) {
                    prop_assert!(p.rows[oldest] > 0, "the oldest prompt stands still");
                }
                prop_assert!(!active.is_empty() || queue.is_empty(), "work waits and nothing runs");
                for (life, &rows) in active.iter_mut().zip(&p.rows) {
                    if life.prefill == 0 {
                        prop_assert_eq!(rows, 1);
                        life.decode -= 1;
                    } else {
                        prop_assert!(rows <= life.prefill);
                        life.prefill -= rows;
                    }
                }
                active.retain(|l| l.prefill > 0 || l.decode > 0);
                for life in queue.iter_mut() {
                    life.waited_steps += 1;
                    // Everything ahead of a request is at most 200 lives of 20 + 8 rows; far below this, nobody waits.
                    prop_assert!(life.waited_steps < 200 * 28, "starved");
                }
                Ok(())
            };
            for (kind, a, b) in events {
                match kind {
                    0 | 1 if a + b <= cache_tokens => {
                        queue.push(Life { prefill: a, decode: b, reserve: a + b, waited_steps: 0 });
                    }
                    2 if !active.is_empty() => { active.remove(a % active.len()); }
                    2 if !queue.is_empty() => { queue.remove(b % queue.len()); }
                    _ => step(&mut queue, &mut active)?,
                }
            }
            let mut left = 200 * 28;
            while !(queue.is_empty() && active.is_empty()) {
                prop_assert!(left > 0, "the queue never empties");
                left -= 1;
                step(&mut queue, &mut active)?;
            }
        }
    }
}
