//! What there is to say of a disk that was taken out of an archive.

use crate::image::Image;

/// The lines about the archive, none if the image is in none.
pub(super) fn notices(image: &Image) -> Vec<String> {
    let Some(member) = image.member() else {
        return Vec::new();
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
            "The manifest of the archive tells no digest of this disk: it is not checked".into(),
        );
    }
    lines
}
