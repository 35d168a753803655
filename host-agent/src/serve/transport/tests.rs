//! TCP with mutual TLS: who gets in, and what a reload changes.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use pintle_state::Snapshot;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::sync::broadcast;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::*;
use crate::serve::recall::Recall;
use crate::serve::socket::SocketOptions;
use crate::updates::Updates;

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// Certificate and key, PEM.
    fn sign(&self) -> (String, String) {
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        (cert.pem(), key.serialize_pem())
    }

    fn write(&self, dir: &Path) -> TlsFiles {
        let (cert, key) = self.sign();
        let put = |name: &str, text: &str| {
            let path = dir.join(name);
            fs::write(&path, text).unwrap();
            path
        };
        TlsFiles {
            cert: put("cert.pem", &cert),
            key: put("key.pem", &key),
            client_ca: put("ca.pem", &self.pem),
        }
    }
}

/// A connection that has spoken: with TLS 1.3 a server's refusal comes after the handshake.
async fn connect(
    address: SocketAddr,
    trusts: &Authority,
    identity: Option<(String, String)>,
) -> Result<(), String> {
    use super::super::eds::proto::envoy::service::discovery::v3::DiscoveryRequest;
    use super::super::eds::proto::envoy::service::endpoint::v3::endpoint_discovery_service_client::EndpointDiscoveryServiceClient;
    let mut tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&trusts.pem))
        .domain_name("localhost");
    if let Some((cert, key)) = identity {
        tls = tls.identity(Identity::from_pem(cert, key));
    }
    let channel: Channel = Endpoint::from_shared(format!("https://{address}"))
        .unwrap()
        .tls_config(tls)
        .unwrap()
        .connect()
        .await
        .map_err(|error| format!("{error:?}"))?;
    let requests = tokio_stream::once(DiscoveryRequest::default());
    EndpointDiscoveryServiceClient::new(channel)
        .stream_endpoints(requests)
        .await
        .map(drop)
        .map_err(|error| format!("{error:?}"))
}

#[tokio::test]
async fn only_a_client_with_a_certificate_of_the_authority_gets_in_and_a_reload_changes_it() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    let (ours, other) = (Authority::new(), Authority::new());
    let files = ours.write(dir.path());
    let (config, config_rx) = watch::channel(files.load().unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_snapshots, snapshots) = watch::channel(Arc::new(Snapshot::default()));
    let (outgoing, _reported) = mpsc::channel(1);
    let fleet = Arc::new(Fleet::new(broadcast::channel(4).0, outgoing));
    let stop = CancellationToken::new();
    let proxies = Proxies {
        socket: Socket::bind(SocketOptions::at(dir.path().join("agent.sock"))).unwrap(),
        tcp: Some((listener, config_rx)),
        sync: Sync::new(
            snapshots.clone(),
            Arc::clone(&fleet),
            Updates::nowhere(),
            Recall::default(),
            stop.clone(),
        ),
        eds: Eds::new(snapshots, Arc::clone(&fleet), Recall::default(), stop.clone()),
        fleet: Arc::clone(&fleet),
        quotas: Quotas::new(512),
    };
    let server = tokio::spawn(proxies.serve(stop.clone()));
    connect(address, &ours, Some(ours.sign())).await.unwrap();
    assert!(connect(address, &ours, None).await.is_err());
    assert!(connect(address, &ours, Some(other.sign())).await.is_err());
    assert!(connect(address, &other, Some(ours.sign())).await.is_err());
    assert!(fleet.view(crate::fleet::When::now()).refused["peer"] >= 2);

    let files = other.write(dir.path());
    config.send_replace(files.load().unwrap());
    connect(address, &other, Some(other.sign())).await.unwrap();
    assert!(connect(address, &ours, Some(ours.sign())).await.is_err());
    stop.cancel();
    server.await.unwrap().unwrap();
}

#[test]
fn who_a_peer_is_shows_in_its_identity() {
    let local = |uid, gid, pid| Peer::Local(Credentials { uid, gid, pid });
    let identity = |peer| {
        let streams = Arc::new(Streams::new());
        Caller::new(peer, Quotas::new(1), streams).identity().to_string()
    };
    let all = [
        local(7, 7, 0),
        local(8, 7, 0),
        local(7, 8, 0),
        local(7, 7, 9),
        Peer::Remote(([10, 0, 0, 1], 5).into(), 1),
        Peer::Remote(([10, 0, 0, 1], 5).into(), 2),
    ];
    let distinct: std::collections::BTreeSet<_> = all.clone().map(identity).into();
    assert_eq!(distinct.len(), all.len());
    let moved = Peer::Remote(([10, 0, 0, 2], 6).into(), 2);
    assert_eq!(identity(moved), identity(all[5].clone()), "an address is no name");
}

#[test]
fn a_file_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let files = Authority::new().write(dir.path());
    fs::write(&files.key, "no key").unwrap();
    let error = files.load().unwrap_err().to_string();
    assert!(error.contains("key.pem"), "{error}");
    fs::remove_file(&files.client_ca).unwrap();
    let error = files.load().unwrap_err().to_string();
    assert!(error.contains("ca.pem"), "{error}");
}
