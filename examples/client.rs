//! Talks to `ernie serve` with nothing but the standard library and serde_json, to show that the protocol is plain:
//! `cargo run --example client -- 127.0.0.1:8080 "Who is the fox?"`. A real program would take an HTTP library.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let address = args.next().unwrap_or_else(|| "127.0.0.1:8080".into());
    let question = args.next().unwrap_or_else(|| "Who is the fox?".into());
    let body =
        json!({"messages": [{"role": "user", "content": question}], "max_tokens": 64, "stream": true}).to_string();

    let mut stream = TcpStream::connect(&address)?;
    write!(stream, "POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n")?;
    if let Ok(key) = std::env::var("ERNIE_API_KEY") {
        write!(stream, "authorization: Bearer {key}\r\n")?;
    }
    write!(stream, "content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;

    let mut out = std::io::stdout().lock();
    for line in BufReader::new(stream).lines() {
        let line = line?;
        // A refusal is one JSON object and no event.
        if line.starts_with("{\"error\"") {
            return Err(line.into());
        }
        let Some(data) = line.strip_prefix("data: ").filter(|data| *data != "[DONE]") else { continue };
        let event: Value = serde_json::from_str(data)?;
        if let Some(message) = event["error"]["message"].as_str() {
            return Err(message.into());
        }
        write!(out, "{}", event["choices"][0]["delta"]["content"].as_str().unwrap_or_default())?;
        out.flush()?;
    }
    writeln!(out)?;
    Ok(())
}
