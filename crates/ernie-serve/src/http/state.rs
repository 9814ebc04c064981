//! What all handlers see: the limits, the model once it is there, and how far the server's life has come.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use ernie_data::chat::ChatTemplate;
use ernie_data::tokenizer::Tokenizer;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::Config;
use super::error::{ApiError, ApiResult, Reason};
use super::guard::Callers;
use super::limits::BODIES_AT_ONCE;
use super::metrics::Metrics;
use super::thread::EngineHandle;
use crate::session::{CallForm, GrammarCache, ReasoningForm};

/// How far the server's life has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// The model is being loaded, or ready.
    Open,
    /// What was admitted is finished, nothing else begins.
    Draining,
    /// The grace is over: answers end where they are.
    Cut,
}

/// Waits until the server's life is past a phase.
pub(super) async fn past(phases: &mut watch::Receiver<Phase>, phase: Phase) {
    // The sender lives as long as the state, so an error means that all is over.
    let _ = phases.wait_for(|&now| now > phase).await.is_ok();
}

/// The model as handlers see it.
pub(super) struct Model {
    pub(super) engine: EngineHandle,
    pub(super) tokenizer: Option<Tokenizer>,
    pub(super) template: ChatTemplate,
    /// Ids that end an answer beside the model's own.
    pub(super) end_ids: Vec<u32>,
    /// How it writes calls of tools.
    pub(super) calls: CallForm,
    /// How it marks its reasoning, if it thinks.
    pub(super) reasoning: Option<ReasoningForm>,
    /// Grammars compiled for it; none without a tokenizer.
    pub(super) grammars: Option<GrammarCache>,
    pub(super) vocab_size: usize,
    pub(super) context_length: usize,
}

impl Model {
    /// The tokenizer, or the refusal that says what needs one.
    pub(super) fn tokenizer_for(&self, field: &str) -> ApiResult<&Tokenizer> {
        let refusal = || ApiError::field(field, "text", "token ids, because this model has no tokenizer");
        self.tokenizer.as_ref().ok_or_else(refusal)
    }
}

/// Whom a request asks: the model as it is, or one of its adapters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    /// The name, as answers repeat it.
    pub(super) name: String,
    /// The adapter's number.
    pub(super) adapter: Option<usize>,
}

/// The server's state. One for all connections.
pub(super) struct App {
    pub(super) config: Config,
    pub(super) callers: Callers,
    pub(super) metrics: Arc<Metrics>,
    /// Seconds since 1970 at the start.
    pub(super) created: u64,
    phase: watch::Sender<Phase>,
    model: OnceLock<Arc<Model>>,
    /// A permit for each request that runs or waits; sized when the model is there.
    sequences: OnceLock<(Arc<Semaphore>, usize)>,
    /// Kibibytes of bodies that may be held.
    bodies: Arc<Semaphore>,
    in_flight: AtomicUsize,
    next_id: AtomicUsize,
    salt: u64,
}

impl App {
    pub(super) fn new(config: Config) -> Self {
        let body_kib = config.limits.body_bytes.div_ceil(1024).max(1);
        Self {
            callers: Callers::new(&config),
            metrics: Arc::new(Metrics::new(&config.version, &config.model)),
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            phase: watch::Sender::new(Phase::Open),
            model: OnceLock::new(),
            sequences: OnceLock::new(),
            bodies: Arc::new(Semaphore::new((body_kib * BODIES_AT_ONCE).min(Semaphore::MAX_PERMITS))),
            in_flight: AtomicUsize::new(0),
            next_id: AtomicUsize::new(0),
            salt: random(),
            config,
        }
    }

    /// The model is loaded; `running` requests fit into a step.
    pub(super) fn open(&self, model: Model, running: usize) {
        let permits = running + self.config.limits.queue;
        let _ = self.sequences.set((Arc::new(Semaphore::new(permits)), permits));
        if self.model.set(Arc::new(model)).is_ok() && self.phase() == Phase::Open {
            self.metrics.ready.set(1);
        }
    }

    pub(super) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    pub(super) fn phases(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.metrics.ready.set(0);
        self.phase.send_replace(phase);
    }

    /// All that can be asked, the model itself first.
    pub(super) fn served(&self) -> impl Iterator<Item = Asked> {
        let adapters = self.config.adapters.iter().enumerate();
        let adapters = adapters.map(|(number, name)| Asked { name: name.clone(), adapter: Some(number) });
        std::iter::once(Asked { name: self.config.model.clone(), adapter: None }).chain(adapters)
    }

    /// Whom a name names; nobody in particular is the model itself.
    pub(super) fn asked(&self, name: Option<&str>) -> ApiResult<Asked> {
        let mut served = self.served();
        let found = served.find(|one| name.is_none_or(|name| name == one.name));
        let names = std::iter::once(&self.config.model).chain(&self.config.adapters).map(String::as_str);
        found.ok_or_else(|| ApiError::no_model(name.unwrap_or_default(), names))
    }

    /// The model, if work may begin.
    pub(super) fn model(&self) -> ApiResult<Arc<Model>> {
        if self.phase() != Phase::Open {
            return Err(ApiError::draining());
        }
        self.model.get().cloned().ok_or_else(ApiError::not_ready)
    }

    /// Seconds since 1970.
    pub(super) fn now(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(self.created, |d| d.as_secs())
    }

    /// Whether a prompt may be as long as it is. The engine judges what it can hold.
    pub(super) fn check_prompt(&self, ids: &[u32]) -> ApiResult<()> {
        match self.config.limits.prompt_tokens {
            Some(limit) if ids.len() > limit => {
                Err(ApiError::input(format!("the prompt has {} tokens, the limit is {limit}", ids.len())))
            }
            _ => Ok(()),
        }
    }

    /// Lets `count` requests in, or says that the queue is full.
    pub(super) fn admit(&self, count: usize) -> ApiResult<OwnedSemaphorePermit> {
        let (sequences, permits) = self.sequences.get().ok_or_else(ApiError::not_ready)?;
        if count > *permits {
            let message = format!("{count} answers in one request: this server runs and queues {permits} at most");
            return Err(ApiError::input(message));
        }
        let permits = u32::try_from(count).map_err(|_| ApiError::queue_full())?;
        sequences.clone().try_acquire_many_owned(permits).map_err(|_| ApiError::queue_full())
    }

    /// Lets a body of so many bytes in.
    pub(super) fn admit_body(&self, bytes: usize) -> ApiResult<OwnedSemaphorePermit> {
        let kib = u32::try_from(bytes.div_ceil(1024).max(1)).map_err(|_| ApiError::bodies_full())?;
        self.bodies.clone().try_acquire_many_owned(kib).map_err(|_| ApiError::bodies_full())
    }

    /// Counts a request until the guard is dropped.
    pub(super) fn count(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        self.metrics.in_flight.inc();
        InFlight(self.clone())
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// A name that no other request of this server has, after `prefix`.
    pub(super) fn name(&self, prefix: &str) -> String {
        let number = self.next_id.fetch_add(1, Ordering::Relaxed) as u64;
        // An odd multiplier is a bijection, so names differ; the salt makes them differ between starts.
        let scattered = self.salt.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        format!("{prefix}{scattered:016x}{:04x}", number & 0xffff)
    }

    /// Counts a refusal.
    pub(super) fn refused(&self, reason: Reason) {
        self.metrics.refuse(reason);
    }
}

/// One request that is being answered.
pub(super) struct InFlight(Arc<App>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
        self.0.metrics.in_flight.dec();
    }
}

/// A number that differs between starts. No secret depends on it.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}
