//! Connections: accepted up to a limit, read and written within time, HTTP/1.1 with or without TLS.
//!
//! hyper bounds a request's headers in bytes, number and time; [`Paced`] cuts off who does not take what is sent.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::limits::MAX_HEADERS;
use super::places::{Place, Places, Silence};
use super::state::{App, Phase, past};

/// The smallest buffer hyper takes.
const LEAST_BUFFER_BYTES: usize = 8192;

/// Connections that the system holds until they are accepted. The standard library asks for 128; a burst of more would have
/// some of its callers wait for a whole second, after which TCP knocks again.
pub(super) const BACKLOG: i32 = 1024;

/// How long to wait after a connection that could not be accepted, and how often that is said.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// Accepts connections until it is dropped.
pub(super) async fn accept(listener: TcpListener, router: Router, tls: Option<TlsAcceptor>, app: Arc<App>) {
    let places = Places::new(app.config.limits.connections, app.metrics.connections_refused.clone());
    let mut told: Option<Instant> = None;
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // No descriptor is free, or the peer is gone already. Waiting a little keeps this loop from spinning, and
                // saying it now and then keeps the log from growing for as long as others can keep it up.
                if told.is_none_or(|told| told.elapsed() > SAY_AGAIN) {
                    tracing::warn!(%error, "a connection could not be accepted; tried again until one can be");
                    told = Some(Instant::now());
                }
                sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let Some(Place { silence, wanted, permit }) = places.take().await else { continue };
        let (router, tls, app) = (router.clone(), tls.clone(), app.clone());
        tokio::spawn(async move {
            app.metrics.connections.inc();
            let stream = Paced::new(stream, app.config.limits.write_timeout, Some(silence));
            tokio::select! {
                () = serve(stream, peer, router, tls, &app) => {}
                () = wanted.notified() => tracing::debug!(%peer, "a silent connection gives its place to another"),
            }
            app.metrics.connections.dec();
            drop(permit);
        });
    }
}

async fn serve(stream: Paced<TcpStream>, peer: SocketAddr, router: Router, tls: Option<TlsAcceptor>, app: &Arc<App>) {
    // Tokens are small and should not wait for one another.
    let _ = stream.inner.set_nodelay(true);
    let limits = &app.config.limits;
    let Some(tls) = tls else { return converse(stream, peer, router, app).await };
    match timeout(limits.header_timeout, tls.accept(stream)).await {
        Ok(Ok(stream)) => converse(stream, peer, router, app).await,
        Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS"),
        Err(_) => tracing::debug!(%peer, "the TLS handshake took too long"),
    }
}

async fn converse<S>(stream: S, peer: SocketAddr, router: Router, app: &Arc<App>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = &app.config.limits;
    let mut phases = app.phases();
    // Who comes while the server stops is told so, once.
    let stopping = *phases.borrow() != Phase::Open;
    let connection = http1::Builder::new()
        .keep_alive(!stopping)
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_headers(MAX_HEADERS)
        .max_buf_size(limits.header_bytes.max(LEAST_BUFFER_BYTES))
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = past(&mut phases, Phase::Open), if !stopping => {
            // The request that is being answered is the last one of this connection.
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%peer, %error, "a connection broke off");
    }
}

/// Bytes after which a reader that was slow counts as going on.
const PROGRESS_BYTES: usize = 4096;

/// After the last byte of an answer: what a peer still sends is read and thrown away, for so long and so many bytes,
/// because closing at once could destroy an answer that it has not read yet.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1 << 20;

/// A stream that fails when its reader has kept it waiting for too long, whether it stands still or trickles.
struct Paced<S> {
    inner: S,
    /// Until the peer has said something.
    silence: Option<Silence>,
    patience: Duration,
    /// How long writes have waited since the last [`PROGRESS_BYTES`] went out.
    waited: Duration,
    written: usize,
    wait: Option<(Instant, Pin<Box<Sleep>>)>,
    linger: Option<(Pin<Box<Sleep>>, usize)>,
}

impl<S> Paced<S> {
    fn new(inner: S, patience: Duration, silence: Option<Silence>) -> Self {
        Self { inner, silence, patience, waited: Duration::ZERO, written: 0, wait: None, linger: None }
    }

    /// Judges the outcome of a write.
    fn pace(&mut self, context: &mut Context<'_>, outcome: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match outcome {
            Poll::Ready(outcome) => {
                if let Some((since, _)) = self.wait.take() {
                    self.waited += since.elapsed();
                }
                self.written += outcome.as_ref().map_or(0, |&n| n);
                if self.written >= PROGRESS_BYTES {
                    (self.written, self.waited) = (0, Duration::ZERO);
                }
                Poll::Ready(outcome)
            }
            Poll::Pending => {
                let left = self.patience.saturating_sub(self.waited);
                let (_, alarm) = self.wait.get_or_insert_with(|| (Instant::now(), Box::pin(sleep(left))));
                ready!(alarm.as_mut().poll(context));
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the reader is too slow")))
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_read(context, buf);
        if !buf.filled().is_empty() {
            self.silence = None;
        }
        outcome
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write(context, buf);
        self.pace(context, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write_vectored(context, bufs);
        self.pace(context, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.inner).poll_shutdown(context))?;
        }
        let (alarm, thrown) = this.linger.get_or_insert_with(|| (Box::pin(sleep(LINGER)), 0));
        let mut scratch = [0; 8192];
        loop {
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut this.inner).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() && *thrown < LINGER_BYTES => {
                    *thrown += buffer.filled().len();
                }
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return alarm.as_mut().poll(context).map(Ok),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stands_still_or_trickles_is_cut_off() {
        use tokio::io::AsyncReadExt;
        for trickle in [0, 64] {
            let (near, mut far) = tokio::io::duplex(1024);
            let mut paced = Paced::new(near, Duration::from_secs(30), None);
            let reader = tokio::spawn(async move {
                let mut buffer = vec![0; trickle];
                while trickle > 0 && far.read_exact(&mut buffer).await.is_ok() {
                    sleep(Duration::from_secs(5)).await;
                }
                sleep(Duration::from_secs(1000)).await;
            });
            let begin = Instant::now();
            let error = paced.write_all(&[0; 100_000]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert!(begin.elapsed() <= Duration::from_secs(60), "{trickle}: {:?}", begin.elapsed());
            reader.abort();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_pauses_is_waited_for() {
        use tokio::io::AsyncReadExt;
        let (near, mut far) = tokio::io::duplex(1024);
        let mut paced = Paced::new(near, Duration::from_secs(30), None);
        let reader = tokio::spawn(async move {
            let mut buffer = vec![0; 10_000];
            for _ in 0..10 {
                sleep(Duration::from_secs(20)).await;
                far.read_exact(&mut buffer).await.unwrap();
            }
        });
        paced.write_all(&[0; 100_000]).await.unwrap();
        reader.await.unwrap();
    }
}
