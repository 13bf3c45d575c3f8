//! Answers with any number of objects. They are printed while they are sent, so that an answer uses
//! the same memory however long it is and however slowly it is read.
//!
//! Objects are looked up when they are printed. One that is created or destroyed meanwhile may or
//! may not be in the answer; each object is complete.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use openhosting_base::wire::{Format, Properties};

/// Minimum bytes of a frame, except the last.
const FRAME_BYTES: usize = 32 * 1024;

/// Prints whole objects: separated by a blank line in text, as an array in JSON, as
/// [`Properties::print_all`] does.
pub(super) fn of_objects(
    objects: impl Iterator<Item = Properties> + Send + Sync + 'static,
    format: Format,
) -> Listing {
    let printed = objects.map(move |object| {
        let mut text = object.print(format);
        if format == Format::Json {
            text.truncate(text.trim_end().len());
        }
        text
    });
    print(printed, format, "\n")
}

/// Prints one line of text, or one JSON value, for each item.
pub(super) fn of_lines(
    lines: impl Iterator<Item = String> + Send + Sync + 'static,
    format: Format,
) -> Listing {
    print(lines, format, "")
}

fn print(
    items: impl Iterator<Item = String> + Send + Sync + 'static,
    format: Format,
    between: &'static str,
) -> Listing {
    let (begin, between, end) = match format {
        Format::Text => ("", between, ""),
        Format::Json => ("[", ",", "]\n"),
    };
    let mut listing = Listing {
        items: Box::new(items),
        between,
        end,
        is_first: true,
        is_ended: false,
        begin,
        ahead: None,
    };
    let first = listing.print_frame();
    // An answer that fits one frame has a length, as most answers do.
    listing.ahead = Some(first).filter(|first| !(listing.is_ended && first.is_empty()));
    listing
}

/// The body of such an answer.
pub(super) struct Listing {
    items: Box<dyn Iterator<Item = String> + Send + Sync>,
    /// What stands between the objects and after them.
    between: &'static str,
    end: &'static str,
    begin: &'static str,
    is_first: bool,
    is_ended: bool,
    /// A frame that was already printed.
    ahead: Option<String>,
}

impl Listing {
    fn print_frame(&mut self) -> String {
        let mut frame = String::from(std::mem::take(&mut self.begin));
        while frame.len() < FRAME_BYTES {
            let Some(item) = self.items.next() else {
                self.is_ended = true;
                frame += self.end;
                break;
            };
            if !std::mem::take(&mut self.is_first) {
                frame += self.between;
            }
            frame += &item;
        }
        frame
    }
}

impl Body for Listing {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        let frame = match self.ahead.take() {
            Some(frame) => frame,
            None if self.is_ended => return Poll::Ready(None),
            None => self.print_frame(),
        };
        Poll::Ready(Some(Ok(Frame::data(frame.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_ended && self.ahead.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.ahead, self.is_ended) {
            (ahead, true) => SizeHint::with_exact(ahead.as_ref().map_or(0, String::len) as u64),
            _ => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn text(body: Listing) -> String {
        let bytes = body.collect().await.unwrap().to_bytes();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_streamed_list_equals_the_list_printed_at_once() {
        for objects in [0, 1, 2, 700] {
            let objects: Vec<_> = (0..objects)
                .map(|i| {
                    let mut object = Properties::new();
                    object.insert("size", i.to_string()).unwrap();
                    object.insert("name", "a\n\"b\" ".repeat(i % 50)).unwrap();
                    object
                })
                .collect();
            for format in [Format::Text, Format::Json] {
                let body = of_objects(objects.clone().into_iter(), format);
                // Only an answer that does not fit one frame is sent without a length.
                assert_eq!(body.size_hint().exact().is_some(), objects.len() < 700);
                let whole = Properties::print_all(&objects, format);
                assert!(text(body).await == whole, "{} {format:?}", objects.len());
            }
        }
        let lines = |format| of_lines((0..3).map(|i| i.to_string()), format);
        assert_eq!(text(lines(Format::Json)).await, "[0,1,2]\n");
        assert_eq!(text(lines(Format::Text)).await, "012");
    }
}
