//! The HTTP server from outside: a server in this process on a model that can be told what to do, and a client of bare
//! sockets that can misbehave.
#![cfg(feature = "http")]

mod abuse;
mod adapters;
mod api;
mod client;
mod life;
mod manner;
mod model;
mod safety;
mod scoring;
mod server;
mod soak;
