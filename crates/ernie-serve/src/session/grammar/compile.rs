//! From a checked schema, pattern or form of calls to a matcher.
//!
//! Compiling goes as deep as a schema does, on a stack of its own, and its work is bounded by the limits of the
//! vocabulary. What comes out is tried once: a grammar that allows no first token is refused here, not in the middle of an
//! answer.

use llguidance::Matcher;
use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use serde_json::{Value, json};

use super::{Grammar, GrammarVocab, one_line, pattern, schema};
use crate::{Error, Result};

/// Stack for compiling; only what is used of it becomes memory.
const STACK_BYTES: usize = 256 << 20;

/// White space between the parts of a JSON text: a space, or a new line and its indentation. Without a bound a model could
/// go on with it for ever.
const WHITE_SPACE: &str = r"\x20|\n\x20{0,40}";

/// Escapes in texts. There is one way to write each character, so that a name cannot come in a second spelling.
const ESCAPES: &str = "nrbtf\\\"";

pub(super) fn json_schema(vocab: &GrammarVocab, value: &Value) -> Result<Grammar> {
    let document = document("schema", value)?;
    compile(vocab, "schema", TopLevelGrammar::from_json_schema(document))
}

pub(super) fn json_object(vocab: &GrammarVocab) -> Result<Grammar> {
    json_schema(vocab, &json!({"type": "object"}))
}

pub(super) fn regex(vocab: &GrammarVocab, pattern: &str) -> Result<Grammar> {
    pattern::check_whole("regex", pattern)?;
    compile(vocab, "regex", TopLevelGrammar::from_regex(pattern))
}

/// What the grammar of calls is made of.
#[derive(Debug)]
pub(in crate::session) struct CallsGrammar {
    /// What stands before and behind each call: the tag, or nothing.
    pub(in crate::session) tags: Option<[String; 2]>,
    /// The key of the arguments.
    pub(in crate::session) key: String,
    /// Names and the schemas of their arguments.
    pub(in crate::session) tools: Vec<(String, Value)>,
    /// Where it begins and how it goes on.
    pub(in crate::session) place: Place,
}

/// What the grammar of calls is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::session) enum Place {
    /// A whole answer of one call.
    One,
    /// A whole answer of one call or more.
    Several,
    /// What follows the opening tag, up to and with the closing one.
    Inside,
}

impl CallsGrammar {
    /// Compiles it.
    pub(in crate::session) fn compile(&self, vocab: &GrammarVocab) -> Result<Grammar> {
        let quote = |text: &str| Value::from(text).to_string();
        let tag = |tag: &str| match vocab.tag(tag) {
            Some(id) => format!("<[{id}]>"),
            None => quote(tag),
        };
        let bodies: Vec<String> = (0..self.tools.len()).map(|index| format!("call_{index}")).collect();
        let mut lark = match self.place {
            Place::One => "start: call\n".to_owned(),
            Place::Several => "start: call (\"\\n\" call)*\n".to_owned(),
            Place::Inside => "start: \"\\n\"? inner\n".to_owned(),
        };
        lark += &match &self.tags {
            Some([open, close]) => {
                format!("call: {} \"\\n\" inner\ninner: body \"\\n\" {}\n", tag(open), tag(close))
            }
            None => "call: body\ninner: body\n".to_owned(),
        };
        lark += &format!("body: {}\n", bodies.join(" | "));
        let mut grammars = vec![GrammarWithLexer::default()];
        for (index, (name, parameters)) in self.tools.iter().enumerate() {
            let front = format!(r#"{{"name": {}, {}: "#, quote(name), quote(&self.key));
            lark += &format!("call_{index}: {} @parameters_{index} \"}}\"\n", quote(&front));
            let mut grammar =
                GrammarWithLexer::from_json_schema(document(&format!("parameters of {name}"), parameters)?);
            grammar.name = Some(format!("parameters_{index}"));
            grammars.push(grammar);
        }
        grammars[0] = GrammarWithLexer::from_lark(lark);
        compile(vocab, "tools", TopLevelGrammar { grammars, max_tokens: None })
    }
}

/// The schema as the compiler wants it, with how texts and white space are written.
fn document(what: &str, value: &Value) -> Result<Value> {
    let mut schema = match schema::check(what, value)?.schema {
        Value::Bool(true) => json!({}),
        Value::Bool(false) => return Err(Error::refused(what, "false allows nothing")),
        schema => schema,
    };
    if let Some(map) = schema.as_object_mut() {
        map.remove("$id");
        map.remove("id");
        let options = json!({
            "whitespace_pattern": WHITE_SPACE,
            "json_allowed_escapes": ESCAPES,
            "json_allow_general_unicode_escapes": false,
        });
        map.insert("x-guidance".into(), options);
    }
    Ok(schema)
}

fn compile(vocab: &GrammarVocab, what: &str, grammar: TopLevelGrammar) -> Result<Grammar> {
    let build = || -> std::result::Result<(Matcher, usize), String> {
        let source = grammar.grammars.iter().map(source_bytes).sum::<usize>();
        let parser = vocab.factory().create_parser(grammar).map_err(|error| error.to_string())?;
        let held = 8 * source + parser.parser.lexer_stats().num_bytes + (64 << 10);
        let matcher = Matcher::new(Ok(parser));
        let mut first = matcher.deep_clone();
        first.compute_mask_or_eos().map_err(|error| match error.to_string() {
            error if error.contains("NoExtensionBias") => "no answer can satisfy it".to_owned(),
            error => error,
        })?;
        Ok((matcher, held))
    };
    let built = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("grammar".into()).stack_size(STACK_BYTES);
        let thread = thread.spawn_scoped(scope, build).map_err(|error| format!("no thread to compile on: {error}"));
        thread.map(|thread| thread.join())
    });
    match built {
        Err(error) => Err(Error::System(error)),
        Ok(Err(_)) => Err(Error::Internal("compiling a grammar panicked".into())),
        Ok(Ok(Err(error))) => Err(Error::refused(what, explain(&one_line(&error)))),
        Ok(Ok(Ok((matcher, bytes)))) => Ok(Grammar::new(vocab, matcher, bytes)),
    }
}

fn source_bytes(grammar: &GrammarWithLexer) -> usize {
    let schema = grammar.json_schema.as_ref().map_or(0, |schema| schema.to_string().len());
    schema + grammar.lark_grammar.as_ref().map_or(0, String::len)
}

/// The compiler's message in the words of its caller.
fn explain(message: &str) -> String {
    if message.starts_with("oneOf constraints are not supported") {
        return "the keyword \"oneOf\" is supported only where its options exclude each other, as by a constant".into();
    }
    if message.starts_with("Unsatisfiable schema") || message.contains("Unsatisfiable") {
        let why = message.trim_start_matches("Unsatisfiable schema: ");
        return format!("no answer can satisfy it: {why}");
    }
    message.to_owned()
}
