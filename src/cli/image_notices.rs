//! Notices about an image before any of it is sent.

use super::display::Display;
use crate::error::Result;
use crate::image::{Format, Image};
use crate::transfer::{Stop, blocking};

/// Prints notices about an archive, or about a format that was detected because none was `given`,
/// and the image's own. `does` says what the command would do with a raw image, as in "sends".
pub(super) async fn show(
    image: Image,
    given: Option<Format>,
    does: &str,
    display: &mut Display,
    stop: &mut Stop,
) -> Result<Image> {
    display.notices(by_content(&image, given, does));
    let looked_at = blocking(move || Ok((image.notices(given.is_some()), image)));
    let (notices, image) = stop.unless_asked(looked_at).await?;
    display.notices(notices);
    Ok(image)
}

fn by_content(image: &Image, given: Option<Format>, does: &str) -> Vec<String> {
    let Some(member) = image.member() else {
        let format = image.format();
        let is_found = given.is_none() && format != Format::Raw;
        let line =
            || format!("By its content the image is {format}; --format raw {does} it as it is");
        return is_found.then(line).into_iter().collect();
    };
    let (name, format) = (&member.name, image.format());
    let others = match member.others.as_slice() {
        [] => "--format raw takes all of it as it is".to_owned(),
        others => format!("--disk takes another one: {}", others.join(", ")),
    };
    let mut lines = vec![format!(
        "The image is an archive, and the disk {name} in it is {format}; {others}"
    )];
    if member.is_left_out {
        lines.push(
            "The manifest of the archive lists no digest of this disk: it is not checked".into(),
        );
    }
    lines
}
