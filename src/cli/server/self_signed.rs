//! A certificate that `openhosting-server --tls-self-signed` makes for itself, so that TLS can be
//! tried without a certificate authority. Clients accept it with `--cacert`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use zeroize::Zeroizing;

use crate::cli::written_files::cannot_write;
use crate::error::{Error, ErrorKind, Result};
use crate::filesystem::{Access, private_directory, replace};

/// Where Linux reports the name of this machine and its addresses. The two parsers below are shorter
/// than what another crate would cost: none that the server has anyway lists addresses (rustix does
/// not have getifaddrs), and one for this alone would be another dependency to audit, for a
/// certificate that only serves to try TLS.
const HOST_NAME: &str = "/proc/sys/kernel/hostname";
const IPV4_ROUTES: &str = "/proc/net/fib_trie";
const IPV6_ADDRESSES: &str = "/proc/net/if_inet6";

/// A certificate, and the names that it should cover.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SelfSigned {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
    /// The names and addresses under which other machines may reach the server.
    pub(super) names: Vec<String>,
    /// Those of them that the certificate lacks, because it is older than they are.
    pub(super) missing: Vec<String>,
}

/// The certificate and its key, for a server that listens on this address. They are made once and
/// stay the same, so that clients can keep the certificate that they have. The certificate is for
/// localhost, the addresses of the loopback interface and the one of `listen`. If that is all
/// addresses of this machine, it is for each of them, and for the name of the machine.
///
/// # Errors
/// [`ErrorKind::Local`] if they cannot be written to `directory`.
pub(super) fn files(directory: &Path, listen: SocketAddr) -> Result<SelfSigned> {
    let ip = listen.ip();
    // A colon is not allowed in names of files everywhere.
    let name = ip.to_string().replace(':', "-");
    let [certificate, key] =
        ["pem", "key"].map(|end| directory.join(format!("self-signed-{name}.{end}")));
    let names = names(ip);
    if certificate.exists() && key.exists() {
        return Ok(SelfSigned {
            missing: missing(&certificate, &names),
            certificate,
            key,
            names,
        });
    }
    private_directory(directory).map_err(cannot_write(directory))?;
    let mut all = vec![
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
        "::1".to_owned(),
    ];
    if ip.is_unspecified() {
        // The server prints this address, and on this machine a client can connect to it.
        all.push(ip.to_string());
    }
    all.extend(names.iter().cloned());
    let made = rcgen::generate_simple_self_signed(all).map_err(|cause| {
        Error::new(ErrorKind::Local, "Cannot make a certificate").because(cause)
    })?;
    // The key first: a certificate that is there has its key.
    let text = Zeroizing::new(made.signing_key.serialize_pem());
    replace(&key, Access::Private, text.as_bytes()).map_err(cannot_write(&key))?;
    let text = made.cert.pem();
    replace(&certificate, Access::Usual, text.as_bytes()).map_err(cannot_write(&certificate))?;
    Ok(SelfSigned {
        certificate,
        key,
        names,
        missing: Vec::new(),
    })
}

/// The names and addresses under which other machines may reach a server that listens on this
/// address. Those of the loopback interface are left out.
fn names(listen: IpAddr) -> Vec<String> {
    if listen.is_loopback() {
        return Vec::new();
    }
    if !listen.is_unspecified() {
        return vec![listen.to_string()];
    }
    // Without these files the certificate has fewer names, and the server starts all the same.
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let name = read(HOST_NAME).trim().to_owned();
    let mut names: Vec<String> = Some(name)
        .filter(|name| is_host_name(name))
        .into_iter()
        .collect();
    // A socket that listens on [::] accepts connections over IPv4 too.
    let addresses = ipv4_addresses(&read(IPV4_ROUTES));
    names.extend(addresses.iter().map(Ipv4Addr::to_string));
    if listen.is_ipv6() {
        let addresses = ipv6_addresses(&read(IPV6_ADDRESSES));
        names.extend(addresses.iter().map(Ipv6Addr::to_string));
    }
    names
}

/// Whether a certificate can be for this name of a machine.
fn is_host_name(name: &str) -> bool {
    let is_known = !matches!(name, "" | "localhost" | "(none)");
    is_known && matches!(ServerName::try_from(name), Ok(ServerName::DnsName(_)))
}

