//! The thread that owns the engine.
//!
//! Handlers send it submissions and get updates back through a channel of their own, as long as the answer may become,
//! so the thread never waits for a reader. A handler that goes away drops its end; the thread sees that before its next
//! step and cancels what was asked. Nobody else touches the engine.
//!
//! A panic in the engine fails the requests it had and makes the engine anew from the weights that are loaded; one that
//! fails again and again is given up, and the server with it.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tracing::Span;

use super::metrics::{Ended, Metrics};
use super::trace::Generation;
use crate::engine::{Engine, Event, FinishReason, Logprob, Request, RequestId, Stats, TokenScore};
use crate::{Error, Result};

/// Makes an engine: once at the start, and again after a defect.
pub type EngineMaker = Box<dyn FnMut() -> Result<Engine> + Send>;

/// Failures of the engine within [`FAILURE_WINDOW`] after which it is given up.
const MAX_FAILURES: usize = 3;
const FAILURE_WINDOW: Duration = Duration::from_secs(60);

/// How long an idle engine waits before it looks around.
const IDLE: Duration = Duration::from_secs(1);

/// Something that happened to one of the requests of a submission.
#[derive(Debug)]
pub(super) enum Update {
    Token { id: u32, logprob: Option<Logprob> },
    Scored(Vec<TokenScore>),
    Embedded(Vec<f32>),
    Finished { reason: FinishReason, stop: Option<(u32, Option<Logprob>)> },
}

/// The updates of a submission: which of its requests, and what.
pub(super) type Updates = mpsc::Receiver<(usize, Update)>;

/// Requests that come and go together.
struct Submission {
    requests: Vec<Request>,
    updates: mpsc::Sender<(usize, Update)>,
    accepted: oneshot::Sender<Result<()>>,
    span: Span,
}

/// The way to the engine.
#[derive(Debug, Clone)]
pub(super) struct EngineHandle {
    inbox: Sender<Submission>,
}

impl EngineHandle {
    /// Submits requests; none of them runs if one is refused. `room` is how many updates may come at most.
    ///
    /// # Errors
    /// As [`Engine::submit`]; [`Error::Failed`] when the engine is gone.
    pub(super) async fn submit(&self, requests: Vec<Request>, room: usize) -> Result<Updates> {
        let gone = || Error::Failed("the engine failed".into());
        let (updates, receiver) = mpsc::channel(room.max(1));
        let (accepted, answer) = oneshot::channel();
        self.inbox.send(Submission { requests, updates, accepted, span: Span::current() }).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())??;
        Ok(receiver)
    }
}

/// Starts the thread on an engine that is made already. `broken` becomes true when it gives up.
pub(super) fn start(
    engine: Engine,
    make: EngineMaker,
    metrics: Arc<Metrics>,
    broken: watch::Sender<bool>,
) -> std::io::Result<EngineHandle> {
    let (inbox, submissions) = channel();
    let room = Room { live: HashMap::new(), before: engine.stats(), metrics };
    std::thread::Builder::new()
        .name("engine".into())
        .spawn(move || {
            ernie_nn::catch_panics();
            if !live(engine, make, room, &submissions) {
                broken.send_replace(true);
            }
        })
        .map(|_| EngineHandle { inbox })
}

/// Runs until there are no handles any more (`true`) or the engine is given up (`false`).
fn live(mut engine: Engine, mut make: EngineMaker, mut room: Room, submissions: &Receiver<Submission>) -> bool {
    let mut failures: Vec<Instant> = Vec::new();
    loop {
        // What the engine holds is thrown away after a panic, so nothing half-done is seen again.
        match catch_unwind(AssertUnwindSafe(|| room.run(&mut engine, submissions))) {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => tracing::error!(%error, "the engine failed"),
            Err(_) => tracing::error!("the engine panicked"),
        }
        room.fail();
        let now = Instant::now();
        failures.retain(|&then| now - then < FAILURE_WINDOW);
        failures.push(now);
        if failures.len() >= MAX_FAILURES {
            tracing::error!(failures = failures.len(), "the engine is given up");
            return false;
        }
        engine = match catch_unwind(AssertUnwindSafe(&mut make)) {
            Ok(Ok(engine)) => engine,
            Ok(Err(error)) => {
                tracing::error!(%error, "the engine cannot be made anew");
                return false;
            }
            Err(_) => return false,
        };
        room.before = engine.stats();
        room.metrics.engine_restarts.inc();
        tracing::warn!("the engine was made anew");
    }
}

