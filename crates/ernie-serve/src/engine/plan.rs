//! The plan of a step: who gives way, who is let in, and how many rows each request gets.
//!
//! A pure function of numbers: it sees neither ids nor tensors nor the clock, which is why its promises can be tested
//! over any history. The promises:
//!
//! * a step never exceeds [`Limits::step_tokens`] rows nor [`Limits::max_running`] requests, nor the blocks there are;
//! * every request that has one row left to read (an answer that grows, most of all) gets it in every step while there
//!   are blocks: a long prompt never stalls an answer;
//! * where blocks are short, the least urgent request gives its own back, and only to a more urgent one; the most
//!   urgent never gives way and gets a row in every step, save one in which blocks that others shared become free;
//! * the most urgent of the queue is let in before anyone behind it, and waiting makes urgent: nobody starves.

/// What a step may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests that run at the same time.
    pub max_running: usize,
    /// Rows (tokens) of one forward pass. At least `max_running`.
    pub step_tokens: usize,
    /// Positions of a block of the cache, at least 1.
    pub block_tokens: usize,
}

/// How urgent a request is. It never changes, so whoever is the most urgent stays so until it is done, and only a
/// bounded number of later arrivals can come before anyone: waiting makes urgent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Urgency {
    /// The step in which it came, less so many for each unit of its priority; lower is more urgent.
    pub due: i64,
    /// Its number among all arrivals; lower is more urgent among equals.
    pub arrival: u64,
}

/// A request in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// How urgent it is.
    pub urgency: Urgency,
    /// Rows that it must read before it answers, those that an earlier request has read included.
    pub rows: usize,
    /// Rows of these that are in the cache: whole blocks, fewer than `rows`.
    pub cached: usize,
    /// Blocks of these that nobody holds now; they are free until it is let in.
    pub idle: usize,
}

/// A request that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running {
    /// How urgent it is.
    pub urgency: Urgency,
    /// Positions in the cache.
    pub past: usize,
    /// Rows to read before its next token, at least 1.
    pub left: usize,
    /// Rows that it would like to try beyond these.
    pub draft: usize,
    /// Blocks that it holds.
    pub held: usize,
    /// Blocks of these that become free when it gives way.
    pub own: usize,
}

/// What a step does, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Who gives its blocks back and returns to the queue: indices of `running`.
    pub preempt: Vec<usize>,
    /// Rows for each of `running`; 0 means it sits this step out.
    pub rows: Vec<usize>,
    /// Who is let in, most urgent first: indices of `waiting`, and rows of each beyond `cached`.
    pub admit: Vec<(usize, usize)>,
}

/// Plans a step. `free` counts the blocks that nobody needs: unused ones, and cached ones that nobody holds.
pub fn plan(limits: &Limits, free: usize, waiting: &[Waiting], running: &[Running]) -> Plan {
    let blocks = |positions: usize| positions.div_ceil(limits.block_tokens);
    let mut free = free;
    let mut rows = vec![0; running.len()];
    let mut gone = vec![false; running.len()];
    let mut order: Vec<usize> = (0..running.len()).collect();
    order.sort_by_key(|&at| running[at].urgency);
    let single = running.iter().filter(|r| r.left == 1).count();
    let mut budget = limits.step_tokens.saturating_sub(single);

    // Blocks for what runs, the most urgent first.
    for (rank, &at) in order.iter().enumerate() {
        let r = &running[at];
        let wish = if r.left == 1 { 1 } else { r.left.min(budget) };
        if gone[at] || wish == 0 {
            continue;
        }
        let missing = blocks(r.past.saturating_add(wish)).saturating_sub(r.held);
        while missing > free {
            let Some(&victim) = order[rank + 1..].iter().rev().find(|&&other| !gone[other]) else { break };
            gone[victim] = true;
            free += running[victim].own;
            budget += usize::from(running[victim].left == 1);
        }
        let room = r.held.saturating_add(free).saturating_mul(limits.block_tokens).saturating_sub(r.past);
        rows[at] = wish.min(room);
        free -= blocks(r.past + rows[at]).saturating_sub(r.held).min(free);
        if r.left > 1 {
            budget -= rows[at];
        }
    }
    let preempt: Vec<usize> = (0..running.len()).filter(|&at| gone[at]).collect();

    let mut admit = Vec::new();
    // Who has just given way would come back at once, to give way again.
    if preempt.is_empty() {
        // Prompts that were let in get the blocks they still need, and each answer may grow by one: room beyond that
        // is free.
        let promised = running.iter().zip(&rows).map(|(r, &rows)| {
            let whole = blocks(r.past.saturating_add(r.left)).max(r.held);
            1 + whole.saturating_sub(blocks(r.past + rows).max(r.held))
        });
        let mut promised: usize = promised.sum();
        let mut queue: Vec<usize> = (0..waiting.len()).collect();
        queue.sort_by_key(|&at| waiting[at].urgency);
        for at in queue {
            let w = &waiting[at];
            let (found, whole) = (blocks(w.cached), blocks(w.rows));
            let needed = whole.saturating_sub(found).saturating_add(w.idle).saturating_add(promised);
            if running.len() + admit.len() >= limits.max_running || budget == 0 || needed > free {
                break;
            }
            let rows = (w.rows - w.cached).min(budget);
            budget -= rows;
            let taken = blocks(w.cached + rows);
            free -= taken - found + w.idle;
            promised += 1 + whole - taken;
            admit.push((at, rows));
        }
    }

    // What is left over goes to drafts, which never cost anybody a block.
    for &at in &order {
        let r = &running[at];
        if rows[at] == 0 || r.left > 1 {
            continue;
        }
        let held = blocks(r.past + 1).max(r.held);
        let room = held.saturating_add(free).saturating_mul(limits.block_tokens).saturating_sub(r.past + 1);
        let extra = r.draft.min(budget).min(room);
        rows[at] += extra;
        budget -= extra;
        free -= (blocks(r.past + 1 + extra).max(held) - held).min(free);
    }
    Plan { preempt, rows, admit }
}

#[cfg(test)]
mod tests;
