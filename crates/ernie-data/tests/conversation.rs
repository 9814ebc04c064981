//! Conversations as tokens: what is learned is what the assistant wrote, and examples stay whole.

use ernie_data::chat::{ChatTemplate, Message};
use ernie_data::conversation::{Conversation, Lesson};
use ernie_data::packing::{Batch, Builder, Example, IGNORED, Marks, Packer, TokenStore};
use ernie_data::tokenizer::{Tokenizer, TrainOptions, train_bpe};
use proptest::prelude::*;

const CHATML: &str = "{% for m in messages %}{{'<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Drops what was thought in turns before the last, as thinking models' templates do.
const FORGETFUL: &str = "{% for m in messages %}{{ '<s>' + m.role + ':' }}{% if m.reasoning_content and loop.last %}{{ '(' + m.reasoning_content + ')' }}{% endif %}{{ m.content + '</s>' }}{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant:' }}{% endif %}";

fn tokenizer() -> Tokenizer {
    let mut options = TrainOptions::ernie(300);
    options.special_tokens.push(("<|im_start|>".into(), String::new()));
    options.special_tokens.push(("<|im_end|>".into(), String::new()));
    train_bpe(["the user asks, the assistant answers; yes and no, no and yes"].into_iter().cycle().take(9), &options)
        .unwrap()
}

/// What carries a loss, as text, stretch by stretch.
fn learned(tokenizer: &Tokenizer, example: &Example) -> Vec<String> {
    let mut stretches: Vec<Vec<u32>> = vec![Vec::new()];
    for (id, trained) in example.ids.iter().zip(&example.trained) {
        match (trained, stretches.last_mut()) {
            (true, Some(last)) => last.push(*id),
            (false, Some(last)) if !last.is_empty() => stretches.push(Vec::new()),
            _ => {}
        }
    }
    let text = |ids: &Vec<u32>| tokenizer.decode(ids);
    stretches.iter().filter(|ids| !ids.is_empty()).map(text).collect()
}

fn chat() -> Conversation {
    Conversation::new(vec![
        Message::system("be brief"),
        Message::user("yes </s> <|im_end|> ?"),
        Message::assistant("no"),
        Message::user("no?"),
        Message::assistant("yes and no"),
    ])
}

#[test]
fn the_assistants_words_are_learned_with_what_ends_them() {
    let tokenizer = tokenizer();
    // This tokenizer joins the blank before an answer with the answer, so a later prompt does not begin with the tokens of the
    // turn before: each turn is an example, as it will be asked for.
    let ernie = ChatTemplate::default_ernie();
    let examples = chat().examples(&ernie, &tokenizer, 1000).unwrap();
    let all: Vec<_> = examples.iter().flat_map(|example| learned(&tokenizer, example)).collect();
    assert_eq!(all, ["no<|end_of_sentence|>", "yes and no<|end_of_sentence|>"]);
    assert_eq!(examples.iter().map(|e| e.text_bytes).sum::<u64>(), 2 + 10 + 2 * "<|end_of_sentence|>".len() as u64);
    for (example, turn) in examples.iter().zip([2, 4]) {
        let prompt = ernie.render(&chat().messages[..turn], true, &tokenizer).unwrap().encode(&tokenizer).unwrap();
        assert!(example.ids.starts_with(&prompt) && example.trained.iter().position(|&t| t) == Some(prompt.len()));
    }

    let chatml = ChatTemplate::from_source(CHATML).unwrap();
    let examples = chat().examples(&chatml, &tokenizer, 1000).unwrap();
    assert_eq!(examples.len(), 1);
    assert_eq!(learned(&tokenizer, &examples[0]), ["no<|im_end|>\n", "yes and no<|im_end|>\n"]);

    let mut some = chat();
    some.trained[2] = false;
    assert_eq!(learned(&tokenizer, &some.examples(&chatml, &tokenizer, 1000).unwrap()[0]), ["yes and no<|im_end|>\n"]);
}

#[test]
fn a_conversation_without_end_ends() {
    let tokenizer = tokenizer();
    let turns = (0..200_000).flat_map(|_| [Message::user("yes?"), Message::assistant("no")]).collect();
    let endless = Conversation::new(turns);
    for template in [ChatTemplate::from_source(CHATML).unwrap(), ChatTemplate::default_ernie()] {
        let examples = endless.examples(&template, &tokenizer, 300).unwrap();
        assert!(examples.iter().filter(|example| example.ids.len() > 300).count() == 1 && examples.len() < 100);
    }
}

