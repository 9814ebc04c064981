//! `train --tui`: the run on the whole terminal.
//!
//! The loop tells what happens as it tells every observer; a thread of its own draws it four times a second and looks at the keys. It draws on
//! standard error, as all talk goes there.

mod draw;
mod state;

use crate::{
    commands::generate::engine,
    failure::{Failure, Result},
    interrupt,
    printer::Printer,
};
use ernie_data::{chat::ChatTemplate, tokenizer::Tokenizer};
use ernie_model::{ModelSource, WeightsAs};
use ernie_serve::{
    engine::Sampling,
    session::{Options, Session},
};
use ernie_train::{Evaluation, Finished, Observer, Recovered, Saved, Started, StepReport, observe::read_metrics};
use ratatui::{
    Terminal,
    backend::CrosstermBackend,
    crossterm::{
        cursor, event, execute,
        terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode},
    },
};
use state::State;
use std::{
    io::{IsTerminal, Stderr, stderr},
    ops::ControlFlow,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// How long a frame stands, and so how soon a key is seen.
const FRAME: Duration = Duration::from_millis(250);

/// Trained numbers up to which a sample is written at every checkpoint: it costs a reading of the model.
const SAMPLED: u64 = 300_000_000;

/// Tokens of a sample.
const SAMPLE_TOKENS: usize = 60;

/// The dashboard, open until it is dropped.
pub(super) struct Dashboard {
    state: Arc<Mutex<State>>,
    over: Arc<AtomicBool>,
    painter: Option<JoinHandle<()>>,
    prompt: String,
}

impl Dashboard {
    /// Whether it can be shown.
    ///
    /// # Errors
    /// Input (2) where standard error is no terminal or is to be silent, or keys cannot be read.
    pub(super) fn check(printer: &Printer) -> Result<()> {
        if printer.draws_bars() && std::io::stdin().is_terminal() {
            return Ok(());
        }
        Err(Failure::input("--tui: there is no terminal to draw on, or --quiet forbids it")
            .hint("without --tui the run is told line by line"))
    }

    /// Takes the terminal over for the run in `out`, of which `made` steps are made and which `stop` ends. Samples go on from `prompt`.
    pub(super) fn open(out: &Path, made: u64, prompt: &str, stop: Arc<AtomicBool>) -> Result<Self> {
        let mut before = State::new(out.display().to_string());
        // A run that goes on shows what it did before; one that has no metrics yet begins with none.
        let past = read_metrics(out).unwrap_or_default();
        past.iter().filter(|line| line.step <= made).for_each(|line| before.past(line));
        let terminal = take_over().map_err(|error| Failure::io("taking over the terminal", &error))?;
        let (state, over) = (Arc::new(Mutex::new(before)), Arc::new(AtomicBool::new(false)));
        let painter = {
            let (state, over) = (Arc::clone(&state), Arc::clone(&over));
            std::thread::spawn(move || paint(terminal, &state, &over, &stop))
        };
        Ok(Self { state, over, painter: Some(painter), prompt: prompt.to_owned() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// What the newest checkpoint goes on with.
    fn sample(&self, model: &Path) -> Result<String> {
        let loaded = ernie_model::load(&ModelSource::Folder(model.to_owned()), WeightsAs::Native)?;
        let tokenizer = Tokenizer::from_folder(model)?;
        let mut session = Session::new(engine(loaded.decoder, 1)?, tokenizer, ChatTemplate::default_ernie());
        let options = Options {
            max_tokens: SAMPLE_TOKENS,
            sampling: Sampling { temperature: 0.7, top_p: 0.9, seed: Some(0), ..Sampling::default() },
            ignore_eos: true,
            ..Options::default()
        };
        let answer = session.complete(&self.prompt, &options, &mut |_| ControlFlow::Continue(()))?;
        Ok(format!("{}{}", self.prompt, answer.text.unwrap_or_default()))
    }
}

impl Observer for Dashboard {
    fn started(&mut self, run: &Started) -> ernie_train::Result<()> {
        self.state().started(run);
        Ok(())
    }

    fn step(&mut self, report: &StepReport) -> ernie_train::Result<()> {
        self.state().step(report);
        Ok(())
    }

    fn evaluated(&mut self, step: u64, evaluation: &Evaluation) -> ernie_train::Result<()> {
        self.state().evaluated(step, evaluation);
        Ok(())
    }

    fn recovered(&mut self, recovered: &Recovered) -> ernie_train::Result<()> {
        self.state().say(super::recovered_line(recovered));
        Ok(())
    }

    fn saved(&mut self, saved: &Saved) -> ernie_train::Result<()> {
        self.state().say(format!("saved {}", saved.path.display()));
        // A checkpoint of an adapter beside integers holds no model.
        if self.state().parameters() <= SAMPLED && saved.path.join("config.json").exists() {
            // A sample that cannot be had takes nothing from the run.
            let sample = self.sample(&saved.path).unwrap_or_else(|failure| format!("no sample: {}", failure.message));
            self.state().sample = Some((saved.step, sample));
        }
        Ok(())
    }

    fn finished(&mut self, _: &Finished) -> ernie_train::Result<()> {
        self.close();
        Ok(())
    }
}

impl Dashboard {
    fn close(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        if let Some(painter) = self.painter.take() {
            // It gives the terminal back itself; one that panicked has been reported.
            let _ = painter.join();
        }
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        self.close();
    }
}

type Screen = Terminal<CrosstermBackend<Stderr>>;

fn take_over() -> std::io::Result<Screen> {
    enable_raw_mode()?;
    interrupt::before_leaving(Some(give_back));
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        give_back();
        hook(panic);
    }));
    let taken = execute!(stderr(), EnterAlternateScreen, cursor::Hide)
        .and_then(|()| Terminal::new(CrosstermBackend::new(stderr())));
    if taken.is_err() {
        give_back();
    }
    taken
}

/// Gives the terminal back as it was. What cannot be given back is nobody's to mend.
fn give_back() {
    interrupt::before_leaving(None);
    let _ = disable_raw_mode();
    let _ = execute!(stderr(), LeaveAlternateScreen, cursor::Show);
}

fn paint(mut screen: Screen, state: &Mutex<State>, over: &AtomicBool, stop: &AtomicBool) {
    while !over.load(Ordering::SeqCst) {
        lock(state).stopping = stop.load(Ordering::SeqCst);
        // A frame that cannot be drawn now may be drawn next time.
        let _ = screen.draw(|frame| draw::draw(frame, &lock(state)));
        if event::poll(FRAME).unwrap_or_else(|_| {
            std::thread::sleep(FRAME);
            false
        }) && let Ok(event::Event::Key(key)) = event::read()
            && is_leave(key)
            && stop.swap(true, Ordering::SeqCst)
        {
            // Asked twice.
            interrupt::leave();
        }
    }
    give_back();
}

fn is_leave(key: event::KeyEvent) -> bool {
    let control = key.modifiers.contains(event::KeyModifiers::CONTROL);
    key.kind == event::KeyEventKind::Press
        && (key.code == event::KeyCode::Char('q') || (control && key.code == event::KeyCode::Char('c')))
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
