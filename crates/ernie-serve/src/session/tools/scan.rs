//! Reads the JSON object of one call, character by character.
//!
//! It is a scanner, not a parser: it finds the name and the arguments and passes the arguments on as they are written,
//! so that they can be shown while they come. What is no call (a name missing, something else where a key should be) is
//! [`Fed::Bad`] at the first character that says so; arguments themselves may be any text that balances.

/// What a character did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fed {
    /// The object goes on.
    More,
    /// The object is complete with this character.
    Done,
    /// This character belongs to no call.
    Bad,
}

/// What is known of the call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    Name(String),
    Arguments(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In front of `{`.
    Start,
    /// In front of a key or `}`.
    Key,
    InKey,
    Colon,
    Value,
    InValue(Kind),
    /// Behind a value: `,` or `}`.
    Behind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A text, gathered with its quotes.
    Text,
    /// Arguments that the model wrote as a text: what it spells is passed on.
    Spelled,
    /// An object or list; `passed` on or passed over.
    Nested { passed: bool },
    /// A number, `true`, `null`.
    Scalar,
}

#[derive(Debug, Clone)]
pub(super) struct Scanner {
    state: State,
    key: String,
    /// A key, text or scalar as far as it has come, or an escape that is not complete.
    part: String,
    depth: usize,
    in_text: bool,
    escaped: bool,
    /// Arguments that came before the name.
    early: String,
    named: bool,
    /// Whether arguments have begun.
    argued: bool,
    /// Other keys than those of a call are bad.
    strict: bool,
}

impl Scanner {
    pub(super) fn new(strict: bool) -> Self {
        Self {
            state: State::Start,
            key: String::new(),
            part: String::new(),
            depth: 0,
            in_text: false,
            escaped: false,
            early: String::new(),
            named: false,
            argued: false,
            strict,
        }
    }

    /// Whether the name is known.
    pub(super) fn named(&self) -> bool {
        self.named
    }

    /// Takes a character; what it made known goes to `out`.
    pub(super) fn feed(&mut self, c: char, out: &mut Vec<Found>) -> Fed {
        match self.state {
            State::Start | State::Key | State::Colon | State::Value | State::Behind if c.is_ascii_whitespace() => {
                Fed::More
            }
            State::Start if c == '{' => self.go(State::Key),
            State::Key if c == '"' => {
                self.part.clear();
                self.part.push(c);
                self.go(State::InKey)
            }
            State::Key | State::Behind if c == '}' => self.done(out),
            State::InKey => {
                if !self.text_ends(c) {
                    return Fed::More;
                }
                let known = ["name", "arguments", "parameters", "type", "id"];
                match serde_json::from_str(&self.part) {
                    Ok(key) => self.key = key,
                    Err(_) => return Fed::Bad,
                }
                if self.strict && !known.contains(&self.key.as_str()) {
                    return Fed::Bad;
                }
                self.go(State::Colon)
            }
            State::Colon if c == ':' => self.go(State::Value),
            State::Value => self.begin_value(c, out),
            State::InValue(kind) => self.in_value(kind, c, out),
            State::Behind if c == ',' => self.go(State::Key),
            State::Start | State::Key | State::Colon | State::Behind => Fed::Bad,
        }
    }

    /// The end of the text in the middle of the object: what is known all the same.
    pub(super) fn cut_off(&mut self, out: &mut Vec<Found>) {
        let waits = match self.state {
            State::InValue(Kind::Spelled) => true,
            State::InValue(Kind::Scalar) => self.is_arguments() && !self.argued,
            _ => false,
        };
        if waits {
            let part = std::mem::take(&mut self.part);
            self.argue(&part, out);
        }
    }

    /// The end of a call: one without arguments has none to give.
    pub(super) fn done(&mut self, out: &mut Vec<Found>) -> Fed {
        if !self.named {
            return Fed::Bad;
        }
        if !self.argued {
            self.argue("{}", out);
        }
        Fed::Done
    }

    fn go(&mut self, state: State) -> Fed {
        self.state = state;
        Fed::More
    }

    fn is_arguments(&self) -> bool {
        matches!(self.key.as_str(), "arguments" | "parameters")
    }

    fn begin_value(&mut self, c: char, out: &mut Vec<Found>) -> Fed {
        // The first arguments count, and nothing but a text is a name.
        let passed = self.is_arguments() && !self.argued;
        self.part.clear();
        let kind = match c {
            '"' if passed => {
                self.argue("", out);
                return self.go(State::InValue(Kind::Spelled));
            }
            '"' => Kind::Text,
            _ if self.key == "name" => return Fed::Bad,
            '{' | '[' => {
                (self.depth, self.in_text) = (1, false);
                Kind::Nested { passed }
            }
            c if c.is_ascii_alphanumeric() || c == '-' => Kind::Scalar,
            _ => return Fed::Bad,
        };
        match kind {
            Kind::Nested { passed: true } => self.argue_char(c, out),
            Kind::Nested { passed: false } => {}
            _ => self.part.push(c),
        }
        self.go(State::InValue(kind))
    }

