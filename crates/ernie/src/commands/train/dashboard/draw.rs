//! One frame: a pure function of the state.

use super::state::State;
use crate::printer;
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Style, Stylize},
    symbols::Marker,
    text::{Line, Span},
    widgets::{Axis, Block, Chart, Dataset, Gauge, GraphType, Padding, Paragraph, Sparkline, Wrap},
};

const BARS: [&str; 9] = [" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];

/// Draws the run as it stands.
pub(super) fn draw(frame: &mut Frame<'_>, state: &State) {
    let rows = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Fill(3),
        Constraint::Fill(2),
        Constraint::Length(1),
    ]);
    let [title, progress, upper, lower, keys] = rows.areas(frame.area());
    frame.render_widget(header(state), title);
    frame.render_widget(gauge(state), progress);
    let [curve, speed] = Layout::horizontal([Constraint::Fill(3), Constraint::Fill(1)]).areas(upper);
    losses(frame, state, curve);
    speeds(frame, state, speed);
    let [left, right] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(lower);
    frame.render_widget(router(state, left), left);
    let [sample, log] = Layout::vertical([Constraint::Fill(1), Constraint::Fill(1)]).areas(right);
    frame.render_widget(written(state), sample);
    frame.render_widget(happened(state, log), log);
    let leave = match state.stopping {
        false => " q  finish the step, save and leave",
        true => " leaving when the step is made and saved; q  at once, unsaved",
    };
    frame.render_widget(Paragraph::new(leave).dim(), keys);
}

fn panel(title: &str) -> Block<'static> {
    Block::bordered().border_style(Style::new().dim()).title(format!(" {title} ")).padding(Padding::horizontal(1))
}

fn header(state: &State) -> Paragraph<'_> {
    let newest = &state.newest;
    let mut line = vec![
        Span::raw(" "),
        Span::from(state.name.as_str()).bold(),
        Span::raw(format!(" · {} parameters", printer::count(state.parameters()))),
    ];
    if state.losses.points().is_empty() {
        line.push(Span::raw(" · the first step is on its way"));
    } else {
        line.push(Span::raw(" · loss "));
        line.push(Span::from(format!("{:.3}", newest.loss)).bold());
        line.push(Span::raw(format!(" · lr {:.2e} · gradient {:.2}", newest.lr, newest.grad_norm)));
    }
    if let Some(mtp) = newest.mtp_loss {
        line.push(Span::raw(format!(" · one further {mtp:.3}")));
    }
    Paragraph::new(Line::from(line))
}

fn gauge(state: &State) -> Gauge<'_> {
    let newest = &state.newest;
    let share = newest.step as f64 / newest.steps.max(1) as f64;
    let left = state.seconds_left().map_or(String::new(), |left| format!(" · {} left", printer::duration(left)));
    let label = format!("{} of {} steps · {} tokens{left}", newest.step, newest.steps, printer::count(newest.tokens));
    Gauge::default().gauge_style(Style::new().fg(Color::Blue)).ratio(share.clamp(0.0, 1.0)).label(label)
}

fn losses(frame: &mut Frame<'_>, state: &State, area: Rect) {
    let smooth = smoothed(state.losses.points());
    let held_out = state.held_out.points();
    let all = || smooth.iter().chain(held_out).map(|point| point.1);
    let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
    let (low, high) = if low < high { (low, high) } else { (state.newest.loss - 0.5, state.newest.loss + 0.5) };
    let (low, high) = if low.is_finite() && high.is_finite() { (low, high) } else { (0.0, 1.0) };
    let margin = 0.05 * (high - low);
    let steps = state.newest.steps.max(1) as f64;
    let labels = |from: f64, to: f64, digits: usize| {
        [from, f64::midpoint(from, to), to].map(|value| format!("{value:.digits$}")).to_vec()
    };
    let training = Dataset::default().name("training").marker(Marker::Braille).graph_type(GraphType::Line);
    let outside = Dataset::default().name("held out").marker(Marker::Dot).graph_type(GraphType::Scatter);
    let mut curves = vec![training.style(Style::new().fg(Color::Blue)).data(&smooth)];
    if !held_out.is_empty() {
        curves.push(outside.style(Style::new().fg(Color::Yellow)).data(held_out));
    }
    let chart = Chart::new(curves)
        .block(panel("loss, nats"))
        .hidden_legend_constraints((Constraint::Percentage(60), Constraint::Percentage(60)))
        .x_axis(Axis::default().bounds([0.0, steps]).labels(labels(0.0, steps, 0)).style(Style::new().dim()))
        .y_axis(
            Axis::default()
                .bounds([low - margin, high + margin])
                .labels(labels(low, high, 2))
                .style(Style::new().dim()),
        );
    frame.render_widget(chart, area);
}

/// A running mean, so that a curve shows its course and not its noise.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut mean = None;
    let course = points.iter().map(|&(step, value)| {
        let now = mean.map_or(value, |mean: f64| 0.9 * mean + 0.1 * value);
        mean = Some(now);
        (step, now)
    });
    course.collect()
}

