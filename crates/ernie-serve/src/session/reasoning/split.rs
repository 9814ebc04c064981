//! Divides an answer into reasoning and content while it comes.

use super::ReasoningForm;
use crate::session::stop::overlap;

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Split {
    /// More of what the model thinks.
    pub reasoning: String,
    /// More of what it says.
    pub content: String,
}

impl Split {
    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.reasoning.is_empty() && self.content.is_empty()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nothing but white space came: an opening tag may follow.
    Start,
    Reasoning,
    /// Behind the reasoning: the tag around the answer may follow.
    Between,
    /// In an answer with tags around it.
    Tagged,
    /// Behind it.
    Behind,
    /// In an answer without tags.
    Content,
}

/// Divides the text of one answer.
///
/// White space at both ends of the reasoning, and of an answer with tags or behind reasoning at its front, is left out.
/// An answer that does not begin with a tag is content throughout; reasoning that never ends is reasoning to the end.
#[derive(Debug, Clone)]
pub struct Splitter {
    form: ReasoningForm,
    place: Place,
    /// Whether the part has begun: white space in front of it is over.
    begun: bool,
    held: String,
}

impl Splitter {
    /// A splitter for an answer to a prompt that ends `inside` reasoning ([`ReasoningForm::is_open_in`]) or not.
    pub fn new(form: ReasoningForm, inside: bool) -> Self {
        let place = if inside { Place::Reasoning } else { Place::Start };
        Self { form, place, begun: false, held: String::new() }
    }

    /// Takes more text; gives what is certain.
    pub fn push(&mut self, text: &str) -> Split {
        self.held.push_str(text);
        self.run(false)
    }

    /// The end of the text: gives what was held back.
    pub fn finish(mut self) -> Split {
        self.run(true)
    }

    /// Whether the answer is in its reasoning now.
    pub fn is_thinking(&self) -> bool {
        self.place == Place::Reasoning
    }

    fn run(&mut self, end: bool) -> Split {
        let mut out = Split::default();
        let [open, close] = [self.form.open.clone(), self.form.close.clone()];
        let [answer, answer_end] = self.form.answer.clone().unwrap_or_default();
        loop {
            match self.place {
                Place::Start => match self.tag(&[(&open, Place::Reasoning), (&answer, Place::Tagged)], end) {
                    Some(true) => {}
                    Some(false) => self.place = Place::Content,
                    None => return out,
                },
                Place::Reasoning => {
                    let (text, found) = self.until(&close, end);
                    out.reasoning += &text;
                    if !found {
                        return out;
                    }
                    self.place = Place::Between;
                }
                Place::Between => match self.tag(&[(&answer, Place::Tagged)], end) {
                    Some(true) => {}
                    Some(false) => self.place = Place::Behind,
                    None => return out,
                },
                Place::Tagged => {
                    let (text, found) = self.until(&answer_end, end);
                    out.content += &text;
                    if !found {
                        return out;
                    }
                    self.place = Place::Behind;
                }
                Place::Behind => {
                    self.held.drain(..self.held.len() - self.held.trim_start().len());
                    if self.held.is_empty() {
                        return out;
                    }
                    self.place = Place::Content;
                }
                Place::Content => {
                    out.content += &std::mem::take(&mut self.held);
                    return out;
                }
            }
        }
    }

    /// Takes one of the tags, with white space before it, off the front and goes to its place. `Some(false)` where there
    /// is none, `None` where one may still come.
    fn tag(&mut self, tags: &[(&str, Place)], end: bool) -> Option<bool> {
        let rest = self.held.trim_start();
        let mut tags = tags.iter().filter(|(tag, _)| !tag.is_empty());
        if let Some(&(tag, place)) = tags.clone().find(|(tag, _)| rest.starts_with(tag)) {
            self.held = rest[tag.len()..].to_owned();
            (self.place, self.begun) = (place, false);
            return Some(true);
        }
        if !end && tags.any(|(tag, _)| tag.starts_with(rest)) {
            return None;
        }
        Some(false)
    }

