//! Answers that a fault plan truncates.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use crate::answer::AnswerBody;

/// How much time the bytes before the cut get to be sent.
const CUT_AFTER: Duration = Duration::from_millis(200);

/// `body` with its declared length, but broken off after `bytes`.
pub(super) fn cut(body: AnswerBody, bytes: u64) -> AnswerBody {
    let cut = Cut {
        body,
        left: bytes,
        wait: None,
    };
    cut.boxed()
}

struct Cut {
    body: AnswerBody,
    left: u64,
    wait: Option<Pin<Box<Sleep>>>,
}

impl Body for Cut {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.left == 0 {
            // An immediate error would discard what is not sent yet.
            let wait = self.wait.get_or_insert_with(|| Box::pin(sleep(CUT_AFTER)));
            return wait
                .as_mut()
                .poll(context)
                .map(|()| Some(Err(io::Error::other("cut, as the fault plan says"))));
        }
        let polled = Pin::new(&mut self.body).poll_frame(context);
        polled.map_ok(|frame| match frame.into_data() {
            Ok(mut data) => {
                data.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
                self.left -= data.len() as u64;
                Frame::data(data)
            }
            Err(frame) => frame,
        })
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
