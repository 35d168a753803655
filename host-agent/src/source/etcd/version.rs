//! What a member's version says of what it tells.

use etcd_client::Client;

use super::EtcdError;
use super::connect::Link;

/// Whether the server's answers to progress requests never overtake events. Where it does not want
/// to say its version, no.
pub(super) async fn progress_is_sound(link: &Link) -> Result<bool, EtcdError> {
    use etcd_client::Error::GRpcStatus;
    use tonic::Code::{PermissionDenied, Unauthenticated, Unimplemented};
    let mut client: Client = link.client.clone();
    match link.within("asking for the version", client.status()).await {
        Ok(status) => Ok(version_is_sound(status.version())),
        Err(EtcdError::Client(GRpcStatus(status)))
            if matches!(status.code(), PermissionDenied | Unauthenticated | Unimplemented) =>
        {
            Ok(false)
        }
        // The next request on this connection would only make another.
        Err(error) => Err(error),
    }
}

fn version_is_sound(version: &str) -> bool {
    let mut numbers = version.split(['.', '-', '+']).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor)), Some(Ok(patch))) =
        (numbers.next(), numbers.next(), numbers.next())
    else {
        return false;
    };
    match (major, minor) {
        (3, ..=3) => false,
        (3, 4) => patch >= 25,
        (3, 5) => patch >= 8,
        _ => major >= 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_believed_only_where_they_do_not_overtake_events() {
        for (version, expect) in [
            ("3.3.99", false),
            ("3.4.23", false),
            ("3.4.25", true),
            ("3.5.7", false),
            ("3.5.8", true),
            ("3.5.21-rc.1", true),
            ("3.6.0", true),
            ("4.0.0", true),
            ("", false),
            ("3.5", false),
        ] {
            assert_eq!(version_is_sound(version), expect, "{version}");
        }
    }
}
