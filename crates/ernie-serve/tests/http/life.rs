//! From listening to leaving.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ernie_serve::http::Failure;
use serde_json::json;

use crate::client::read;
use crate::model::PANIC_ID;
use crate::server::{Server, Setup, eventually};

fn slow(step_ms: u64) -> Setup {
    Setup { step: Duration::from_millis(step_ms), ..Setup::default() }
}

#[test]
fn it_answers_while_the_model_is_loaded_and_is_not_ready() {
    let loads_when = Arc::new(AtomicBool::new(false));
    let server = Server::start(Setup { loads_when: loads_when.clone(), ..Setup::default() });
    assert_eq!(server.client().get("/health").status, 200);
    assert_eq!(server.client().get("/").status, 200);
    assert_eq!(server.client().get("/v1/models").status, 200);
    for path in ["/ready", "/tokenizer_info"] {
        assert_eq!(server.client().get(path).status, 503, "{path}");
    }
    let early = server.post("/v1/completions", &json!({"prompt": [9]}));
    assert_eq!((early.status, early.header("retry-after")), (503, Some("1")));
    early.assert_refusal("loaded");
    assert_eq!(server.metric("ernie_ready"), 0.0);
    loads_when.store(true, Ordering::SeqCst);
    server.wait_for("/ready", 200);
    server.good("/v1/completions", &json!({"prompt": [9]}));
    assert_eq!(server.metric("ernie_ready"), 1.0);
}

#[test]
fn a_model_that_cannot_be_loaded_ends_the_server_with_its_error() {
    let mut server = Server::start(Setup { broken_model: true, ..Setup::default() });
    assert!(matches!(server.join(), Err(Failure::Load(error)) if error == "the model is broken"));
}

#[test]
fn it_can_be_stopped_while_the_model_is_loaded() {
    let server = Server::start(Setup { loads_when: Arc::default(), ..Setup::default() });
    assert!(server.end().is_ok());
}

#[test]
fn what_was_admitted_is_finished_and_the_rest_refused() {
    let server = Server::start(slow(10));
    let body = json!({"prompt": [9], "max_tokens": 60, "temperature": 0, "stream": true});
    let mut stream = server.client().begin("/v1/completions", &body);
    let mut queued = server.client().begin("/v1/completions", &json!({"prompt": [9], "max_tokens": 50}));
    eventually("both run", || server.metric("ernie_engine_running") == 2.0);
    server.stop.store(true, Ordering::SeqCst);
    server.wait_for("/ready", 503);
    let late = server.post("/v1/completions", &json!({"prompt": [9]}));
    assert_eq!(late.status, 503);
    late.assert_refusal("stopping");
    assert_eq!(server.client().get("/health").status, 200);
    let answer = read(&mut stream);
    assert!(answer.is_done(), "{}", answer.text());
    assert_eq!(read(&mut queued).status, 200);
    assert!(server.end().is_ok());
}

#[test]
fn the_grace_ends_and_answers_that_are_cut_say_so() {
    let mut setup = slow(20);
    setup.config.limits.drain_grace = Duration::from_millis(300);
    let server = Server::start(setup);
    let long = |stream| json!({"prompt": [9], "max_tokens": 256, "stream": stream});
    let mut streamed = server.client().begin("/v1/completions", &long(true));
    let mut whole = server.client().begin("/v1/completions", &long(false));
    eventually("both run", || server.metric("ernie_engine_running") == 2.0);
    let begin = Instant::now();
    assert!(server.end().is_ok());
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    let cut = read(&mut streamed);
    assert!(!cut.is_done());
    assert_eq!(cut.events().pop().unwrap()["error"]["message"], "the server is stopping");
    assert_eq!(read(&mut whole).status, 503);
}