    /// Takes the text up to `tag`, without white space at both ends, and whether the tag was there. Without it, what may
    /// be its beginning, or white space in front of it, is held back.
    fn until(&mut self, tag: &str, end: bool) -> (String, bool) {
        let (text, found) = match self.held.find(tag) {
            Some(at) => {
                let text = self.held[..at].to_owned();
                self.held.drain(..at + tag.len());
                (text, true)
            }
            None => {
                let keep = if end { 0 } else { overlap(&self.held, tag) };
                let certain = self.held[..self.held.len() - keep].trim_end().len();
                let rest = self.held.split_off(certain);
                (std::mem::replace(&mut self.held, rest), false)
            }
        };
        let text = if self.begun { text.as_str() } else { text.trim_start() };
        let text = if found { text.trim_end() } else { text };
        self.begun |= !text.is_empty();
        (text.to_owned(), found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(form: &ReasoningForm, inside: bool, pieces: &[&str]) -> (String, String) {
        let mut splitter = Splitter::new(form.clone(), inside);
        let mut all = Split::default();
        let mut add = |more: Split| {
            all.reasoning += &more.reasoning;
            all.content += &more.content;
        };
        pieces.iter().for_each(|piece| add(splitter.push(piece)));
        add(splitter.finish());
        (all.reasoning, all.content)
    }

    #[test]
    fn reasoning_and_content_are_told_apart() {
        let (plain, ernie) = (ReasoningForm::think(false), ReasoningForm::think(true));
        for (form, inside, text, reasoning, content) in [
            (&plain, false, "<think>\nwhy\n</think>\n\nso", "why", "so"),
            (&plain, false, " \n<think>why</think>so\n", "why", "so\n"),
            (&plain, true, "\nwhy not\n\n</think>\n\nso </think>", "why not", "so </think>"),
            (&plain, true, "never ends <thi", "never ends <thi", ""),
            (&plain, true, "cut </thi", "cut </thi", ""),
            (&plain, false, "<thinking about", "", "<thinking about"),
            (&plain, false, "just content <think>x</think>", "", "just content <think>x</think>"),
            (&plain, false, " two spaces", "", " two spaces"),
            (&plain, false, "<think>\n\n</think>\n\n", "", ""),
            (&plain, false, "", "", ""),
            (&ernie, true, "\nwhy\n</think>\n\n<response>\nso it is\n</response>\n", "why", "so it is"),
            (&ernie, true, "why</think>\n\n<tool_call>x", "why", "<tool_call>x"),
            (&ernie, true, "why</think><response>a\n</response>\n<tool_call>", "why", "a<tool_call>"),
            (&ernie, true, "why</think><response>\ncut off\n</resp", "why", "cut off\n</resp"),
            (&ernie, false, "<response>\nhello</response>", "", "hello"),
            (&ernie, true, "why</think> <resp", "why", "<resp"),
        ] {
            assert_eq!(run(form, inside, &[text]), (reasoning.into(), content.into()), "{text:?}");
        }
    }

    #[test]
    fn text_is_given_as_early_as_is_certain() {
        let mut splitter = Splitter::new(ReasoningForm::think(false), true);
        assert_eq!(splitter.push("a <").reasoning, "a");
        assert_eq!(splitter.push("b").reasoning, " <b");
        assert!(splitter.is_thinking());
        assert_eq!(splitter.push("</think>c"), Split { content: "c".into(), ..Split::default() });
        assert_eq!(splitter.push(" d ").content, " d ");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

        #[test]
        fn any_cut_gives_the_same(
            parts in prop::collection::vec("<think>|</think>|<response>|</response>|[ \n]{1,2}|[a<é/]{1,3}", 0..9),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..9),
            inside: bool,
            tagged: bool,
        ) {
            let (form, text) = (ReasoningForm::think(tagged), parts.concat());
            let pieces = crate::session::cut(&text, &cuts);
            prop_assert_eq!(run(&form, inside, &pieces), run(&form, inside, &[&text]));
        }
    }
}
