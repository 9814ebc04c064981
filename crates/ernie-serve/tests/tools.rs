//! Tools: definitions at the door, calls in the text, what models are shown.

#[path = "support/writer.rs"]
mod writer;

use ernie_data::chat::{ChatTemplate, Message, ToolCall};
use ernie_data::tokenizer::{Tokenizer, TrainOptions, train_bpe};
use ernie_serve::Result;
use ernie_serve::engine::Watcher;
use ernie_serve::session::tools::check_messages;
use ernie_serve::session::{
    CallForm, Delta, Gate, Grammar, GrammarCache, GrammarVocab, ReasoningForm, TextStream, ToolChoice, ToolParser,
    Tools,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use writer::{EOS, End, answer_of};

fn tool(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}})
}

/// Text and calls `(id, name, arguments)` of an answer that comes in pieces.
fn run(form: &CallForm, pieces: &[&str]) -> (String, Vec<(String, String, String)>, bool) {
    let mut parser = ToolParser::new(form, ["f".to_owned(), "g".to_owned()], "call_");
    let mut deltas: Vec<Delta> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
    deltas.extend(parser.finish());
    let (mut text, mut calls) = (String::new(), Vec::new());
    for delta in deltas {
        match delta {
            Delta::Text(more) => {
                assert!(!more.is_empty());
                text += &more;
            }
            Delta::CallStart { index, id, name } => {
                assert_eq!(index, calls.len());
                calls.push((id, name, String::new()));
            }
            Delta::Arguments { index, delta } => {
                assert_eq!(index + 1, calls.len());
                calls[index].2 += &delta;
            }
        }
    }
    assert_eq!(parser.calls(), calls.len());
    (text, calls, parser.cut_off())
}

fn check(form: &CallForm, text: &str, expect_text: &str, expect: &[(&str, &str)]) {
    let (shown, calls, _) = run(form, &[text]);
    let calls: Vec<(&str, &str)> = calls.iter().map(|(_, name, arguments)| (&**name, &**arguments)).collect();
    assert_eq!((shown.as_str(), calls.as_slice()), (expect_text, expect), "{text}");
    let singles: Vec<String> = text.chars().map(String::from).collect();
    let singles: Vec<&str> = singles.iter().map(String::as_str).collect();
    assert_eq!(run(form, &singles), run(form, &[text]), "{text}, character by character");
}

