//! One step: plan, make room, let in, run, tell.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::Engine;
use super::blocks::Block;
use super::job::{End, Job};
use super::model::{Batch, Chunk, Row};
use super::plan::{self, Plan, Running, Waiting};
use super::request::{Event, FinishReason, RequestId};
use crate::{Error, Result};

impl Engine {
    /// Does one forward pass and tells what came of it, in the order in which it happened.
    ///
    /// A request that fails (damaged weights, a model that cannot run) finishes with [`FinishReason::Error`]; the
    /// engine lives on.
    ///
    /// # Errors
    /// [`Error::Internal`] only, for a defect of the engine itself.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        self.stats.steps += 1;
        self.guess();
        let (candidates, plan) = self.plan();
        let mut rows = self.give_way(&plan);
        self.admit(&candidates, &plan, &mut rows)?;
        self.allocate(&mut rows);
        self.forward(&rows)?;
        let over: Vec<Job> = self.running.extract_if(.., |job| job.finished.is_some()).collect();
        for mut job in over {
            if let Some(end) = job.finished.take() {
                self.retire(job, end);
            }
        }
        Ok(std::mem::take(&mut self.pending))
    }

    /// Lets each answer guess what comes next, where that pays beside the rows that must be read.
    fn guess(&mut self) {
        let most = self.options.draft_tokens;
        if most == 0 {
            return;
        }
        let rows = self.running.iter().map(|job| job.rows() - job.fed).sum();
        let cost = self.model.row_cost(rows).unwrap_or_else(|| self.pace.cost(rows));
        self.running.iter_mut().for_each(|job| job.guess(most, cost));
    }

    /// The plan, and who of the queue its `admit` speaks of.
    fn plan(&self) -> (Vec<RequestId>, Plan) {
        let limited = self.stats.blocks.is_some();
        let free = self.pool.free() + if limited { self.prefixes.idle() } else { 0 };
        let running: Vec<Running> = self
            .running
            .iter()
            .map(|job| Running {
                urgency: job.urgency,
                past: job.fed,
                left: job.rows() - job.fed,
                draft: job.draft.len(),
                held: job.table.len(),
                own: if limited { job.own_blocks() } else { job.table.len() },
            })
            .collect();
        // The plan lets in from the most urgent on, so it need not see more than there is room for.
        let room = self.options.max_running.saturating_sub(running.len());
        let mut queue: Vec<&Job> = if room == 0 { Vec::new() } else { self.queue.iter().collect() };
        queue.sort_unstable_by_key(|job| job.urgency);
        queue.truncate(room);
        let mut ahead: Vec<&Job> = self.running.iter().filter(|job| job.rows() - job.fed > 1).collect();
        let mut waiting: Vec<Waiting> = Vec::with_capacity(queue.len());
        queue.retain(|job| {
            let found = self.prefixes.peek(job.adapter, job.skippable());
            let cached = found.blocks * self.limits.block_tokens;
            if self.awaits(job, cached, &ahead) {
                return false;
            }
            ahead.push(job);
            waiting.push(Waiting { urgency: job.urgency, rows: job.rows(), cached, idle: found.idle });
            true
        });
        let candidates = queue.iter().map(|job| job.id).collect();
        (candidates, plan::plan(&self.limits, free, &waiting, &running))
    }

    /// Whether one of those ahead is about to read most of what the request would have to read beyond `cached`: then it
    /// is better found than read twice. It waits no longer than those ahead read their prompts; others may pass.
    fn awaits(&self, job: &Job, cached: usize, ahead: &[&Job]) -> bool {
        let (start, own) = job.skippable().split_at(cached);
        let common = |other: &&Job| match other.ids[..other.rows()].split_at_checked(cached) {
            Some((begin, theirs)) if begin == start && other.adapter == job.adapter => {
                own.iter().zip(theirs).take_while(|(a, b)| a == b).count()
            }
            _ => 0,
        };
        let most = ahead.iter().map(common).max().unwrap_or(0);
        let found = most - most % self.limits.block_tokens;
        self.options.prefix_cache_bytes > 0 && found > 0 && 2 * found >= job.rows() - cached
    }

    /// Sends back to the queue whom the plan sends back; the rows of those who stay.
    fn give_way(&mut self, plan: &Plan) -> Vec<usize> {
        let mut rows = Vec::with_capacity(self.options.max_running);
        for (at, mut job) in std::mem::take(&mut self.running).into_iter().enumerate() {
            if plan.preempt.contains(&at) {
                tracing::debug!(request = job.id.0, rows = job.fed, "gives way");
                self.stats.preemptions += 1;
                self.stats.preempted_rows += job.fed as u64;
                job.give_way();
                self.queue.push(job);
            } else {
                rows.push(plan.rows.get(at).copied().unwrap_or(0));
                self.running.push(job);
            }
        }
        rows
    }

    /// Lets in whom the plan lets in, each with what earlier requests have read of its prompt.
    fn admit(&mut self, candidates: &[RequestId], plan: &Plan, rows: &mut Vec<usize>) -> Result<()> {
        for &(at, count) in &plan.admit {
            let place = candidates.get(at).and_then(|&id| self.queue.iter().position(|job| job.id == id));
            let Some(place) = place else {
                return Err(Error::Internal("the plan lets in a request that does not wait".into()));
            };
            let mut job = self.queue.remove(place);
            let found = self.prefixes.take(job.adapter, job.skippable());
            let fed = found.len() * self.limits.block_tokens;
            self.stats.prompt_rows += job.rows() as u64;
            self.stats.prefix_hit_rows += fed as u64;
            job.start(found, fed);
            rows.push(count.min(job.rows() - job.fed));
            self.running.push(job);
        }
        Ok(())
    }

    /// Gives each request the blocks of its rows. The plan has counted them; were one missing all the same, its request
    /// would sit this step out.
    fn allocate(&mut self, rows: &mut [usize]) {
        let block_tokens = self.limits.block_tokens;
        for (job, rows) in self.running.iter_mut().zip(rows) {
            let needed = if *rows == 0 { 0 } else { (job.fed + *rows).div_ceil(block_tokens) };
            while job.table.len() < needed {
                let block = self.pool.take().or_else(|| {
                    self.prefixes.evict();
                    self.pool.take()
                });
                let Some(block) = block else { break };
                job.table.push(block);
            }
            *rows = (*rows).min((job.table.len() * block_tokens).saturating_sub(job.fed));
        }
    }

    /// Runs the planned rows of all running requests in one pass.
    fn forward(&mut self, rows: &[usize]) -> Result<()> {
        let (batch, busy) = self.batch(rows)?;
        if batch.ids.is_empty() {
            return Ok(());
        }
        let (running, events) = (&mut self.running, &mut self.pending);
        let told = events.len();
        let start = Instant::now();
        let outcome = self.model.forward(&batch, &mut |rows| take_rows(running, &busy, &batch, rows, events));
        self.pace.note(batch.ids.len(), start.elapsed().as_secs_f64());
        self.stats.rows += batch.ids.len() as u64;
        for &at in &busy {
            let job = &mut running[at];
            if let Err(error) = &outcome {
                job.finished = Some((FinishReason::Error(error.to_string()), None));
                continue;
            }
            let (tried, kept) = job.end(events);
            self.stats.drafted += tried as u64;
            self.stats.accepted += kept as u64;
            // Blocks that hold wrong guesses alone are free again; what is full and right can be found from now on.
            let full = job.fed / self.limits.block_tokens;
            job.table.truncate(job.fed.div_ceil(self.limits.block_tokens));
            if full > job.shared && self.options.prefix_cache_bytes > 0 {
                let ids = &job.ids[..full * self.limits.block_tokens];
                job.shared = self.prefixes.put(job.adapter, ids, &mut job.table[..full]);
            }
        }
        self.stats.tokens += events[told..].iter().filter(|event| matches!(event, Event::Token { .. })).count() as u64;
        Ok(())
    }

    /// Gathers the planned rows, and for each chunk the index of the running request that it belongs to.
    fn batch(&mut self, rows: &[usize]) -> Result<(Batch, Vec<usize>)> {
        let mut batch = Batch::default();
        let mut busy = Vec::with_capacity(self.running.len());
        for (at, (job, &count)) in self.running.iter_mut().zip(rows).enumerate() {
            if count == 0 {
                continue;
            }
            job.begin(count);
            let from = batch.ids.len();
            let Some(ids) = job.ids.get(job.fed..job.fed + count - job.draft.len()) else {
                return Err(Error::Internal(format!("request {} has no {count} rows to run", job.id)));
            };
            batch.ids.extend_from_slice(ids);
            batch.ids.extend_from_slice(&job.draft);
            let rows = from..from + count;
            let skip = job.wanted_from.saturating_sub(job.fed).min(count);
            let blocks = job.table.iter().take((job.fed + count).div_ceil(self.limits.block_tokens));
            batch.chunks.push(Chunk {
                blocks: blocks.map(Block::id).collect(),
                past: job.fed,
                wanted: from + skip..rows.end,
                hidden: job.wants_hidden(),
                adapter: job.adapter,
                rows,
            });
            busy.push(at);
        }
        Ok((batch, busy))
    }

    /// Tells of the end of a request, whose blocks are free when it is dropped here.
    pub(super) fn retire(&mut self, job: Job, end: End) {
        tracing::debug!(request = job.id.0, reason = end.0.name(), "finished");
        self.stats.finished += 1;
        self.pending.push(job.finish(end));
    }
}

