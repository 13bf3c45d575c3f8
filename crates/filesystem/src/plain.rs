//! Whether only the fallbacks are used, for tests.

use std::sync::LazyLock;

/// Whether only the fallbacks are used, as on a file system that supports nothing more. This allows
/// tests of the fallbacks on any file system. Only a debug build looks at
/// `OPENHOSTING_PLAIN_FILESYSTEM`.
pub fn is_plain() -> bool {
    static IS_PLAIN: LazyLock<bool> =
        LazyLock::new(|| std::env::var_os("OPENHOSTING_PLAIN_FILESYSTEM").is_some());
    cfg!(debug_assertions) && *IS_PLAIN
}