/// One request that waits or runs, and who wants to hear of it.
struct Live {
    updates: mpsc::Sender<(usize, Update)>,
    index: usize,
    submitted: Instant,
    last_token: Option<Instant>,
    generation: Generation,
}

/// Who is in the engine.
struct Room {
    live: HashMap<RequestId, Live>,
    before: Stats,
    metrics: Arc<Metrics>,
}

impl Room {
    fn run(&mut self, engine: &mut Engine, submissions: &Receiver<Submission>) -> Result<()> {
        loop {
            if engine.is_idle() {
                match submissions.recv_timeout(IDLE) {
                    Ok(submission) => self.submit(engine, submission),
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => return Ok(()),
                }
            }
            while let Ok(submission) = submissions.try_recv() {
                self.submit(engine, submission);
            }
            // The step tells of their end as of any other.
            for (&id, _) in self.live.iter().filter(|(_, live)| live.updates.is_closed()) {
                engine.cancel(id);
            }
            let events = engine.step()?;
            let now = Instant::now();
            let running = engine.num_running();
            if running > 0 {
                self.metrics.batch.observe(running as f64);
            }
            for event in events {
                self.tell(event, now);
            }
            let stats = engine.stats();
            self.metrics.note(&self.before, &stats);
            self.before = stats;
        }
    }

    fn submit(&mut self, engine: &mut Engine, submission: Submission) {
        let Submission { requests, updates, accepted, span } = submission;
        // It may have left while it waited for this step.
        if updates.is_closed() {
            return;
        }
        let mut ids = Vec::with_capacity(requests.len());
        for request in requests {
            match engine.submit(request) {
                Ok(id) => ids.push(id),
                Err(error) => {
                    ids.into_iter().for_each(|id| _ = engine.cancel(id));
                    let _ = accepted.send(Err(error));
                    return;
                }
            }
        }
        let submitted = Instant::now();
        for (index, id) in ids.into_iter().enumerate() {
            let generation = Generation::begin(&span);
            self.live.insert(id, Live { updates: updates.clone(), index, submitted, last_token: None, generation });
        }
        let _ = accepted.send(Ok(()));
    }

    fn tell(&mut self, event: Event, now: Instant) {
        let id = event.request();
        let Some(live) = self.live.get_mut(&id) else { return };
        let (update, over) = match event {
            Event::Token { id, logprob, .. } => {
                let since = live.last_token.replace(now);
                if since.is_none() {
                    live.generation.first_token();
                }
                let histogram = if since.is_some() { &self.metrics.inter_token_s } else { &self.metrics.first_token_s };
                histogram.observe((now - since.unwrap_or(live.submitted)).as_secs_f64());
                (Update::Token { id, logprob }, false)
            }
            Event::Scored { tokens, .. } => (Update::Scored(tokens), false),
            Event::Embedded { embedding, .. } => (Update::Embedded(embedding), false),
            Event::Logits { .. } => return,
            Event::Finished { reason, stop_id, stop_logprob, usage, .. } => {
                live.generation.end(&reason, Some(&usage));
                self.metrics.queue_s.observe(usage.queued_s);
                self.metrics.finished.get_or_create(&Ended { reason: reason.name() }).inc();
                let stop = stop_id.map(|id| (id, stop_logprob));
                (Update::Finished { reason, stop }, true)
            }
        };
        // The channel holds all that an answer can become; who is not there any more is cancelled before the next step.
        let _ = live.updates.try_send((live.index, update));
        if over {
            self.live.remove(&id);
        }
    }

    /// Tells everybody that the engine failed.
    fn fail(&mut self) {
        for (_, live) in self.live.drain() {
            let reason = FinishReason::Error("the engine failed at this step; the request may be sent again".into());
            self.metrics.finished.get_or_create(&Ended { reason: reason.name() }).inc();
            live.generation.end(&reason, None);
            let update = Update::Finished { reason, stop: None };
            let _ = live.updates.try_send((live.index, update));
        }
    }
}
