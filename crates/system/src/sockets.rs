//! Options of connections.

/// The builder of an HTTP client, with the longest time for which bytes that the kernel took may
/// stay unconfirmed by the other side. Only Linux has that option; elsewhere such a connection
/// ends with the time limits of the requests on it.
///
/// A macro, because the builder has no such method on other systems.
#[cfg(target_os = "linux")]
#[macro_export]
macro_rules! with_user_timeout {
    ($builder:expr, $longest:expr) => {
        $builder.tcp_user_timeout($longest)
    };
}

/// The same where there is no such option.
#[cfg(not(target_os = "linux"))]
#[macro_export]
macro_rules! with_user_timeout {
    ($builder:expr, $longest:expr) => {{
        let _ = $longest;
        $builder
    }};
}