/// The addresses of this machine in a table of routes: a line with the address is followed by one
/// that says `host LOCAL`. Those of the loopback interface are left out.
fn ipv4_addresses(table: &str) -> Vec<Ipv4Addr> {
    let mut addresses = Vec::new();
    let mut last = None;
    for line in table.lines() {
        if let Some(address) = line.trim_start().strip_prefix("|-- ") {
            last = address.parse::<Ipv4Addr>().ok();
        } else if line.contains("/32 host LOCAL") {
            addresses.extend(last.filter(|address| !address.is_loopback()));
        }
    }
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// The addresses in a table whose lines begin with one in hexadecimal digits. Those of the loopback
/// interface are left out, and those that are valid on one link only, because a URL cannot contain
/// the link.
fn ipv6_addresses(table: &str) -> Vec<Ipv6Addr> {
    let addresses = table.lines().filter_map(|line| {
        let digits = line.split_whitespace().next()?;
        let bits = u128::from_str_radix(digits, 16).ok()?;
        Some(Ipv6Addr::from_bits(bits))
    });
    let is_useful = |address: &Ipv6Addr| !address.is_loopback() && !address.is_unicast_link_local();
    let mut addresses: Vec<_> = addresses.filter(is_useful).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// Those of these names that a certificate is not for. A certificate that cannot be read is
/// reported when the server uses it.
fn missing(certificate: &Path, names: &[String]) -> Vec<String> {
    let Ok(certificate) = CertificateDer::from_pem_file(certificate) else {
        return Vec::new();
    };
    let Ok(certificate) = webpki::EndEntityCert::try_from(&certificate) else {
        return Vec::new();
    };
    let is_missing = |name: &&String| {
        let name = ServerName::try_from(name.as_str());
        name.is_ok_and(|name| certificate.verify_is_valid_for_subject_name(&name).is_err())
    };
    names.iter().filter(is_missing).cloned().collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_certificate_is_made_once_for_each_address() {
        let directory = tempfile::tempdir().unwrap();
        let of = |address: &str| files(directory.path(), address.parse().unwrap()).unwrap();
        let made = of("127.0.0.1:8463");
        let mode = std::fs::metadata(&made.key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let before = std::fs::read(&made.certificate).unwrap();
        assert_eq!(of("127.0.0.1:1"), made);
        assert_eq!(std::fs::read(&made.certificate).unwrap(), before);
        assert_ne!(of("[::1]:8463").certificate, made.certificate);
        assert_eq!(of("192.0.2.7:443").names, ["192.0.2.7"]);
    }

    #[test]
    fn names_that_a_stored_certificate_lacks_are_found() {
        let directory = tempfile::tempdir().unwrap();
        let made = files(directory.path(), "192.0.2.7:443".parse().unwrap()).unwrap();
        let names = ["192.0.2.7", "192.0.2.8", "a.test", "localhost"].map(str::to_owned);
        assert_eq!(missing(&made.certificate, &names), ["192.0.2.8", "a.test"]);
    }

    #[test]
    fn addresses_of_this_machine_are_read_from_tables_of_the_system() {
        let routes = "Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 127.0.0.0/8 2 0 2
           |-- 127.0.0.1
              /32 host LOCAL
     +-- 192.0.2.0/24 2 0 2
           |-- 192.0.2.0
              /24 link UNICAST
           |-- 192.0.2.2
              /32 host LOCAL
        |-- 192.0.2.255
           /32 link BROADCAST
Local:
           |-- 192.0.2.2
              /32 host LOCAL
";
        let v4: Vec<Ipv4Addr> = vec!["192.0.2.2".parse().unwrap()];
        assert_eq!(ipv4_addresses(routes), v4);
        let table = "fe8000000000000000fc00fffe000001 04 40 20 80     eth0
20010db8000000000000000000000002 04 40 00 82     eth0
00000000000000000000000000000001 01 80 10 80       lo
";
        let v6: Vec<Ipv6Addr> = vec!["2001:db8::2".parse().unwrap()];
        assert_eq!(ipv6_addresses(table), v6);
        assert!(ipv4_addresses("").is_empty() && ipv6_addresses("x").is_empty());
        assert!(is_host_name("vm") && is_host_name("a.b-c.test"));
        for name in ["", "(none)", "localhost", "192.0.2.2", "a b"] {
            assert!(!is_host_name(name), "{name}");
        }
    }
}
