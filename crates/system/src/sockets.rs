//! Options of sockets.

/// Sets, in the builder of an HTTP client, how long sent bytes may stay unacknowledged by the peer
/// (TCP_USER_TIMEOUT). Only Linux has this option; elsewhere, such a connection ends with the
/// timeouts of its requests.
///
/// A macro, because the builder has no such method on other systems.
#[cfg(target_os = "linux")]
#[macro_export]
macro_rules! with_user_timeout {
    ($builder:expr, $longest:expr) => {
        $builder.tcp_user_timeout($longest)
    };
}

/// Returns the builder unchanged on systems without the option TCP_USER_TIMEOUT.
#[cfg(not(target_os = "linux"))]
#[macro_export]
macro_rules! with_user_timeout {
    ($builder:expr, $longest:expr) => {{
        let _ = $longest;
        $builder
    }};
}
