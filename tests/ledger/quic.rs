//! HTTP/3: Envoy's QUIC listener beside the shipped one, and a client of quinn and h3.

use std::future::poll_fn;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use h3::client::SendRequest;
use h3::error::Code;
use h3_quinn::OpenStreams;
use hyper::Request;
use pintle_tests::{Authority, EnvoyConfig, Identity, Port};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::json;

/// How far a client goes with a request before it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// It stays.
    End,
    /// Resets the stream before the answer's head, once the upstream has seen the request.
    Head,
    /// Resets the stream with the head in hand.
    Body,
}

/// A QUIC client of one Envoy.
#[derive(Clone)]
pub struct Quic {
    endpoint: quinn::Endpoint,
    addr: SocketAddr,
}

/// One connection.
pub struct Connection {
    sender: SendRequest<OpenStreams, Bytes>,
    driver: tokio::task::JoinHandle<()>,
}

/// A QUIC listener on this port: the shipped listener's filters as they are now, behind a
/// certificate.
pub fn listen(mut config: EnvoyConfig, port: &Port, identity: &Identity) -> EnvoyConfig {
    let quic =
        "type.googleapis.com/envoy.extensions.transport_sockets.quic.v3.QuicDownstreamTransport";
    let mut manager = config.http_connection_manager().clone();
    manager["codec_type"] = json!("HTTP3");
    let listener = json!({
        "name": "quic",
        "address": {"socket_address":
            {"protocol": "UDP", "address": "127.0.0.1", "port_value": port.number()}},
        "udp_listener_config": {"quic_options": {}},
        "filter_chains": [{
            "transport_socket": {"name": "envoy.transport_sockets.quic", "typed_config": {
                "@type": quic,
                "downstream_tls_context": {"common_tls_context": {"tls_certificates": [{
                    "certificate_chain": {"filename": identity.certificate},
                    "private_key": {"filename": identity.key}}]}}}},
            "filters": [{
                "name": "envoy.filters.network.http_connection_manager", "typed_config": manager}],
        }],
    });
    let listeners = config.at("/static_resources/listeners").as_array_mut();
    listeners.expect("listeners").push(listener);
    config
}

impl Quic {
    /// A client that trusts this authority.
    pub fn client(authority: &Authority, port: &Port) -> Self {
        let mut roots = RootCertStore::empty();
        let own = CertificateDer::from_pem_file(authority.certificate()).expect("a certificate");
        roots.add(own).expect("an authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"h3".to_vec()];
        let config = QuicClientConfig::try_from(tls).expect("a cipher for QUIC");
        let any = (Ipv4Addr::LOCALHOST, 0).into();
        let mut endpoint = quinn::Endpoint::client(any).expect("a UDP socket");
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(config)));
        Self { endpoint, addr: port.addr() }
    }

    pub async fn connect(&self) -> Connection {
        let connecting = self.endpoint.connect(self.addr, "localhost").expect("an address");
        let connection = connecting.await.expect("Envoy's QUIC listener");
        let connection = h3_quinn::Connection::new(connection);
        let (mut driver, sender) = h3::client::new(connection).await.expect("HTTP/3");
        let driver = tokio::spawn(async move {
            let _ = poll_fn(|cx| driver.poll_close(cx)).await;
        });
        Connection { sender, driver }
    }
}

impl Connection {
    /// `GET /act` of a service; the status, where a head was waited for. `seen` ends when the
    /// upstream has seen the request.
    pub async fn get(
        &mut self,
        service: &str,
        act: &str,
        until: Until,
        seen: impl Future<Output = ()>,
    ) -> Option<u16> {
        let uri = format!("https://{service}/{act}");
        let request = Request::get(uri).body(()).expect("a request");
        let mut stream = self.sender.send_request(request).await.expect("a stream");
        stream.finish().await.expect("the request's end");
        if until == Until::Head {
            seen.await;
            stream.stop_sending(Code::H3_REQUEST_CANCELLED);
            return None;
        }
        let head = stream.recv_response().await.expect("a head");
        if until == Until::Body {
            stream.stop_sending(Code::H3_REQUEST_CANCELLED);
        } else {
            while let Some(piece) = stream.recv_data().await.expect("the body") {
                let _ = piece.remaining();
            }
        }
        Some(head.status().as_u16())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
