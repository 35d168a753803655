//! A connection to one member, which knows when it last heard anything.
//!
//! Slow is not silent: on a link of 20 kB/s a page takes its time, and what is asked beside it
//! waits for it. So what is waited for is not an answer within so long, but a sign of life on the
//! socket.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use etcd_client::{Certificate, Channel, Client, ConnectOptions, Identity, TlsOptions};
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::codegen::Service;
use tonic::transport::Endpoint;

use super::EtcdError;
use crate::source::EtcdConfig;
use crate::source::settings::read_text;

/// A connection may be silent this long while something is waited for.
pub(super) const REQUEST: Duration = Duration::from_secs(3);
/// HTTP/2 pings; a server refuses clients that ping more often than every 5 s.
const PING: Duration = Duration::from_secs(6);
/// A ping may take this long: it waits behind what the server has sent before.
const PONG: Duration = Duration::from_secs(20);
/// More than the pings of an idle connection within any silence that can be configured.
const BUSY: u64 = 1024;

/// A client and what is heard from the socket below it.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) client: Client,
    ear: Arc<Ear>,
    patience: Duration,
}

/// When the socket was heard, in milliseconds since `start`.
#[derive(Debug)]
struct Ear {
    start: Instant,
    last: AtomicU64,
    bytes: AtomicU64,
    /// When the last whole [`BUSY`] bytes were full.
    busy: AtomicU64,
}

impl Ear {
    fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self { start: Instant::now(), last: zero(), bytes: zero(), busy: zero() }
    }

    fn hear(&self, count: usize) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
        let count = u64::try_from(count).unwrap_or(0);
        let before = self.bytes.fetch_add(count, Ordering::Relaxed);
        if before / BUSY != before.saturating_add(count) / BUSY {
            self.busy.store(now, Ordering::Relaxed);
        }
    }

    fn at(&self, place: &AtomicU64) -> Instant {
        self.start + Duration::from_millis(place.load(Ordering::Relaxed))
    }

    async fn within<T>(
        &self,
        what: &'static str,
        patience: Duration,
        call: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Result<T, EtcdError> {
        let began = Instant::now();
        tokio::pin!(call);
        loop {
            let until = self.patient_until(began, patience);
            tokio::select! {
                biased;
                result = &mut call => return result.map_err(EtcdError::Client),
                () = sleep_until(until) => {
                    if self.patient_until(began, patience) <= Instant::now() {
                        return Err(EtcdError::Timeout(what, patience));
                    }
                }
            }
        }
    }

    /// How long what began then may go without an answer: while data comes. Pings are answered by a
    /// process that hangs, too, so that fewer bytes count once.
    fn patient_until(&self, began: Instant, patience: Duration) -> Instant {
        let sign = self.at(&self.last).min(began + patience);
        began.max(sign).max(self.at(&self.busy)) + patience
    }
}

impl Link {
    /// Waits for a call while the connection shows signs of life.
    pub(super) async fn within<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Result<T, EtcdError> {
        self.ear.within(what, self.patience, call).await
    }

    /// When more came than an idle connection brings.
    pub(super) fn busy(&self) -> Instant {
        self.ear.at(&self.ear.busy)
    }
}

/// Connects to one member, verified and authenticated as configured. Secrets and certificates are
/// read anew each time.
///
/// # Errors
/// What stands in the way.
pub async fn connect(config: &EtcdConfig, member: usize) -> Result<Client, EtcdError> {
    open(config, member, REQUEST).await.map(|link| link.client)
}

