//! The plan's promises, over any history.

use super::*;
use proptest::prelude::*;

const LIMITS: Limits = Limits { max_running: 4, step_tokens: 8, block_tokens: 4 };

fn urgency(arrival: u64) -> Urgency {
    Urgency { due: 0, arrival }
}

fn waiting(arrival: u64, rows: usize) -> Waiting {
    Waiting { urgency: urgency(arrival), rows, cached: 0, idle: 0 }
}

fn running(arrival: u64, past: usize, left: usize) -> Running {
    let held = past.div_ceil(4);
    Running { urgency: urgency(arrival), past, left, draft: 0, held, own: held }
}

fn planned(preempt: &[usize], rows: &[usize], admit: &[(usize, usize)]) -> Plan {
    Plan { preempt: preempt.to_vec(), rows: rows.to_vec(), admit: admit.to_vec() }
}

#[test]
fn single_rows_come_first_and_prompts_share_the_rest_in_order() {
    let plan = plan(&LIMITS, 100, &[waiting(3, 3)], &[running(0, 5, 1), running(1, 0, 20), running(2, 5, 1)]);
    assert_eq!(plan, planned(&[], &[1, 6, 1], &[]));
}

#[test]
fn several_prompts_fit_into_one_step() {
    let queue = [waiting(0, 3), waiting(1, 2), waiting(2, 9), waiting(3, 1)];
    assert_eq!(plan(&LIMITS, 100, &queue, &[]), planned(&[], &[], &[(0, 3), (1, 2), (2, 3)]));
}

#[test]
fn the_most_urgent_is_never_overtaken() {
    let late = Waiting { urgency: Urgency { due: -2, arrival: 9 }, ..waiting(9, 80) };
    let queue = [waiting(1, 1), late];
    assert_eq!(plan(&LIMITS, 5, &queue, &[running(0, 5, 1)]), planned(&[], &[1], &[]));
    assert_eq!(plan(&LIMITS, 100, &queue, &[running(0, 5, 1)]), planned(&[], &[1], &[(1, 7)]));
}

#[test]
fn what_was_read_before_costs_no_rows_but_its_idle_blocks() {
    let found = Waiting { cached: 8, idle: 2, ..waiting(0, 10) };
    assert_eq!(plan(&LIMITS, 3, &[found], &[]), planned(&[], &[], &[(0, 2)]));
    assert_eq!(plan(&LIMITS, 2, &[found], &[]), planned(&[], &[], &[]));
    let held = Waiting { idle: 0, ..found };
    assert_eq!(plan(&LIMITS, 1, &[held], &[]), planned(&[], &[], &[(0, 2)]));
}

#[test]
fn the_least_urgent_gives_way_and_nobody_comes_in() {
    let now = [running(7, 4, 1), running(3, 4, 1), running(5, 4, 1)];
    assert_eq!(plan(&LIMITS, 0, &[waiting(9, 1)], &now), planned(&[0], &[0, 1, 0], &[]));
    assert_eq!(plan(&LIMITS, 1, &[waiting(9, 1)], &now), planned(&[0], &[0, 1, 1], &[]));
    assert_eq!(plan(&LIMITS, 3, &[waiting(9, 1)], &now), planned(&[], &[1, 1, 1], &[]));
}

#[test]
fn drafts_take_what_is_left_over() {
    let drafting = |arrival, past| Running { draft: 5, ..running(arrival, past, 1) };
    // Both have their row; three of the first one's drafts fit into its block.
    let plan_of = |free| plan(&LIMITS, free, &[], &[drafting(0, 4), drafting(1, 5)]).rows;
    assert_eq!(plan_of(1), [4, 3]);
    assert_eq!(plan_of(2), [6, 2]);
    assert_eq!(plan(&LIMITS, 9, &[], &[drafting(0, 4), running(1, 0, 30)]).rows, [1, 7]);
}

/// One life of an imaginary engine: what a request still has to do, and what it holds.
#[derive(Debug, Clone)]
struct Life {
    urgency: Urgency,
    prompt: usize,
    answer: usize,
    said: usize,
    past: usize,
    held: usize,
}

impl Life {
    fn rows(&self) -> usize {
        self.prompt + self.said
    }
}

struct World {
    limits: Limits,
    capacity: usize,
    queue: Vec<Life>,
    active: Vec<Life>,
    steps: usize,
}

impl World {
    fn free(&self) -> usize {
        self.capacity - self.active.iter().map(|life| life.held).sum::<usize>()
    }

