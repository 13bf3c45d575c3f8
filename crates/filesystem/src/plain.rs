//! Whether a test wants no more than the plain ways.

use std::sync::LazyLock;

/// Whether only the plain ways are used, as on a file system that lacks everything. For tests of
/// these ways on any file system: only a debug build looks for `OPENHOSTING_PLAIN_FILESYSTEM`.
pub fn is_plain() -> bool {
    static IS_PLAIN: LazyLock<bool> =
        LazyLock::new(|| std::env::var_os("OPENHOSTING_PLAIN_FILESYSTEM").is_some());
    cfg!(debug_assertions) && *IS_PLAIN
}