#[test]
fn tagged_calls() {
    let form = CallForm::tagged();
    let check = |text: &str, shown: &str, calls: &[(&str, &str)]| check(&form, text, shown, calls);
    // As models write them.
    check("<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>", "", &[("f", "{\"a\": 1}")]);
    check("Let me see.\n<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>", "Let me see.", &[("f", "{}")]);
    check(
        "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n{\"name\": \"g\", \"arguments\": {\"x\": [1, {\"y\": \"}\"}]}}\n</tool_call>\n",
        "",
        &[("f", "{}"), ("g", "{\"x\": [1, {\"y\": \"}\"}]}")],
    );
    check(
        "<tool_call>[{\"name\":\"f\",\"arguments\":{}}, {\"name\":\"g\"}]</tool_call>ok",
        "ok",
        &[("f", "{}"), ("g", "{}")],
    );
    check(
        "<tool_call>{\"arguments\":{\"a\":\"</tool_call>\"},\"name\":\"f\"}</tool_call>",
        "",
        &[("f", "{\"a\":\"</tool_call>\"}")],
    );
    check("<tool_call>{\"name\":\"f\",\"parameters\":{\"a\":2}}</tool_call>", "", &[("f", "{\"a\":2}")]);
    check(
        "<tool_call>{\"id\":7,\"x\":{\"name\":\"g\"},\"name\":\"f\",\"arguments\":null}</tool_call>",
        "",
        &[("f", "{}")],
    );
    // Arguments are a text, whatever the model wrote.
    check(
        r#"<tool_call>{"name":"f","arguments":"{\"a\": \"\u00e9\ud83d\ude00\n\"}"}</tool_call>"#,
        "",
        &[("f", "{\"a\": \"é😀\n\"}")],
    );
    check(r#"<tool_call>{"name":"f","arguments":"\ud83d x \q \é"}</tool_call>"#, "", &[("f", r"\ud83d x \q \é")]);
    check("<tool_call>{\"name\":\"f\",\"arguments\":17}</tool_call>", "", &[("f", "17")]);
    check("<tool_call>{\"name\":\"f\",\"arguments\":{'a': oops}}</tool_call>", "", &[("f", "{'a': oops}")]);
    check(
        "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":1},\"arguments\":{\"a\":2}}</tool_call>",
        "",
        &[("f", "{\"a\":1}")],
    );
    check("<tool_call>{\"name\":\"f\\u0031\",\"arguments\":{}}</tool_call>", "", &[("f1", "{}")]);
    // A call that is not closed as it should be.
    check("<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":1}</tool_call> and", "and", &[("f", "{\"a\":1}")]);
    check("<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":1</tool_call>", "", &[("f", "{\"a\":1")]);
    check("<tool_call>{\"name\":\"f\"</tool_call>", "", &[("f", "{}")]);
    check(
        "<tool_call>{\"name\":\"f\",\"arguments\":{}}<tool_call>{\"name\":\"g\",\"arguments\":{}}",
        "",
        &[("f", "{}"), ("g", "{}")],
    );
    check("<tool_call>{\"name\":\"f\",\"arguments\":{}} junk</tool_call>", "junk</tool_call>", &[("f", "{}")]);
    // No call at all: the text stays.
    for text in [
        "",
        "plain",
        " white \n",
        "a < b <tool> </tool_call>",
        "<tool_call>",
        "x\n<tool_call>\nhello</tool_call>\n",
        "<tool_call>{\"name\":5}</tool_call>",
        "<tool_call>{\"name\":\"\"}</tool_call>",
        "<tool_call>{}</tool_call>",
        "<tool_call>[]</tool_call>",
        "<tool_call>{\"arguments\":{}}</tool_call>",
        "<tool_call><tool_call>",
        "<tool_call",
    ] {
        check(text, text, &[]);
    }
    check("<tool_call>{\"a<tool_call>{\"name\":\"f\"}", "<tool_call>{\"a", &[("f", "{}")]);
}

#[test]
fn calls_that_are_cut_off_give_what_there_is() {
    let form = CallForm::tagged();
    let whole = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"b\"}}\n</tool_call>";
    for end in 0..whole.len() {
        let (text, calls, cut_off) = run(&form, &[&whole[..end]]);
        match calls.as_slice() {
            [] => assert_eq!(text, &whole[..end]),
            [(id, name, arguments)] => {
                assert_eq!((id.as_str(), name.as_str(), text.as_str()), ("call_0", "f", ""));
                assert!("{\"a\": \"b\"}".starts_with(arguments.as_str()), "{arguments}");
                assert_eq!(cut_off, end < whole.len() - "\n</tool_call>".len());
            }
            more => panic!("{more:?}"),
        }
    }
    let (_, calls, cut_off) = run(&form, &["<tool_call>{\"name\":\"f\",\"arguments\":12"]);
    assert_eq!((calls[0].2.as_str(), cut_off), ("12", true));
}