    fn step(&mut self) -> Result<(), TestCaseError> {
        let waiting: Vec<_> = self
            .queue
            .iter()
            .map(|life| Waiting { urgency: life.urgency, rows: life.rows(), cached: 0, idle: 0 })
            .collect();
        let running: Vec<_> = self
            .active
            .iter()
            .map(|life| Running {
                urgency: life.urgency,
                past: life.past,
                left: life.rows() - life.past,
                draft: (life.said % 3).min(life.answer.saturating_sub(life.said + 1)),
                held: life.held,
                own: life.held,
            })
            .collect();
        let free = self.free();
        let plan = plan(&self.limits, free, &waiting, &running);
        prop_assert_eq!(plan.rows.len(), running.len());
        let fed = plan.rows.iter().sum::<usize>() + plan.admit.iter().map(|admitted| admitted.1).sum::<usize>();
        prop_assert!(fed <= self.limits.step_tokens);
        prop_assert!(fed > 0 || (running.is_empty() && waiting.is_empty()), "work waits and nothing runs");

        let first = (0..running.len()).min_by_key(|&at| running[at].urgency);
        prop_assert!(first.is_none_or(|at| plan.rows[at] > 0), "the most urgent stands still");
        if free >= self.limits.step_tokens {
            let mut single = running.iter().zip(&plan.rows).filter(|(r, _)| r.left == 1);
            prop_assert!(single.all(|(_, &rows)| rows > 0), "an answer is stalled");
        }
        let leader = (0..waiting.len()).min_by_key(|&at| waiting[at].urgency);
        prop_assert!(plan.admit.first().is_none_or(|admitted| Some(admitted.0) == leader), "overtaken");
        prop_assert!(plan.preempt.is_empty() || plan.admit.is_empty());
        for &victim in &plan.preempt {
            prop_assert_eq!(plan.rows[victim], 0);
            for (at, other) in running.iter().enumerate().filter(|(at, _)| !plan.preempt.contains(at)) {
                prop_assert!(other.urgency < running[victim].urgency, "{} should have gone first", at);
            }
        }

        let let_in: Vec<Life> = plan.admit.iter().map(|&(at, _)| self.queue[at].clone()).collect();
        self.queue.retain(|life| let_in.iter().all(|other| other.urgency.arrival != life.urgency.arrival));
        let mut active = Vec::new();
        for (at, mut life) in self.active.drain(..).enumerate() {
            if plan.preempt.contains(&at) {
                (life.past, life.held) = (0, 0);
                self.queue.push(life);
            } else {
                active.push((plan.rows[at], life));
            }
        }
        active.extend(plan.admit.iter().map(|admitted| admitted.1).zip(let_in));
        prop_assert!(active.len() <= self.limits.max_running);
        for (rows, mut life) in active {
            let left = life.rows() - life.past;
            prop_assert!(rows <= left || left == 1);
            // Of the drafted rows none, some or all are kept.
            let kept = rows.min(left) + (self.steps % rows.max(1)).min(rows.saturating_sub(left));
            life.held = life.held.max((life.past + rows).div_ceil(self.limits.block_tokens));
            life.past += kept;
            if rows >= left {
                life.said += 1 + kept.saturating_sub(left);
            }
            if life.said < life.answer {
                self.active.push(life);
            }
        }
        prop_assert!(self.active.iter().map(|life| life.held).sum::<usize>() <= self.capacity, "too many blocks");
        self.steps += 1;
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Two hundred histories of at least a hundred random arrivals, steps and cancellations each.
    #[test]
    fn histories_keep_the_promises(
        max_running in 1usize..6,
        extra in 0usize..12,
        block_tokens in 1usize..6,
        slack in 0usize..10,
        events in prop::collection::vec((0u8..4, 1usize..20, 1usize..12, -2i64..3), 100..200),
    ) {
        // The largest request just fits, so that blocks are short most of the time.
        let capacity = 32usize.div_ceil(block_tokens) + slack;
        let limits = Limits { max_running, step_tokens: max_running + extra, block_tokens };
        let mut world = World { limits, capacity, queue: Vec::new(), active: Vec::new(), steps: 0 };
        let mut arrival = 0;
        for (kind, prompt, answer, priority) in events {
            match kind {
                0 | 1 => {
                    arrival += 1;
                    let urgency = Urgency { due: world.steps as i64 - 8 * priority, arrival };
                    world.queue.push(Life { urgency, prompt, answer, said: 0, past: 0, held: 0 });
                }
                2 if !world.active.is_empty() => { world.active.remove(prompt % world.active.len()); }
                2 if !world.queue.is_empty() => { world.queue.remove(answer % world.queue.len()); }
                _ => world.step()?,
            }
        }
        // Every life alone takes at most 20 + 12 steps, and as many again each time it gives way.
        let mut left = 200 * 32 * 4;
        while !(world.queue.is_empty() && world.active.is_empty()) {
            prop_assert!(left > 0, "somebody starves");
            left -= 1;
            world.step()?;
        }
        prop_assert_eq!(world.free(), capacity, "a block leaks");
    }
}
