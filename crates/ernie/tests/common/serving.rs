//! `ernie serve` as a process of its own, and a client of bare sockets.
// Each file of tests uses a part of this.
#![allow(dead_code, unreachable_pub)]

use super::ernie_after;
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// A running server and what it says.
pub struct Serving {
    child: Child,
    /// Where it listens.
    pub address: String,
    talk: BufReader<std::process::ChildStderr>,
}

impl Serving {
    /// Starts a server on a free port and waits until it listens.
    pub fn start(folder: &Path, args: &[&str]) -> Self {
        Self::start_after("true", folder, args)
    }

    /// As [`Self::start`], after a command of the shell that starts it.
    pub fn start_after(before: &str, folder: &Path, args: &[&str]) -> Self {
        let mut command = ernie_after(before, folder);
        command.args(["serve", "--listen", "127.0.0.1:0"]).args(args);
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("the program starts");
        let mut talk = BufReader::new(child.stderr.take().expect("stderr"));
        let mut line = String::new();
        talk.read_line(&mut line).expect("a line");
        let address = line.split("://").nth(1).and_then(|rest| rest.split(',').next());
        let address = address.unwrap_or_else(|| panic!("no address in {line:?}")).to_owned();
        Self { child, address, talk }
    }

    /// Waits until the model is loaded.
    pub fn wait_until_ready(&self) {
        let end = Instant::now() + Duration::from_secs(60);
        while !get(&self.address, "/ready").starts_with("HTTP/1.1 200") {
            assert!(Instant::now() < end, "never ready");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal, such as `-TERM`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.child.id().to_string()]).status().expect("kill");
        assert!(sent.success());
    }

    /// The exit code and what was said until then.
    pub fn end(mut self) -> (Option<i32>, String) {
        let code = self.child.wait().expect("it ends").code();
        let mut said = String::new();
        self.talk.read_to_string(&mut said).expect("the rest of stderr");
        (code, said)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a request on a connection of its own; the whole answer.
pub fn ask(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

/// Asks for a path.
pub fn get(address: &str, path: &str) -> String {
    ask(address, &format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"))
}

/// Posts a completion.
pub fn completion(address: &str, body: &str) -> String {
    let length = body.len();
    ask(
        address,
        &format!(
            "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        ),
    )
}