#[test]
fn bare_calls() {
    let form = CallForm::Json { key: "parameters".into() };
    let check = |text: &str, shown: &str, calls: &[(&str, &str)]| check(&form, text, shown, calls);
    check("{\"name\": \"f\", \"parameters\": {\"a\": 1}}", "", &[("f", "{\"a\": 1}")]);
    check(
        "\n[{\"name\": \"f\", \"arguments\": {}}, {\"name\": \"g\", \"arguments\": {}}]\n",
        "",
        &[("f", "{}"), ("g", "{}")],
    );
    check(
        "{\"type\": \"function\", \"name\": \"g\", \"parameters\": {}} {\"name\":\"f\"}",
        "",
        &[("g", "{}"), ("f", "{}")],
    );
    check("{\"name\":\"f\"}\nThere.", "There.", &[("f", "{}")]);
    for text in [
        "{\"answer\": 42}",
        " [1, 2, 3]",
        "{\"name\": \"Ada\", \"age\": 36}",
        "{\"arguments\": {\"a\": 1}, \"name\": \"nobody\"} and more",
        "Text {\"name\": \"f\"}",
        "{\"na",
        "  ",
    ] {
        check(text, text, &[]);
    }
}

#[test]
fn text_and_arguments_stream() {
    let mut parser = ToolParser::new(&CallForm::tagged(), [], "c");
    assert_eq!(parser.push("Hello "), [Delta::Text("Hello".into())]);
    assert_eq!(parser.push("you <to"), [Delta::Text(" you".into())]);
    assert!(parser.push("ol_call>{\"name\":\"f").is_empty());
    let start = Delta::CallStart { index: 0, id: "c0".into(), name: "fg".into() };
    assert_eq!(parser.push("g\", \"arguments\": {\"a"), [start, Delta::Arguments { index: 0, delta: "{\"a".into() }]);
    assert_eq!(parser.push("\": 1"), [Delta::Arguments { index: 0, delta: "\": 1".into() }]);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) })]

    /// However an answer is cut: the same text and calls, and none of it is lost.
    #[test]
    fn any_cut_gives_the_same(
        parts in prop::collection::vec(
            "<tool_call>|</tool_call>|\\{\"name\": ?\"[fgh]\", ?\"arguments\": ?|\\{\"a\": ?1\\}|\\}|\\[|\\]|,|\"|[ \n]{1,2}|[a<\\\\é]{1,3}|\"\\\\u00e9\"",
            0..12,
        ),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..9),
        tagged: bool,
    ) {
        let form = if tagged { CallForm::tagged() } else { CallForm::Json { key: "arguments".into() } };
        let text = parts.concat();
        let ends: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| ends[cut.index(ends.len())]).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&str> = cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
        let whole = run(&form, &[&text]);
        prop_assert_eq!(run(&form, &pieces), whole.clone());
        if whole.1.is_empty() {
            prop_assert_eq!(whole.0, text);
        }
    }
}

fn refusal<T>(result: Result<T>) -> String {
    let error = result.err().expect("it was taken");
    let line = error.to_string();
    assert!(error.is_input() && !line.contains('\n') && line.len() < 400, "{line}");
    line
}

#[test]
fn definitions_are_checked() {
    let read = |tools: Value| Tools::read(&tools, None, None);
    let good = read(
        json!([tool("f"), {"type": "function", "function": {"name": "g-2_X", "description": "does", "strict": true}}]),
    )
    .unwrap();
    assert_eq!(good.names().collect::<Vec<_>>(), ["f", "g-2_X"]);
    assert_eq!(good.shown()[1].parameters, json!({"type": "object", "properties": {}}));
    assert!(!read(Value::Null).unwrap().may_be_called());
    let function = |function: Value| json!([{"type": "function", "function": function}]);
    let deep = (0..100).fold(json!({}), |inner, _| json!({"x": inner}));
    let large = json!({"name": "f", "description": "x".repeat(600_000)});
    for (tools, words) in [
        (json!({}), "tools: expected a list"),
        (json!(["f"]), "tools[0]: expected an object, found a text"),
        (json!([{"type": "retrieval"}]), "tools[0].type: expected \"function\""),
        (json!([{"type": "function"}]), "tools[0].function: is missing"),
        (json!([{"type": "function", "function": {"name": "f"}, "x": 1}]), "tools[0].x: is not known"),
        (json!([tool("f"), tool("f")]), "tools[1].function.name: \"f\" is the name of two"),
        (json!([tool("")]), "tools[0].function.name: expected 1 to 64"),
        (json!([tool("a b")]), "tools[0].function.name"),
        (json!([tool("a\"}")]), "tools[0].function.name"),
        (json!([tool("a\nb")]), "tools[0].function.name"),
        (json!([tool(&"a".repeat(65))]), "tools[0].function.name"),
        (function(json!({"name": "f", "description": 5})), "tools[0].function.description"),
        (function(json!({"name": "f", "strict": "yes"})), "tools[0].function.strict"),
        (function(json!({"name": "f", "returns": {}})), "tools[0].function.returns: is not known"),
        (function(json!({"name": "f", "parameters": []})), "tools[0].function.parameters: expected a JSON schema"),
        (function(json!({"name": "f", "parameters": {"type": "string"}})), "tools[0].function.parameters.type"),
        (function(json!({"name": "f", "parameters": deep})), "tools[0]: more than 48 levels"),
        (function(large), "tools: more than 524288 bytes"),
        (
            Value::from((0..10_000).map(|i| tool(&format!("f{i}"))).collect::<Vec<_>>()),
            "10000 tools (expected at most 128)",
        ),
    ] {
        let line = refusal(read(tools));
        assert!(line.contains(words), "{line}: {words}");
    }
}

