//! Where messages are cut.

use http_body_util::BodyExt as _;
use http_body_util::StreamBody;
use proptest::prelude::*;
use prost::Message as _;

use super::*;

/// A body of these messages in pieces of `size` bytes.
fn body(messages: &[Vec<u8>], size: usize) -> Body {
    let mut all = Vec::new();
    for message in messages {
        all.push(0);
        all.extend((message.len() as u32).to_be_bytes());
        all.extend(message);
    }
    let pieces: Vec<_> = all.chunks(size).map(Bytes::copy_from_slice).collect();
    let frames = pieces.into_iter().map(|piece| Ok::<_, Status>(Frame::data(piece)));
    Body::new(StreamBody::new(futures::stream::iter(frames)))
}

proptest! {
    #[test]
    fn no_frame_reaches_beyond_a_message_and_nothing_is_lost(
        lengths in prop::collection::vec(0_usize..40, 0..12),
        size in 1_usize..64,
    ) {
        let messages: Vec<Vec<u8>> =
            lengths.iter().zip(1..).map(|(length, byte)| vec![byte; *length]).collect();
        let mut cut = Messages::new(body(&messages, size));
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let mut read: Vec<Vec<u8>> = vec![Vec::new()];
        runtime.block_on(async {
            while let Some(frame) = cut.frame().await {
                let data = frame.expect("a frame").into_data().expect("data");
                read.last_mut().expect("one").extend(data);
                if cut.lock().cut.known == 0 {
                    read.push(Vec::new());
                }
            }
        });
        let read: Vec<&[u8]> = read.iter().filter_map(|it| it.get(PREFIX..)).collect();
        prop_assert_eq!(read, messages.iter().map(Vec::as_slice).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn one_reader_goes_on_where_another_ended() {
    let large = "x".repeat(KEPT + 1).encode_to_vec();
    let all = [large, "second".to_owned().encode_to_vec(), "third".to_owned().encode_to_vec()];
    let messages = Messages::new(body(&all, 1 << 20));
    let mut first = messages.reader::<String>();
    assert_eq!(first.message().await.expect("a message").map(|it| it.len()), Some(KEPT + 1));
    assert!(messages.was_large());
    drop(first);
    let mut second = messages.reader::<String>();
    assert_eq!(second.message().await.expect("a message").as_deref(), Some("second"));
    assert!(!messages.was_large());
    assert_eq!(second.message().await.expect("a message").as_deref(), Some("third"));
    assert_eq!(second.message().await.expect("the end"), None);
}