    fn in_value(&mut self, kind: Kind, c: char, out: &mut Vec<Found>) -> Fed {
        match kind {
            Kind::Text => {
                if !self.text_ends(c) {
                    return Fed::More;
                }
                if self.key == "name" && !self.named {
                    match serde_json::from_str::<String>(&self.part) {
                        Ok(name) if !name.is_empty() => self.name(name, out),
                        _ => return Fed::Bad,
                    }
                }
                self.go(State::Behind)
            }
            Kind::Spelled => self.spell(c, out),
            Kind::Nested { passed } => {
                if c == '<' && !self.in_text {
                    // No JSON, but the beginning of the tag behind a call that was not closed.
                    return self.broken(out);
                }
                if passed {
                    self.argue_char(c, out);
                }
                self.nest(c);
                if self.depth == 0 { self.go(State::Behind) } else { Fed::More }
            }
            Kind::Scalar => {
                if c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.') {
                    self.part.push(c);
                    return Fed::More;
                }
                if self.is_arguments() && !self.argued {
                    let part = std::mem::take(&mut self.part);
                    self.argue(if part == "null" { "{}" } else { &part }, out);
                }
                self.state = State::Behind;
                self.feed(c, out)
            }
        }
    }

    /// A character inside an object or list.
    fn nest(&mut self, c: char) {
        match c {
            _ if self.escaped => self.escaped = false,
            '\\' if self.in_text => self.escaped = true,
            '"' => self.in_text = !self.in_text,
            '{' | '[' if !self.in_text => self.depth += 1,
            '}' | ']' if !self.in_text => self.depth -= 1,
            _ => {}
        }
    }

    /// A character of a text that is gathered; whether the text ends with it.
    fn text_ends(&mut self, c: char) -> bool {
        self.part.push(c);
        match c {
            _ if self.escaped => self.escaped = false,
            '\\' => self.escaped = true,
            '"' => return true,
            _ => {}
        }
        false
    }

    /// A character of arguments that are written as a text. An escape waits in `part` until it is complete.
    fn spell(&mut self, c: char, out: &mut Vec<Found>) -> Fed {
        if self.part.is_empty() {
            match c {
                '\\' => self.part.push(c),
                '"' => return self.go(State::Behind),
                _ => self.argue_char(c, out),
            }
            return Fed::More;
        }
        let expected = match self.part.len() {
            1 => true,
            6 => c == '\\',
            7 => c == 'u',
            _ => c.is_ascii_hexdigit(),
        };
        if !expected {
            // What was begun is no escape: it is passed on as it stands.
            let part = std::mem::take(&mut self.part);
            self.argue(&part, out);
            return self.spell(c, out);
        }
        let complete = match self.part.len() {
            1 => c != 'u',
            // Half of a surrogate pair waits for the other.
            5 => !matches!(self.part.as_bytes()[2..4], [b'd' | b'D', b'8' | b'9' | b'a' | b'b' | b'A' | b'B']),
            11 => true,
            _ => false,
        };
        self.part.push(c);
        if complete {
            let part = std::mem::take(&mut self.part);
            let spelled: Option<String> = serde_json::from_str(&format!("\"{part}\"")).ok();
            self.argue(&spelled.unwrap_or(part), out);
        }
        Fed::More
    }

    fn broken(&mut self, out: &mut Vec<Found>) -> Fed {
        self.cut_off(out);
        Fed::Bad
    }

    fn name(&mut self, name: String, out: &mut Vec<Found>) {
        self.named = true;
        out.push(Found::Name(name));
        let early = std::mem::take(&mut self.early);
        if !early.is_empty() {
            out.push(Found::Arguments(early));
        }
    }

    fn argue_char(&mut self, c: char, out: &mut Vec<Found>) {
        self.argue(c.encode_utf8(&mut [0; 4]), out);
    }

    fn argue(&mut self, text: &str, out: &mut Vec<Found>) {
        self.argued = true;
        if !self.named {
            self.early.push_str(text);
        } else if let Some(Found::Arguments(last)) = out.last_mut() {
            last.push_str(text);
        } else if !text.is_empty() {
            out.push(Found::Arguments(text.to_owned()));
        }
    }
}
