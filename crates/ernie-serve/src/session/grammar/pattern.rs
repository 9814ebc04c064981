//! Regular expressions of callers: checked before they are compiled.

use llguidance::regex_to_lark;
use regex_syntax::hir::{Hir, HirKind, Look};

use crate::{Error, Result};

/// Bytes of one pattern at most.
pub const MAX_PATTERN_BYTES: usize = 4096;

/// Steps of a pattern with its repetitions written out, at most.
const MAX_STEPS: u64 = 100_000;

/// Checks a pattern of a schema. `at` says where it stands.
pub(super) fn check(at: &str, pattern: &str) -> Result<()> {
    check_as(at, pattern, "dw")
}

/// Checks a pattern for a whole answer.
pub(super) fn check_whole(at: &str, pattern: &str) -> Result<()> {
    check_as(at, pattern, "")
}

fn check_as(at: &str, pattern: &str, ascii: &str) -> Result<()> {
    let refuse = |what: String| Err(Error::refused(at, what));
    if pattern.len() > MAX_PATTERN_BYTES {
        return refuse(format!("the pattern has {} bytes (expected at most {MAX_PATTERN_BYTES})", pattern.len()));
    }
    // It is compiled in the spelling of the grammar, where some classes are narrower.
    let hir = match parse(pattern).and_then(|_| parse(&regex_to_lark(pattern, ascii))) {
        Ok(hir) => hir,
        Err(what) => return refuse(format!("the pattern is malformed: {what}")),
    };
    if has_boundary(&hir) {
        return refuse("the pattern asks for a word boundary or the end of a line, which is not supported".into());
    }
    let steps = steps(&hir);
    if steps > MAX_STEPS {
        return refuse(format!("the pattern repeats itself to {steps} steps (expected at most {MAX_STEPS})"));
    }
    Ok(())
}

fn parse(pattern: &str) -> std::result::Result<Hir, String> {
    regex_syntax::Parser::new().parse(pattern).map_err(|error| match &error {
        regex_syntax::Error::Parse(error) => error.kind().to_string(),
        regex_syntax::Error::Translate(error) => error.kind().to_string(),
        _ => "it is no regular expression".to_owned(),
    })
}

fn has_boundary(hir: &Hir) -> bool {
    match hir.kind() {
        HirKind::Look(look) => !matches!(look, Look::Start | Look::End),
        kind => kind.subs().iter().any(has_boundary),
    }
}

/// What the pattern would be long without repetition counts.
fn steps(hir: &Hir) -> u64 {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => 0,
        HirKind::Literal(literal) => literal.0.len() as u64,
        HirKind::Class(_) => 1,
        HirKind::Repetition(repetition) => {
            let times = repetition.max.unwrap_or(repetition.min.max(1));
            steps(&repetition.sub).saturating_mul(u64::from(times))
        }
        kind => kind.subs().iter().map(steps).fold(0, u64::saturating_add),
    }
}