#[test]
fn choices_are_checked() {
    let read = |choice: Value| Tools::read(&json!([tool("f")]), Some(&choice), None);
    let named = |name: &str| json!({"type": "function", "function": {"name": name}});
    for (choice, expect) in [
        (json!("none"), ToolChoice::None),
        (json!("auto"), ToolChoice::Auto),
        (Value::Null, ToolChoice::Auto),
        (json!("required"), ToolChoice::Required),
        (named("f"), ToolChoice::Named("f".into())),
    ] {
        assert_eq!(*read(choice).unwrap().choice(), expect);
    }
    assert!(!read(json!("none")).unwrap().may_be_called());
    for (choice, words) in [
        (json!("any"), "tool_choice: expected"),
        (json!(5), "tool_choice: expected"),
        (json!({"type": "function"}), "tool_choice: expected"),
        (named("g"), "tool_choice.function.name: \"g\" is none of the tools"),
        (json!({"type": "function", "function": {}}), "tool_choice.function.name"),
        (json!({"type": "function", "function": {"name": "f", "x": 1}}), "tool_choice.function.x"),
    ] {
        let line = refusal(read(choice));
        assert!(line.contains(words), "{line}: {words}");
    }
    assert!(refusal(Tools::read(&json!([]), Some(&json!("required")), None)).contains("there are no tools"));
}

fn call(id: &str, name: &str, arguments: &str) -> ToolCall {
    ToolCall { id: id.into(), name: name.into(), arguments: arguments.into() }
}

#[test]
fn calls_and_results_belong_together() {
    let calls = |calls: Vec<ToolCall>| Message { tool_calls: calls, ..Message::assistant("") };
    let good =
        [Message::user("q"), calls(vec![call("1", "f", "{}"), call("2", "g", "no json")]), Message::tool("2", "r")];
    check_messages(&good).unwrap();
    for (messages, words) in [
        (vec![Message::tool("1", "r")], "messages[0].tool_call_id: no call \"1\""),
        (vec![Message::new("tool", "r")], "messages[0].tool_call_id: is missing"),
        (vec![calls(vec![call("1", "a b", "{}")])], "messages[0].tool_calls[0].function.name"),
        (vec![Message { tool_calls: vec![call("1", "f", "")], ..Message::user("x") }], "messages[0].tool_calls: only"),
        (vec![Message { tool_call_id: Some("1".into()), ..Message::user("x") }], "messages[0].tool_call_id: belongs"),
        (vec![calls(vec![call("1", "f", ""); 129])], "messages[0].tool_calls: more than 128"),
    ] {
        let line = refusal(check_messages(&messages));
        assert!(line.contains(words), "{line}: {words}");
    }
}

