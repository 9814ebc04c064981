//! Mixed load at twice what the server takes, with clients that leave: nothing but 200, 429 and 503, and then a clean
//! end. `ERNIE_SOAK_S` makes it longer than the ten seconds of every run.

use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::server::{Server, Setup};

/// Bytes of this process in memory.
fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(text.split_whitespace().nth(1)?.parse::<u64>().ok()? * 4096)
}

#[test]
fn twice_the_load_and_random_departures() {
    let seconds = std::env::var("ERNIE_SOAK_S").ok().and_then(|s| s.parse().ok()).unwrap_or(10);
    let mut setup = Setup { running: 4, step: Duration::from_millis(1), ..Setup::default() };
    setup.config.limits.queue = 4;
    let server = Server::start(setup);
    let end = Instant::now() + Duration::from_secs(seconds);
    let (answered, refused, left) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let caller = |seed: u64| {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut below = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        while Instant::now() < end {
            let prompt: Vec<u64> = (0..1 + below(120)).map(|_| 9 + below(300)).collect();
            let stream = below(2) == 0;
            let body = json!({"prompt": prompt, "max_tokens": 1 + below(40), "stream": stream});
            if below(4) == 0 {
                let mut connection = server.client().begin("/v1/completions", &body);
                if below(2) == 0 {
                    let _ = connection.read(&mut [0; 32]);
                }
                left.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let answer = server.post("/v1/completions", &body);
            match answer.status {
                200 => {
                    assert!(!stream || answer.is_done(), "{}", answer.text());
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                429 | 503 => {
                    assert!(answer.header("retry-after").is_some());
                    refused.fetch_add(1, Ordering::Relaxed);
                }
                other => panic!("{other}: {}", answer.text()),
            }
        }
    };
    let before = resident_bytes();
    std::thread::scope(|scope| (1..=16).for_each(|seed| _ = scope.spawn(move || caller(seed))));
    let counts = [&answered, &refused, &left].map(|count| count.load(Ordering::Relaxed));
    assert!(counts.iter().all(|&count| count > 0), "answered, refused, left: {counts:?}");
    server.wait_until_idle();
    if let (Some(before), Some(after)) = (before, resident_bytes()) {
        // Other tests of this process share its memory, so the bound is wide; a leak of a request each would pass it.
        assert!(after < before + (256 << 20), "{before} bytes became {after}");
    }
    assert!(server.end().is_ok());
}
