//! The registry in etcd.
use super::Context;
pub(crate) async fn run(context: Context) {
    context.shutdown.cancelled().await;
}