pub(super) async fn open(
    config: &EtcdConfig,
    member: usize,
    patience: Duration,
) -> Result<Link, EtcdError> {
    // Several crates bring rustls; whoever is first names the provider for all.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let url = config.member(member);
    if url.is_empty() {
        return Err(EtcdError::NoEndpoint);
    }
    let mut endpoint = Endpoint::from_shared(url.to_owned())
        .map_err(etcd_client::Error::from)?
        .connect_timeout(patience)
        .http2_keep_alive_interval(PING)
        .keep_alive_timeout(PONG)
        .keep_alive_while_idle(true);
    if url.starts_with("https://") {
        endpoint = endpoint.tls_config(tls(config)?).map_err(etcd_client::Error::from)?;
    }
    let ear = Arc::new(Ear::new());
    let channel = endpoint.connect_with_connector_lazy(Connector(Arc::clone(&ear)));
    let plain = ConnectOptions::new().with_require_leader(true).with_auto_token_refresh(true);
    let mut options = plain.clone();
    if let (Some(user), Some(password)) = (&config.user, &config.password) {
        let password = password.read()?;
        options = options.with_user(user, password.expose());
    }
    let from = |options| Client::from_channel(Channel::Tonic(channel.clone()), Some(options));
    let client = match ear.within("connecting", patience, from(options)).await {
        Err(EtcdError::Client(error)) if is_auth_off(&error) => {
            // As etcd's own client does; what was to be protected is not, and somebody should know.
            tracing::warn!(
                endpoint = %url,
                "etcd.user is set, but authentication is not enabled in etcd; going on without it"
            );
            ear.within("connecting", patience, from(plain)).await?
        }
        other => other?,
    };
    Ok(Link { client, ear, patience })
}

/// etcd 3.4 to 3.6 answer `Authenticate` with this text while authentication is off.
fn is_auth_off(error: &etcd_client::Error) -> bool {
    match error {
        etcd_client::Error::GRpcStatus(status) => {
            status.message().contains("authentication is not enabled")
        }
        _ => false,
    }
}

fn tls(config: &EtcdConfig) -> Result<TlsOptions, EtcdError> {
    let mut tls = match &config.tls.ca {
        Some(ca) => TlsOptions::new().ca_certificate(Certificate::from_pem(read_text(ca)?)),
        None => TlsOptions::new().with_native_roots(),
    };
    if let (Some(cert), Some(key)) = (&config.tls.cert, &config.tls.key) {
        tls = tls.identity(Identity::from_pem(read_text(cert)?, read_text(key)?));
    }
    if let Some(name) = &config.tls.server_name {
        tls = tls.domain_name(name);
    }
    Ok(tls)
}

/// Waits no longer than [`REQUEST`], for those who ask little.
pub(crate) async fn within<T>(
    what: &'static str,
    call: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, EtcdError> {
    match timeout(REQUEST, call).await {
        Ok(result) => result.map_err(EtcdError::Client),
        Err(_) => Err(EtcdError::Timeout(what, REQUEST)),
    }
}

/// TCP, listened to.
struct Connector(Arc<Ear>);

impl Service<Uri> for Connector {
    type Response = TokioIo<Listened>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let ear = Arc::clone(&self.0);
        Box::pin(async move {
            let host = uri.host().unwrap_or_default();
            let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
            let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(2379))).await?;
            stream.set_nodelay(true)?;
            ear.hear(0);
            Ok(TokioIo::new(Listened { stream, ear }))
        })
    }
}

struct Listened {
    stream: TcpStream,
    ear: Arc<Ear>,
}

impl AsyncRead for Listened {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, into))?;
        let count = into.filled().len().saturating_sub(before);
        if count > 0 {
            self.ear.hear(count);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Listened {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_process_that_answers_pings_alone_is_left_and_one_that_sends_data_is_not() {
        for (bytes, left_after) in [(17, Some(12)), (BUSY, None)] {
            let ear = Arc::new(Ear::new());
            let heard = Arc::clone(&ear);
            let speaks = tokio::spawn(async move {
                loop {
                    sleep(Duration::from_secs(2)).await;
                    heard.hear(usize::try_from(bytes).unwrap());
                }
            });
            let call = std::future::pending::<Result<(), etcd_client::Error>>();
            let call = ear.within("asking", Duration::from_secs(6), call);
            let began = Instant::now();
            let ended = timeout(Duration::from_secs(60), call).await;
            let ended = ended.is_ok().then(|| began.elapsed().as_secs());
            assert_eq!(ended, left_after, "{bytes} bytes");
            speaks.abort();
        }
    }
}
