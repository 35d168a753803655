//! A service as the command line names it.

use std::net::SocketAddr;
use std::str::FromStr;

/// A service, and how Envoy speaks to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Service {
    /// What the registry calls it.
    pub(super) name: String,
    /// HTTP/2, without a limit to how long a call takes.
    pub(super) grpc: bool,
    /// TLS, with this name in the certificate.
    pub(super) tls: Option<String>,
    /// PEM of the authorities that may sign the certificate; the system's where it is not named.
    pub(super) ca: Option<String>,
    /// Names that clients call it; its own where there are none.
    pub(super) domains: Vec<String>,
    /// Its hosts, where no registry knows them.
    pub(super) hosts: Vec<SocketAddr>,
}

/// What is wrong with a service on the command line.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServiceError {
    /// It has no name that a registry takes.
    #[error("a service's name is 1 to 253 of A-Z a-z 0-9 . _ - :, any other byte %XX")]
    Name,
    /// A word behind the name is not known.
    #[error("{0:?} is none of grpc, tls=NAME, ca=FILE, domain=NAME, static=ADDRESS:PORT")]
    Word(String),
    /// A host is no address with a port.
    #[error("{0:?} is no address with a port, such as 10.0.7.4:8001")]
    Host(String),
    /// There is nobody whose certificate could be looked at.
    #[error("ca= goes with tls=")]
    Ca,
}

impl FromStr for Service {
    type Err = ServiceError;

    fn from_str(text: &str) -> Result<Self, ServiceError> {
        let mut words = text.split(',');
        let name = words.next().filter(|name| pintle_contract::is_name(name));
        let mut service =
            Self { name: name.ok_or(ServiceError::Name)?.to_owned(), ..Self::default() };
        for word in words {
            match word.split_once('=') {
                None if word == "grpc" => service.grpc = true,
                Some((key, value)) if !value.is_empty() => match key {
                    "tls" => service.tls = Some(value.to_owned()),
                    "ca" => service.ca = Some(value.to_owned()),
                    "domain" => service.domains.push(value.to_owned()),
                    "static" => {
                        let host = value.parse();
                        service.hosts.push(host.map_err(|_| ServiceError::Host(value.to_owned()))?);
                    }
                    _ => return Err(ServiceError::Word(word.to_owned())),
                },
                _ => return Err(ServiceError::Word(word.to_owned())),
            }
        }
        if service.ca.is_some() && service.tls.is_none() {
            return Err(ServiceError::Ca);
        }
        Ok(service)
    }
}