/// Rows of one request, the request, and what they lead to.
type Taken<'a, 'r> = (&'a mut Job, Vec<Row<'r>>, Vec<Event>);

/// Hands rows to their requests, to several of these at the same time: each has a vocabulary to look through.
fn take_rows(running: &mut [Job], busy: &[usize], batch: &Batch, rows: Vec<Row<'_>>, events: &mut Vec<Event>) {
    let mut rows_of: Vec<Vec<Row<'_>>> = running.iter().map(|_| Vec::new()).collect();
    for row in rows {
        rows_of[busy[row.chunk]].push(row);
    }
    let tasks: Vec<Mutex<Taken<'_, '_>>> = (running.iter_mut().zip(rows_of))
        .filter(|(_, rows)| !rows.is_empty())
        .map(|(job, rows)| Mutex::new((job, rows, Vec::new())))
        .collect();
    ernie_nn::parallel(tasks.len(), |task| {
        let mut task = tasks[task].lock().unwrap_or_else(PoisonError::into_inner);
        let (job, rows, events) = &mut *task;
        for Row { chunk, row, numbers } in rows.drain(..) {
            let part = &batch.chunks[chunk];
            job.take_row(part.past + row - part.rows.start, batch.ids[row], numbers, events);
        }
    });
    for task in tasks {
        events.append(&mut task.into_inner().unwrap_or_else(PoisonError::into_inner).2);
    }
}