#[test]
fn templates_that_show_no_tools_are_helped() {
    let template = ChatTemplate::default_ernie();
    assert!(!template.shows_tools());
    let tools = Tools::read(&json!([tool("f")]), None, None).unwrap();
    let messages = [
        Message::system("Be brief."),
        Message::user("q"),
        Message { tool_calls: vec![call("1", "f", "{\"a\": 1}")], ..Message::assistant("hm") },
        Message::tool("1", "42"),
    ];
    let form = CallForm::tagged();
    let prompt = tools.prompt(&template, &form, &messages);
    assert!(prompt.tools.is_empty());
    let text = template.render_with_roles(&prompt.messages, true, []).unwrap().text().to_owned();
    for words in [
        "Be brief.\n\n# Tools",
        r#"{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{}}}}"#,
        "Assistant: hm\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call><|end_of_sentence|>",
        "User: <tool_response>\n42\n</tool_response>\nAssistant: ",
    ] {
        assert!(text.contains(words), "{words}\n{text}");
    }
    let none = Tools::read(&json!([tool("f")]), Some(&json!("none")), None).unwrap();
    assert_eq!(none.prompt(&template, &form, &messages[..2]).messages, messages[..2]);
}

/// A tokenizer in which the tags are tokens of their own, special ones.
fn with_tags() -> Tokenizer {
    let mut options = TrainOptions { min_frequency: 1, ..TrainOptions::ernie(420) };
    let tags = ["<tool_call>", "</tool_call>", "<think>", "</think>"];
    options.special_tokens.extend(tags.map(|tag| (tag.to_owned(), String::new())));
    let text = r#"{"name": "get_weather", "arguments": {"city": "Paris"}} <tool_call> some text"#;
    train_bpe([text].iter().cycle().take(10), &options).unwrap()
}

fn cache(tokenizer: &Tokenizer, form: &CallForm) -> GrammarCache {
    let vocab = GrammarVocab::new(tokenizer, tokenizer.vocab_size(), &[EOS], &form.tags()).unwrap();
    GrammarCache::new(vocab, 8, 1 << 20)
}

/// What an answer under a watcher reads, tags shown.
fn read(tokenizer: &Tokenizer, watcher: Box<dyn Watcher>, seed: u64) -> (String, End) {
    let (ids, end) = answer_of(tokenizer, tokenizer.vocab_size(), watcher, seed, 900);
    let tags = ["<tool_call>", "</tool_call>", "<think>", "</think>"];
    let mut stream = TextStream::new(tokenizer, &[]).unwrap().showing(tokenizer, &tags);
    let mut text: String = ids.iter().map(|&id| stream.push(id)).collect();
    text += &stream.finish();
    (text, end)
}

fn weather() -> Value {
    let weather = json!({
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city"],
        "additionalProperties": false
    });
    let function = |name: &str, parameters: Value, strict: bool| json!({"type": "function", "function": {"name": name, "parameters": parameters, "strict": strict}});
    json!([function("f", weather, true), function("g", json!({"type": "object", "not": {}}), false)])
}

fn assert_call(name: &str, arguments: &str) {
    let value: Value = serde_json::from_str(arguments).unwrap_or_else(|error| panic!("{error}: {arguments}"));
    match name {
        "f" => assert!(["Paris", "Rome"].contains(&value["city"].as_str().unwrap()), "{arguments}"),
        "g" => assert!(value.is_object(), "{arguments}"),
        other => panic!("{other}"),
    }
}

