//! Mixed load at twice what the server takes, with clients that leave: nothing but 200, 429 and 503, and then a clean
//! end. `ERNIE_SOAK_S` makes it longer than the ten seconds of every run: 60 in CI, 600 before a release.

use std::io::Read;
use std::sync::Mutex;
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
    // What a request takes that has the server to itself.
    let body = json!({"prompt": vec![9; 120], "max_tokens": 40});
    let alone: Vec<Duration> = (0..10)
        .map(|_| {
            let begin = Instant::now();
            assert_eq!(server.post("/v1/completions", &body).status, 200);
            begin.elapsed()
        })
        .collect();
    let alone = alone.into_iter().max().unwrap_or_default();
    let latencies = Mutex::new(Vec::new());
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
            let begin = Instant::now();
            let answer = server.post("/v1/completions", &body);
            let took = begin.elapsed();
            match answer.status {
                200 => {
                    assert!(!stream || answer.is_done(), "{}", answer.text());
                    answered.fetch_add(1, Ordering::Relaxed);
                    latencies.lock().unwrap().push(took);
                }
                429 | 503 => {
                    assert!(answer.header("retry-after").is_some());
                    refused.fetch_add(1, Ordering::Relaxed);
                }
                other => panic!("{other}: {}", answer.text()),
            }
        }
    };
    let (before, mut half) = (resident_bytes(), None);
    let caller = &caller;
    std::thread::scope(|scope| {
        (1..=16).for_each(|seed| _ = scope.spawn(move || caller(seed)));
        std::thread::sleep(Duration::from_secs(seconds) / 2);
        half = resident_bytes();
    });
    let counts = [&answered, &refused, &left].map(|count| count.load(Ordering::Relaxed));
    assert!(counts.iter().all(|&count| count > 0), "answered, refused, left: {counts:?}");
    // Four run and four wait, so nobody waits for more than a few answers before his own: refusing bounds what the others take.
    let mut latencies = latencies.into_inner().unwrap();
    latencies.sort();
    let p99 = latencies[latencies.len() * 99 / 100];
    assert!(p99 < 50 * alone, "p99 {p99:?}, alone {alone:?}");
    server.wait_until_idle();
    if let (Some(before), Some(after)) = (before, resident_bytes()) {
        // Other tests of this process share its memory, so the bound is wide; a leak of a request each would pass it.
        assert!(after < before + (256 << 20), "{before} bytes became {after}");
        // In a longer run the others have ended: what a second half adds, a day would add a hundred times.
        if let Some(half) = half.filter(|_| seconds >= 60) {
            assert!(after < half + half / 10 + (16 << 20), "{half} bytes at half time became {after}");
        }
    }
    assert!(server.end().is_ok());
}