#[test]
fn a_template_that_rewrites_earlier_turns_gives_an_example_a_turn() {
    let tokenizer = tokenizer();
    let mut chat = chat();
    for turn in [2, 4] {
        chat.messages[turn].reasoning = Some("asks".into());
    }
    let template = ChatTemplate::from_source(FORGETFUL).unwrap();
    let examples = chat.examples(&template, &tokenizer, 1000).unwrap();
    let learned: Vec<_> = examples.iter().map(|example| learned(&tokenizer, example)).collect();
    assert_eq!(learned, [["(asks)no</s>"], ["(asks)yes and no</s>"]]);
    // A prompt that the turn does not go on from leaves nothing to learn from.
    let odd = ChatTemplate::from_source("{{ messages | length }}{% if add_generation_prompt %}?{% endif %}").unwrap();
    let error = chat.examples(&odd, &tokenizer, 1000).unwrap_err().to_string();
    assert!(error.contains("turn 3") && error.contains("prompt"), "{error}");
}

#[test]
fn a_completion_is_learned_as_it_stands() {
    let tokenizer = tokenizer();
    let lesson = Lesson::parse(r#"{"prompt": "yes or <s>no? Answer:", "completion": " yes"}"#).unwrap();
    let examples = lesson.examples(&ChatTemplate::default_ernie(), &tokenizer, 1000).unwrap();
    assert_eq!(learned(&tokenizer, &examples[0]), [" yes</s>"]);
    assert_eq!(tokenizer.decode(&examples[0].ids), "</s>yes or <s>no? Answer: yes</s>");
    // A mark in the data is text, and no mark.
    assert!(!examples[0].ids.contains(&1), "{:?}", examples[0].ids);
}

fn store(examples: &[Example], seq_len: usize) -> (TokenStore, Vec<String>) {
    let mut packer = Packer::new(Builder::new(seq_len, Marks::eos(7), 1 << 20, None).unwrap());
    examples.iter().for_each(|example| packer.push(vec![example.clone()]).unwrap());
    let notes = packer.notes();
    (packer.finish().unwrap(), notes)
}

/// Segments of all rows that have anything to learn: ids with their targets.
fn segments(store: &mut TokenStore) -> Vec<(Vec<u32>, Vec<i64>)> {
    let mut batch = Batch::new(store.seq_len());
    (0..store.rows()).for_each(|row| store.append_row(0, row, &mut batch).unwrap());
    assert_eq!(batch.unmasked() as u64, store.targets());
    let mut at = 0;
    let mut all = Vec::new();
    for length in batch.lengths {
        assert_eq!(at / batch.seq_len, (at + length - 1) / batch.seq_len, "a segment crosses a row");
        let (ids, targets) = (batch.ids[at..at + length].to_vec(), batch.targets[at..at + length].to_vec());
        if targets.iter().any(|&target| target != IGNORED) {
            all.push((ids, targets));
        }
        at += length;
    }
    all
}

proptest! {
    #[test]
    fn every_example_lies_whole_in_one_row(
        lengths in prop::collection::vec((1_usize..40, any::<u64>()), 0..700),
        seq_len in 24_usize..64,
    ) {
        let examples: Vec<Example> = lengths.iter().enumerate().map(|(i, &(length, mask))| Example {
            ids: (0..length).map(|at| 10 + (i * 41 + at) as u32).collect(),
            trained: (0..length).map(|at| mask >> (at % 64) & 1 == 1).collect(),
            text_bytes: 1,
        }).collect();
        let (mut packed, notes) = store(&examples, seq_len);
        let mut expected: Vec<_> = examples.iter().filter_map(|example| {
            let kept = example.ids.len().min(seq_len);
            let target = |i: usize| if i + 1 < kept && example.trained[i + 1] { i64::from(example.ids[i + 1]) } else { IGNORED };
            let targets: Vec<i64> = (0..kept).map(target).collect();
            targets.iter().any(|&target| target != IGNORED).then(|| (example.ids[..kept].to_vec(), targets))
        }).collect();
        let mut got = segments(&mut packed);
        expected.sort();
        got.sort();
        prop_assert_eq!(&got, &expected);
        prop_assert_eq!(packed.documents(), expected.len() as u64);
        let cut = examples.iter().filter(|example| example.ids.len() > seq_len).count();
        prop_assert_eq!(notes.iter().any(|note| note.contains("were cut")), cut > 0);
        // Little is left empty: a row takes the longest that fits.
        let filled: usize = expected.iter().map(|(ids, _)| ids.len()).sum();
        prop_assert!(packed.rows() as usize <= filled.div_ceil(seq_len) * 2 + 1);
    }
}
