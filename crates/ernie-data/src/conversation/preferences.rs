//! The shapes that preferences come in: what was asked, and two answers of which one was judged the better.

use serde::Deserialize;

use super::shapes::{self, Said, Turn};
use super::{Conversation, Lesson, Preference};
use crate::chat::Message;

type Result<T> = std::result::Result<T, String>;

/// Every key that any shape knows; others are passed over.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Line {
    prompt: Option<Either>,
    messages: Option<Vec<Turn>>,
    conversations: Option<Vec<Said>>,
    instruction: Option<String>,
    input: Option<String>,
    system: Option<String>,
    chosen: Option<Either>,
    rejected: Option<Either>,
}

/// A text, a turn, or turns, in either spelling.
#[derive(Deserialize)]
#[serde(untagged)]
enum Either {
    Text(String),
    Turn(Turn),
    Said(Said),
    Turns(Vec<Turn>),
    SaidAll(Vec<Said>),
}

/// See [`Preference::parse`].
pub(super) fn parse(line: &str) -> Result<Preference> {
    let line: Line = shapes::read(line, "a preference")?;
    let (Some(chosen), Some(rejected)) = (line.chosen, line.rejected) else {
        return Err(
            "expected `chosen` and `rejected`, and what was asked in `prompt`, `messages`, `conversations` or \
                    `instruction`"
                .into(),
        );
    };
    let asked = match (line.prompt, line.messages, line.conversations, line.instruction) {
        (Some(Either::Text(prompt)), ..) => {
            let whole = |answer: Either| match answer {
                Either::Text(completion) => Ok(Lesson::Completion { prompt: prompt.clone(), completion }),
                _ => Err("`prompt` is text, so `chosen` and `rejected` must be".to_owned()),
            };
            return Ok(Preference { chosen: whole(chosen)?, rejected: whole(rejected)? });
        }
        (Some(prompt), ..) => turns(prompt)?,
        (None, Some(messages), ..) => shapes::from_messages(messages)?.messages,
        (None, None, Some(said), _) => shapes::from_sharegpt(said)?.messages,
        (None, None, None, Some(instruction)) => vec![Message::user(shapes::with_input(instruction, line.input))],
        (None, None, None, None) => Vec::new(),
    };
    let system = line.system.filter(|text| !text.is_empty()).map(Message::system);
    let whole = |name: &str, answer: Either| {
        let answer = match answer {
            Either::Text(text) if asked.is_empty() => transcript(&text).ok_or(format!(
                "{name}: without `prompt` it must be the whole conversation, as turns or as text of `Human:` and `Assistant:`"
            ))?,
            Either::Text(text) => vec![Message::assistant(text)],
            other => turns(other)?,
        };
        let messages: Vec<Message> = system.iter().chain(&asked).cloned().chain(answer).collect();
        let mut trained = vec![false; messages.len()];
        match messages.last() {
            Some(last) if last.role == "assistant" => trained[messages.len() - 1] = true,
            _ => return Err(format!("{name}: expected the assistant to have the last word")),
        }
        Ok(Conversation { messages, tools: Vec::new(), trained })
    };
    let (chosen, rejected) = (whole("chosen", chosen)?, whole("rejected", rejected)?);
    Ok(Preference { chosen: Lesson::Chat(chosen), rejected: Lesson::Chat(rejected) })
}

fn turns(said: Either) -> Result<Vec<Message>> {
    Ok(match said {
        Either::Text(text) => vec![Message::user(text)],
        Either::Turn(turn) => shapes::from_messages(vec![turn])?.messages,
        Either::Turns(turns) => shapes::from_messages(turns)?.messages,
        Either::Said(said) => shapes::from_sharegpt(vec![said])?.messages,
        Either::SaidAll(said) => shapes::from_sharegpt(said)?.messages,
    })
}