#[test]
fn required_and_named_calls_are_calls() {
    let json_form = CallForm::Json { key: "parameters".into() };
    for (tokenizer, form) in
        [(writer::tokenizer(), CallForm::tagged()), (with_tags(), CallForm::tagged()), (with_tags(), json_form)]
    {
        let cache = cache(&tokenizer, &form);
        for choice in [json!("required"), json!({"type": "function", "function": {"name": "f"}})] {
            let tools = Tools::read(&weather(), Some(&choice), None).unwrap();
            let mut ended = 0;
            for seed in 0..12 {
                let watcher = tools.watcher(&form, &cache, &tokenizer).unwrap().unwrap();
                let (text, end) = read(&tokenizer, watcher, seed);
                assert!(end != End::Stuck, "{text}");
                let (rest, calls, cut_off) = run(&form, &[&text]);
                if end == End::Length {
                    continue;
                }
                ended += 1;
                assert!(rest.is_empty() && !cut_off && !calls.is_empty(), "{text:?}: {rest:?}");
                let named = matches!(choice, Value::Object(_));
                assert!(!named || (calls.len() == 1 && calls[0].1 == "f"), "{text}");
                calls.iter().for_each(|(_, name, arguments)| assert_call(name, arguments));
            }
            assert!(ended > 3, "{ended} answers ended");
        }
    }
    assert!(cache(&with_tags(), &CallForm::tagged()).is_empty());
}

#[test]
fn strict_tools_are_held_inside_free_answers() {
    let form = CallForm::tagged();
    let tools = Tools::read(&weather(), None, None).unwrap();
    let tokenizer = with_tags();
    let open = tokenizer.id_of("<tool_call>").unwrap();
    let cache = cache(&tokenizer, &form);
    let mut found = 0;
    for seed in 0..20 {
        let mut watcher = tools.watcher(&form, &cache, &tokenizer).unwrap().unwrap();
        for id in tokenizer.encode("some text ").unwrap() {
            watcher.accept(id);
        }
        let mut logits = vec![0.0; tokenizer.vocab_size()];
        watcher.mask(&mut logits);
        assert!(logits.iter().all(|&logit| logit == 0.0), "free until a call begins");
        watcher.accept(open);
        let (text, end) = read(&tokenizer, watcher, seed);
        assert!(end != End::Stuck, "{text}");
        let (_, calls, cut_off) = run(&form, &[&format!("some text <tool_call>{text}")]);
        // What follows the first call is free, and a model that says anything may begin more of them.
        if let [(_, name, arguments), ..] = calls.as_slice()
            && (calls.len() > 1 || !cut_off)
        {
            found += 1;
            assert_call(name, arguments);
        }
    }
    assert!(found > 5, "{found}");
    let unkept = json!([{"type": "function", "function": {"name": "f", "strict": true, "parameters": {"type": "object", "not": {}}}}]);
    let tools = Tools::read(&unkept, None, None).unwrap();
    assert!(refusal(tools.watcher(&form, &cache, &tokenizer)).contains("parameters of f: the keyword \"not\""));
    let json_form = CallForm::Json { key: "arguments".into() };
    assert!(refusal(tools.watcher(&json_form, &cache, &tokenizer)).contains("tools[0].function.strict"));
}

#[test]
fn a_model_may_think_before_it_keeps_to_a_grammar() {
    let form = ReasoningForm::think(false);
    for tokenizer in [with_tags(), writer::tokenizer()] {
        let vocab = GrammarVocab::new(&tokenizer, tokenizer.vocab_size(), &[EOS], &[]).unwrap();
        let grammar = Grammar::regex(&vocab, "yes|no").unwrap();
        let mut gate = Gate::once(&tokenizer, &form.close, grammar);
        let mut logits = vec![0.0; tokenizer.vocab_size()];
        gate.mask(&mut logits);
        assert_eq!(logits[EOS as usize], f32::NEG_INFINITY, "the reasoning must end first");
        for id in tokenizer.encode_with_special("I think. </think>").unwrap() {
            let mut logits = vec![0.0; tokenizer.vocab_size()];
            gate.mask(&mut logits);
            assert_eq!(logits[id as usize], 0.0);
            gate.accept(id);
        }
        let (text, end) = read(&tokenizer, Box::new(gate), 5);
        assert!(end == End::Stop && ["yes", "no"].contains(&text.as_str()), "{text}");
    }
}
