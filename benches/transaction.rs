//! Many writes to etcd.

use etcd_client::{Client, Txn, TxnOp};
use pintle_tests::{Error, Result};

/// Operations of one transaction; etcd takes 128.
pub const OPERATIONS: usize = 100;

/// Writes all of them, [`OPERATIONS`] at a time.
///
/// # Errors
/// etcd refuses one of the transactions; those before it are written.
pub async fn commit(client: &mut Client, all: &[TxnOp]) -> Result<()> {
    for some in all.chunks(OPERATIONS) {
        client.txn(Txn::new().and_then(some)).await.map_err(failed)?;
    }
    Ok(())
}

/// The error of a request to etcd.
pub fn failed(error: etcd_client::Error) -> Error {
    Error::new(format!("etcd: {error}"))
}