fn speeds(frame: &mut Frame<'_>, state: &State, area: Rect) {
    let block = panel(&format!("{} tokens/s", printer::count(state.speed())));
    let room = usize::from(block.inner(area).width);
    let shown: Vec<u64> = state.speeds.iter().skip(state.speeds.len().saturating_sub(room)).copied().collect();
    frame.render_widget(Sparkline::default().block(block).style(Style::new().fg(Color::Green)).data(shown), area);
}

/// A line a layer: how much of its even share each expert got, full at three times.
fn router(state: &State, area: Rect) -> Paragraph<'static> {
    let layers = state.router();
    let Some(experts) = layers.first().map(|layer| layer.load.len()) else {
        return Paragraph::new("no routed experts".dim()).block(panel("experts"));
    };
    let block = panel("experts, shares of the tokens");
    let room = usize::from(block.inner(area).width).saturating_sub(30).max(1);
    // More experts than columns: neighbours share one.
    let group = experts.div_ceil(room).max(1);
    let line = |layer: &ernie_train::balance::RouterBalance| {
        let bar = |loads: &[f32]| {
            let times_even = loads.iter().sum::<f32>() / loads.len() as f32 * experts as f32;
            // A load that is no number is drawn as none.
            BARS[((times_even * 8.0 / 3.0).round() as usize).min(8)]
        };
        let bars: String = layer.load.chunks(group).map(bar).collect();
        let busiest = format!(" {:.1}× even", layer.max_vio + 1.0);
        let mut spans = vec![
            Span::from(format!("layer {:<3} ", layer.layer)).dim(),
            Span::from(bars).fg(Color::Cyan),
            Span::from(busiest),
        ];
        if layer.dead > 0 {
            spans.push(Span::from(format!(", {} dead", layer.dead)).fg(Color::Red));
        }
        Line::from(spans)
    };
    Paragraph::new(layers.iter().map(line).collect::<Vec<_>>()).block(block)
}

fn written(state: &State) -> Paragraph<'_> {
    match &state.sample {
        Some((step, text)) => {
            Paragraph::new(text.as_str()).wrap(Wrap { trim: true }).block(panel(&format!("written after step {step}")))
        }
        None => Paragraph::new("the first checkpoint will write something".dim()).block(panel("sample")),
    }
}

fn happened(state: &State, area: Rect) -> Paragraph<'_> {
    let block = panel("what happened");
    let room = usize::from(block.inner(area).height);
    let lines = state.log.iter().skip(state.log.len().saturating_sub(room)).map(|line| Line::from(line.as_str()));
    Paragraph::new(lines.collect::<Vec<_>>()).block(block)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ernie_train::{Evaluation, Started, StepReport, balance::RouterBalance};
    use ratatui::{Terminal, backend::TestBackend};

    fn screen(state: &State, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, state)).unwrap();
        terminal.backend().to_string()
    }

    fn begun() -> State {
        let mut state = State::new("runs/nano".into());
        let started = Started { steps: 400, parameters: 13_000_000, ..Started::default() };
        state.started(&started);
        state
    }

    fn run() -> State {
        let mut state = begun();
        for step in 1..=200 {
            let load = (0..16).map(|expert| (expert as f32 + 1.0) / 136.0).collect();
            let layer = RouterBalance { layer: 1, load, max_vio: 0.9, entropy: 0.5, dead: 2 };
            state.step(&StepReport {
                step,
                steps: 400,
                tokens: step * 1024,
                loss: 7.0 - (step as f64).ln(),
                lr: 3e-3,
                grad_norm: 0.7,
                tokens_per_s: 4000.0 + step as f64,
                router: vec![layer; 3],
                ..StepReport::default()
            });
        }
        state.evaluated(200, &Evaluation { loss: 2.0, bits_per_byte: Some(1.5), ..Evaluation::default() });
        state.say("saved runs/nano/checkpoint-200".into());
        state.sample = Some((200, "Once upon a time there was a king who".into()));
        state
    }

    #[test]
    fn a_run_is_all_there() {
        let shown = screen(&run(), 100, 30);
        for part in [
            "runs/nano",
            "13.0 M",
            "200 of 400 steps",
            "training",
            "held out",
            "tokens/s",
            "layer 1",
            "2 dead",
            "▅",
            "1.9× even",
            "king who",
            "checkpoint-200",
            "held-out loss 2.000",
            "q  finish",
        ] {
            assert!(shown.contains(part), "{part} is not in\n{shown}");
        }
        let mut stopping = run();
        stopping.stopping = true;
        assert!(screen(&stopping, 100, 30).contains("at once"));
    }

    #[test]
    fn no_size_and_no_number_is_too_odd() {
        let mut odd = run();
        let nan =
            RouterBalance { layer: 0, load: vec![f32::NAN, f32::INFINITY], max_vio: f64::NAN, entropy: 0.0, dead: 0 };
        odd.step(&StepReport {
            loss: f64::NAN,
            tokens_per_s: f64::INFINITY,
            router: vec![nan],
            ..StepReport::default()
        });
        let empty = StepReport { router: vec![RouterBalance::default()], ..StepReport::default() };
        let mut bare = begun();
        bare.step(&empty);
        for state in [State::new(String::new()), begun(), run(), odd, bare] {
            for (width, height) in [(1, 1), (7, 3), (20, 8), (80, 24), (300, 90)] {
                screen(&state, width, height);
            }
        }
    }
}