/// A conversation written as one text, each turn after a blank line and `Human:` or `Assistant:` (Anthropic's HH); `None` for any other text.
fn transcript(text: &str) -> Option<Vec<Message>> {
    const MARKS: [(&str, &str); 2] = [("\n\nHuman:", "user"), ("\n\nAssistant:", "assistant")];
    // In one pass, however many turns there are.
    let turns = text.match_indices('\n').filter_map(|(at, _)| {
        let (mark, role) = MARKS.into_iter().find(|(mark, _)| text[at..].starts_with(mark))?;
        Some((at, at + mark.len(), role))
    });
    let turns: Vec<(usize, usize, &str)> = turns.collect();
    if !text[..turns.first()?.0].trim().is_empty() {
        return None;
    }
    let ends = turns.iter().skip(1).map(|turn| turn.0).chain([text.len()]);
    Some(turns.iter().zip(ends).map(|(&(_, start, role), end)| Message::new(role, text[start..end].trim())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns_of(lesson: &Lesson) -> Vec<(String, String, bool)> {
        let Lesson::Chat(Conversation { messages, trained, .. }) = lesson else { panic!("{lesson:?}") };
        messages.iter().zip(trained).map(|(m, t)| (m.role.clone(), m.content.clone(), *t)).collect()
    }

    #[test]
    fn every_shape_is_the_same_preference() {
        let whole = |answer: &str| {
            [("user", "Q", false), ("assistant", "A", false), ("user", "R", false), ("assistant", answer, true)]
                .map(|(role, text, trained)| (role.to_owned(), text.to_owned(), trained))
                .to_vec()
        };
        let asked = r#"[{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}, {"role": "user", "content": "R"}]"#;
        let with = |answer: &str| {
            format!("{}, {{\"role\": \"assistant\", \"content\": \"{answer}\"}}]", &asked[..asked.len() - 1])
        };
        for line in [
            r#"{"chosen": "\n\nHuman: Q\n\nAssistant: A\n\nHuman: R\n\nAssistant: good", "rejected": "\n\nHuman: Q\n\nAssistant: A\n\nHuman: R\n\nAssistant: bad"}"#.to_owned(),
            format!(r#"{{"chosen": {}, "rejected": {}}}"#, with("good"), with("bad")),
            format!(r#"{{"prompt": {asked}, "chosen": [{{"role": "assistant", "content": "good"}}], "rejected": "bad"}}"#),
            format!(r#"{{"messages": {asked}, "chosen": {{"role": "assistant", "content": "good"}}, "rejected": {{"role": "assistant", "content": "bad"}}}}"#),
            r#"{"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}, {"from": "human", "value": "R"}],
                "chosen": {"from": "gpt", "value": "good"}, "rejected": {"from": "gpt", "value": "bad"}}"#.to_owned(),
        ] {
            let preference = parse(&line).unwrap();
            assert_eq!(turns_of(&preference.chosen), whole("good"), "{line}");
            assert_eq!(turns_of(&preference.rejected), whole("bad"), "{line}");
        }
        let alpaca =
            parse(r#"{"instruction": "Q", "input": "x", "system": "S", "chosen": "good", "rejected": "bad"}"#).unwrap();
        assert_eq!(
            turns_of(&alpaca.chosen)[..2],
            [("system".into(), "S".into(), false), ("user".into(), "Q\nx".into(), false)]
        );
        let text = parse(r#"{"prompt": "Q", "chosen": " good", "rejected": " bad"}"#).unwrap();
        assert_eq!(text.rejected, Lesson::Completion { prompt: "Q".into(), completion: " bad".into() });
    }

    #[test]
    fn a_transcript_of_very_many_turns_takes_one_pass() {
        let turns = transcript(&"\n\nHuman: a".repeat(1 << 18)).unwrap();
        assert_eq!((turns.len(), turns[7].content.as_str()), (1 << 18, "a"));
        assert_eq!(transcript("\n\n\nHuman: a\n\nno mark\n\nAssistant:b").unwrap()[0].content, "a\n\nno mark");
        assert!(transcript("first\n\nHuman: a").is_none() && transcript("a").is_none());
    }

    #[test]
    fn mistakes_say_what_was_expected() {
        for (line, says) in [
            ("[1]", "one object a line"),
            ("{}", "`chosen` and `rejected`"),
            (r#"{"chosen": "a"}"#, "`chosen` and `rejected`"),
            (r#"{"chosen": "a", "rejected": "b"}"#, "whole conversation"),
            (r#"{"prompt": "q", "chosen": [], "rejected": "b"}"#, "must be"),
            (
                r#"{"instruction": "q", "chosen": {"role": "user", "content": "a"}, "rejected": "b"}"#,
                "chosen: expected the assistant",
            ),
            (r#"{"chosen": 3, "rejected": "b"}"#, "not a preference"),
            (r#"{"prompt": [], "chosen": [], "rejected": []}"#, "last word"),
        ] {
            let what = parse(line).unwrap_err();
            assert!(what.contains(says), "{line}: {what}");
        }
    }
}