#[test]
fn a_client_that_leaves_stops_costing_and_harms_nobody() {
    let server = Server::start(Setup { running: 2, ..slow(5) });
    let long = |stream: bool| json!({"prompt": (9..200).collect::<Vec<u32>>(), "max_tokens": 256, "stream": stream});
    let calm = json!({"prompt": [9], "max_tokens": 40, "temperature": 0});
    let expect = server.good("/v1/completions", &calm)["choices"][0]["text"].clone();
    // In prefill, in decode, whole and streamed, and in the queue behind two others.
    for wait_ms in [0, 3, 60] {
        let leaving: Vec<_> = (0..4).map(|at| server.client().begin("/v1/completions", &long(at % 2 == 0))).collect();
        std::thread::sleep(Duration::from_millis(wait_ms));
        drop(leaving);
        assert_eq!(server.good("/v1/completions", &calm)["choices"][0]["text"], expect);
        server.wait_until_idle();
        eventually("nothing is in flight", || server.metric("ernie_http_in_flight") == 1.0);
    }
    assert!(server.metric("ernie_answers_finished_total{reason=\"cancelled\"}") > 0.0);
}

#[test]
fn a_panic_fails_its_requests_and_the_engine_is_made_anew() {
    let server = Server::start(slow(10));
    let mut bystander =
        server.client().begin("/v1/completions", &json!({"prompt": [9], "max_tokens": 200, "stream": true}));
    assert!(bystander.read(&mut [0; 16]).unwrap() > 0);
    server.bad("/v1/completions", &json!({"prompt": [PANIC_ID]}), 500, "may be sent again");
    let answer = read(&mut bystander);
    assert!(!answer.is_done());
    server.good("/v1/completions", &json!({"prompt": [9]}));
    assert_eq!(server.metric("ernie_engine_restarts_total"), 1.0);
    server.wait_until_idle();
}

#[test]
fn an_engine_that_panics_again_and_again_ends_the_server() {
    let mut server = Server::usual();
    for _ in 0..3 {
        let status = server.post("/v1/completions", &json!({"prompt": [PANIC_ID]})).status;
        assert!(status == 500 || status == 0, "{status}");
    }
    assert!(matches!(server.join(), Err(Failure::Serve(error)) if error.kind() == ernie_serve::ErrorKind::Internal));
}

#[test]
fn a_full_queue_and_a_deadline_are_said_so() {
    let mut setup = Setup { running: 1, ..slow(10) };
    setup.config.limits.queue = 2;
    setup.config.limits.deadline = Duration::from_millis(700);
    let server = Server::start(setup);
    let long = |stream: bool| json!({"prompt": [9], "max_tokens": 256, "stream": stream});
    let mut open: Vec<_> = (0..3).map(|at| server.client().begin("/v1/completions", &long(at == 0))).collect();
    eventually("two wait", || server.metric("ernie_engine_waiting") == 2.0);
    let refused = server.post("/v1/completions", &long(false));
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
    refused.assert_refusal("queue is full");
    assert_eq!(server.metric("ernie_http_refused_total{reason=\"queue\"}"), 1.0);
    server.bad("/v1/completions", &json!({"prompt": [9], "n": 4}), 400, "at most");
    // The one that runs has begun to speak, so its end is an event; the others have no answer yet.
    let first = read(&mut open[0]);
    assert_eq!(first.events().pop().unwrap()["error"]["message"], "the request's deadline has passed");
    for late in &mut open[1..] {
        assert_eq!(read(late).status, 504);
    }
    server.wait_until_idle();
}

#[test]
fn the_metrics_are_there_and_count() {
    let server = Server::usual();
    server.good("/v1/completions", &json!({"prompt": (9..73).collect::<Vec<u32>>(), "max_tokens": 5}));
    server.good("/v1/completions", &json!({"prompt": (9..73).collect::<Vec<u32>>(), "max_tokens": 5}));
    server.wait_until_idle();
    assert_eq!(server.metric("ernie_generated_tokens_total"), 10.0);
    assert_eq!(server.metric("ernie_prompt_tokens_total"), 128.0);
    assert_eq!(server.metric("ernie_prefix_hit_tokens_total"), 48.0);
    assert_eq!(server.metric("ernie_time_to_first_token_seconds_count"), 2.0);
    assert_eq!(server.metric("ernie_inter_token_seconds_count"), 8.0);
    assert_eq!(server.metric("ernie_answers_finished_total{reason=\"length\"}"), 2.0);
    assert_eq!(server.metric("ernie_http_requests_total{route=\"/v1/completions\",status=\"200\"}"), 2.0);
    assert!(server.metric("ernie_engine_steps_total") > 0.0);
}
