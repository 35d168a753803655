//! A proxy's end of the Watch stream, with nothing between the socket and the frames.
//!
//! HTTP/2 and gRPC's five bytes by hand rather than the agent's own codec, so that a mistake which
//! the agent's two ends would share shows here. The reader is quick and keeps what a worker would
//! hold; when which table arrived is written down while somebody asks for it.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use http::Request;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use pintle_contract::{Down, Hello, Message as _, Schema, Table, Up, Version};
use pintle_tests::{Error, Result};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

/// Where endpoints are and with which weight, by service and id.
pub type Tables = BTreeMap<String, BTreeMap<String, (SocketAddr, u32)>>;

/// What the reader holds.
#[derive(Debug, Default)]
pub struct Held {
    /// The tables.
    pub tables: Tables,
    /// When the start of the stream ended.
    pub initial: Option<Instant>,
    /// Tables received, and their bytes.
    pub received: (u64, u64),
    /// Tables whose version was not above the one held.
    pub backwards: u64,
    /// When each table came, while it is recorded.
    pub arrivals: Option<HashMap<String, Vec<Instant>>>,
    /// Why the stream ended, once it has.
    pub ended: Option<String>,
    versions: HashMap<String, Version>,
}

impl Held {
    /// Endpoints in all tables.
    pub fn endpoints(&self) -> usize {
        self.tables.values().map(BTreeMap::len).sum()
    }

    fn take(&mut self, frame: &[u8]) -> Result<()> {
        let down = Down::decode(frame).map_err(|e| Error::new(format!("a frame: {e}")))?;
        match down {
            Down::Table(table) => self.table(table, frame.len()),
            Down::Remove(removed) => {
                self.tables.remove(&removed.service);
                self.versions.insert(removed.service, removed.version);
            }
            Down::InitialEnd(_) => self.initial = Some(Instant::now()),
            Down::Heartbeat(_) | Down::Patch(_) => {}
        }
        Ok(())
    }

    fn table(&mut self, table: Table, length: usize) {
        self.received.0 += 1;
        self.received.1 += length as u64;
        if let Some(arrivals) = &mut self.arrivals {
            arrivals.entry(table.service.clone()).or_default().push(Instant::now());
        }
        let before = self.versions.insert(table.service.clone(), table.version);
        if before >= Some(table.version) {
            self.backwards += 1;
        }
        let endpoints = table.endpoints.into_iter();
        let endpoints = endpoints.map(|e| (e.id.clone(), (e.socket_addr(), e.weight))).collect();
        self.tables.insert(table.service, endpoints);
    }
}

/// A connected reader; dropping it ends the stream.
#[derive(Debug)]
pub struct Reader {
    held: Arc<Mutex<Held>>,
    tasks: [JoinHandle<()>; 2],
}

impl Reader {
    /// Connects and says hello as the proxy of this name, holding nothing.
    pub async fn connect(socket: &Path, proxy: &str) -> Result<Self> {
        Self::connect_saying(socket, proxy, stream::empty().boxed()).await
    }

    /// The same, and sends these messages as fast as they are taken.
    pub async fn connect_saying(
        socket: &Path,
        proxy: &str,
        more: BoxStream<'static, Up>,
    ) -> Result<Self> {
        let io = TokioIo::new(UnixStream::connect(socket).await?);
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
        let connection = tokio::spawn(async move {
            // The stream says why it ended; the connection has nothing to add.
            let _ = connection.await;
        });
        let hello =
            Up::Hello(Hello { proxy: proxy.into(), worker: 1, fence: 1, have: Version::default() });
        let said = stream::once(async { hello }).chain(more);
        let said = said.map(|up| Ok(Frame::data(framed(&up.encode_for(Schema::Two)))));
        // A proxy's side stays open for as long as it lives.
        let up: BoxStream<'static, std::result::Result<Frame<Bytes>, Infallible>> =
            said.chain(stream::pending()).boxed();
        let request = Request::post("http://agent/pintle.v1.Sync/Watch")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(StreamBody::new(up))?;
        let response = sender.send_request(request).await?;
        let held = Arc::new(Mutex::new(Held::default()));
        let reading = tokio::spawn(read(response.into_body(), Arc::clone(&held)));
        Ok(Self { held, tasks: [connection, reading] })
    }

    /// Tries until there is a socket, for at most `budget`.
    pub async fn connect_within(socket: &Path, proxy: &str, budget: Duration) -> Result<Self> {
        let began = Instant::now();
        loop {
            match Self::connect(socket, proxy).await {
                Ok(reader) => return Ok(reader),
                Err(e) if began.elapsed() > budget => return Err(e.during("no Watch stream")),
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }

    /// Looks at what it holds; nothing is received meanwhile.
    pub fn look<T>(&self, look: impl FnOnce(&mut Held) -> T) -> T {
        look(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until what it holds is as wanted; when that was, or `None` after `budget`.
    pub async fn until(
        &self,
        budget: Duration,
        mut wanted: impl FnMut(&Held) -> bool,
    ) -> Result<Option<Instant>> {
        let began = Instant::now();
        loop {
            let (done, ended) = self.look(|held| (wanted(held), held.ended.clone()));
            match ended {
                _ if done => return Ok(Some(Instant::now())),
                Some(why) => return Err(Error::new(format!("the Watch stream ended: {why}"))),
                None if began.elapsed() > budget => return Ok(None),
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// A message as gRPC sends it.
#[must_use]
pub fn framed(message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(message.len() + 5);
    out.put_u8(0);
    out.put_u32(message.len() as u32);
    out.put_slice(message);
    out.freeze()
}

async fn read(mut body: Incoming, held: Arc<Mutex<Held>>) {
    let why = match frames(&mut body, &held).await {
        Ok(why) => why,
        Err(e) => e.to_string(),
    };
    held.lock().unwrap_or_else(PoisonError::into_inner).ended = Some(why);
}

async fn frames(body: &mut Incoming, held: &Mutex<Held>) -> Result<String> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        match frame?.into_data() {
            Ok(data) => bytes.extend_from_slice(&data),
            Err(trailers) => return Ok(format!("{:?}", trailers.trailers_ref())),
        }
        while let Some(length) = bytes.get(1..5) {
            let length = length.iter().fold(0, |n, byte| n << 8 | usize::from(*byte));
            if bytes.len() < length + 5 {
                break;
            }
            bytes.advance(5);
            let message = bytes.split_to(length);
            held.lock().unwrap_or_else(PoisonError::into_inner).take(&message)?;
        }
    }
    Ok("without trailers".into())
}
