//! Resources: addresses and private networks that a user has (docs/dev/reference.md, 1.12).
//!
//! An address belongs to the loopback network of this host, and a server that has it uses its
//! ports: `nic:0:dhcp 127.70.1.2`. A VLAN connects the servers whose `nic:N:vlan` refers to it.
//!
//! ```text
//! resources/ip-ADDRESS.meta, resources/vlan-UUID.meta      in the format of `stored_file.rs`
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, RwLock};

use uuid::Uuid;

use openhosting_base::drive::parse_uuid;
use openhosting_base::locks::{lock, read, write};
use openhosting_base::wire::Properties;
use openhosting_filesystem::private_directory;
use openhosting_tenancy::{
    Amounts, QuotaKind, Quotas, Refusal, check_length, put_label, set, stored_file,
};

/// The addresses to assign: a part of 127.0.0.0/8 that nothing else uses.
const NETWORK: u32 = u32::from_be_bytes([127, 64, 0, 0]);
const NETWORK_BITS: u32 = 10;

/// The two types of resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResourceKind {
    /// An address.
    Ip,
    /// A private network.
    Vlan,
}

impl ResourceKind {
    /// The type with this name.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "ip" => Some(Self::Ip),
            "vlan" => Some(Self::Vlan),
            _ => None,
        }
    }
}

/// Identifies a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ResourceId {
    /// An address.
    Ip(Ipv4Addr),
    /// A private network.
    Vlan(Uuid),
}

impl ResourceId {
    /// The resource with this type and name.
    pub fn parse(kind: ResourceKind, text: &str) -> Option<Self> {
        match kind {
            ResourceKind::Ip => text.parse().ok().map(Self::Ip),
            ResourceKind::Vlan => parse_uuid(text).map(Self::Vlan),
        }
    }

    fn kind(self) -> ResourceKind {
        match self {
            Self::Ip(_) => ResourceKind::Ip,
            Self::Vlan(_) => ResourceKind::Vlan,
        }
    }

    /// Its type and name, as in a list: `ip 127.70.1.2`.
    fn words(self) -> (&'static str, String) {
        match self {
            Self::Ip(address) => ("ip", address.to_string()),
            Self::Vlan(id) => ("vlan", id.to_string()),
        }
    }
}

impl fmt::Display for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, name) = self.words();
        write!(f, "{kind}-{name}")
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Resource {
    user: String,
    /// `name`, `tags` and `user:` keys.
    settings: Properties,
}

impl Resource {
    fn merge(&mut self, body: &Properties) -> Result<(), Refusal> {
        for (key, value) in body {
            put_label(&mut self.settings, key, value)?;
        }
        check_length(&self.settings, "resource")
    }

    fn info(&self, id: ResourceId) -> Properties {
        let mut info = self.settings.clone();
        let (kind, name) = id.words();
        set(&mut info, "type", kind);
        set(&mut info, "resource", name);
        set(&mut info, "user", &self.user);
        info
    }
}

/// All resources, and the addresses in use.
#[derive(Debug)]
pub struct Resources {
    directory: PathBuf,
    staging: PathBuf,
    resources: RwLock<BTreeMap<ResourceId, Resource>>,
    /// Addresses in use by active servers.
    used: Mutex<BTreeSet<Ipv4Addr>>,
    vlans_used: Mutex<BTreeMap<Uuid, u32>>,
    /// Held while files change.
    keeping: Mutex<()>,
    quotas: Quotas,
}

impl Resources {
    /// Loads what is stored in the data directory `data`. This and every change block on the disk.
    pub fn open(data: &Path, staging: &Path, quotas: Quotas) -> io::Result<Self> {
        let directory = data.join("resources");
        private_directory(&directory)?;
        let mut resources = BTreeMap::new();
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            match load(&path)? {
                Some((id, resource)) => {
                    quotas.hold_anyway(&resource.user, one(id.kind())).keep();
                    resources.insert(id, resource);
                }
                None => tracing::error!(?path, "A resource is damaged, the others are served"),
            }
        }
        Ok(Self {
            directory,
            staging: staging.to_owned(),
            resources: RwLock::new(resources),
            used: Mutex::default(),
            vlans_used: Mutex::default(),
            keeping: Mutex::default(),
            quotas,
        })
    }

    fn path(&self, id: ResourceId) -> PathBuf {
        self.directory.join(format!("{id}.meta"))
    }

    /// Stores a resource, and returns its properties.
    fn keep(&self, id: ResourceId, resource: Resource) -> io::Result<Properties> {
        let info = resource.info(id);
        stored_file::write(&stored_file::print(&info), &self.path(id), &self.staging)?;
        write(&self.resources).insert(id, resource);
        Ok(info)
    }

    fn own(&self, user: &str, id: ResourceId) -> Result<Resource, Refusal> {
        let resources = read(&self.resources);
        let resource = resources.get(&id).filter(|resource| resource.user == user);
        resource.cloned().ok_or_else(Refusal::no_resource)
    }

    /// The user's resources, of all kinds or of one.
    pub fn infos(&self, user: &str, kind: Option<ResourceKind>) -> Vec<Properties> {
        let resources = read(&self.resources);
        let own = resources.iter().filter(|(id, resource)| {
            resource.user == user && kind.is_none_or(|kind| kind == id.kind())
        });
        own.map(|(&id, resource)| resource.info(id)).collect()
    }

    /// The properties of one of the user's resources.
    pub fn info(&self, user: &str, id: ResourceId) -> Result<Properties, Refusal> {
        Ok(self.own(user, id)?.info(id))
    }

    /// Creates a resource with a new identifier.
    pub fn create(
        &self,
        user: &str,
        kind: ResourceKind,
        body: &Properties,
    ) -> Result<Properties, Refusal> {
        let mut resource = Resource {
            user: user.to_owned(),
            settings: Properties::new(),
        };
        resource.merge(body)?;
        let _keeping = lock(&self.keeping);
        let grant = self.quotas.hold(user, one(kind))?;
        let id = match kind {
            ResourceKind::Vlan => ResourceId::Vlan(Uuid::new_v4()),
            ResourceKind::Ip => ResourceId::Ip(self.free_address()?),
        };
        let info = self.keep(id, resource)?;
        grant.keep();
        Ok(info)
    }

    /// Merges keys into one of the user's resources.
    pub fn change(
        &self,
        user: &str,
        id: ResourceId,
        body: &Properties,
    ) -> Result<Properties, Refusal> {
        let _keeping = lock(&self.keeping);
        let mut resource = self.own(user, id)?;
        resource.merge(body)?;
        Ok(self.keep(id, resource)?)
    }

    /// Destroys a resource that no active server uses.
    pub fn destroy(&self, user: &str, id: ResourceId) -> Result<(), Refusal> {
        let _keeping = lock(&self.keeping);
        self.own(user, id)?;
        let is_used = match id {
            ResourceId::Ip(address) => lock(&self.used).contains(&address),
            ResourceId::Vlan(vlan) => lock(&self.vlans_used).contains_key(&vlan),
        };
        if is_used {
            return Err(Refusal::busy("Resource is busy: a server uses it"));
        }
        stored_file::remove(&self.path(id))?;
        write(&self.resources).remove(&id);
        self.quotas.release(user, &one(id.kind()));
        Ok(())
    }

    /// An address that no resource and no active server has.
    fn free_address(&self) -> Result<Ipv4Addr, Refusal> {
        for _ in 0..64 {
            let address = candidate(fastrand::u32(..));
            let resources = read(&self.resources);
            if !resources.contains_key(&ResourceId::Ip(address))
                && !lock(&self.used).contains(&address)
            {
                return Ok(address);
            }
        }
        Err(Refusal::full())
    }

    /// Refuses resources that do not belong to the user.
    pub fn check(
        &self,
        user: &str,
        wanted: Option<Ipv4Addr>,
        vlans: &[Uuid],
    ) -> Result<(), Refusal> {
        let address = wanted.map(ResourceId::Ip);
        let vlans = vlans.iter().copied().map(ResourceId::Vlan);
        for id in address.into_iter().chain(vlans) {
            self.own(user, id)?;
        }
        Ok(())
    }

    /// Assigns an address to a server that starts: the static one if it belongs to the user, or
    /// else any. `vlans` are its networks.
    pub fn lend(
        &self,
        user: &str,
        wanted: Option<Ipv4Addr>,
        vlans: &[Uuid],
    ) -> Result<Ipv4Addr, Refusal> {
        let _keeping = lock(&self.keeping);
        self.check(user, wanted, vlans)?;
        let address = wanted.map_or_else(|| self.free_address(), Ok)?;
        self.mark(address, vlans)?;
        Ok(address)
    }

    /// Marks the resources of a running server as in use.
    pub fn mark(&self, address: Ipv4Addr, vlans: &[Uuid]) -> Result<(), Refusal> {
        if !lock(&self.used).insert(address) {
            let sentence = format!("Address {address} is busy: a server uses it");
            return Err(Refusal::busy(sentence));
        }
        let mut used = lock(&self.vlans_used);
        for &vlan in vlans {
            *used.entry(vlan).or_default() += 1;
        }
        Ok(())
    }

    /// Returns the resources of a server.
    pub fn take_back(&self, address: Ipv4Addr, vlans: &[Uuid]) {
        lock(&self.used).remove(&address);
        let mut used = lock(&self.vlans_used);
        for vlan in vlans {
            if let Some(count) = used.get_mut(vlan) {
                *count -= 1;
                if *count == 0 {
                    used.remove(vlan);
                }
            }
        }
    }
}

/// One resource, as quotas count it.
fn one(kind: ResourceKind) -> Amounts {
    match kind {
        ResourceKind::Ip => Amounts::of([(QuotaKind::Addresses, 1)]),
        ResourceKind::Vlan => Amounts::of([(QuotaKind::Vlans, 1)]),
    }
}

/// The address with this number. The first and last of every 256 are not used.
fn candidate(number: u32) -> Ipv4Addr {
    let last = 1 + number % 254;
    let rest = (number >> 8 << 8) & (u32::MAX >> NETWORK_BITS);
    Ipv4Addr::from(NETWORK | rest | last)
}

fn load(path: &Path) -> io::Result<Option<(ResourceId, Resource)>> {
    let bytes = match stored_file::read(path) {
        Err(error) if stored_file::is_of_the_file(&error) => return Ok(None),
        read => read?,
    };
    Ok(parse(path.file_stem().and_then(OsStr::to_str), &bytes))
}

fn parse(stem: Option<&str>, bytes: &[u8]) -> Option<(ResourceId, Resource)> {
    let mut settings = stored_file::parse(bytes)?;
    let kind = ResourceKind::parse(&settings.remove("type")?)?;
    let id = ResourceId::parse(kind, &settings.remove("resource")?)?;
    let user = settings.remove("user")?;
    (stem? == id.to_string()).then_some((id, Resource { user, settings }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use openhosting_base::wire::Format;

    fn body(text: &str) -> Properties {
        Properties::parse(Format::Text, text.as_bytes()).unwrap()
    }

    #[test]
    fn generated_addresses_are_loopback_host_addresses() {
        for number in [0, 1, 253, 254, 255, 256, u32::MAX, 0x1234_5678] {
            let [a, b, _, d] = candidate(number).octets();
            assert!(a == 127 && (64..128).contains(&b), "{number}");
            assert!((1..255).contains(&d), "{number}");
        }
    }

    #[test]
    fn resources_outlive_the_server_and_belong_to_one_user() {
        let data = tempfile::tempdir().unwrap();
        let open = || Resources::open(data.path(), data.path(), Quotas::default()).unwrap();
        let resources = open();
        let made = resources
            .create("u", ResourceKind::Ip, &body("name a b"))
            .unwrap();
        let vlan = resources
            .create("u", ResourceKind::Vlan, &body("name 2G"))
            .unwrap();
        assert_eq!(vlan.get("type"), Some("vlan"));
        let id = ResourceId::parse(ResourceKind::Ip, made.get("resource").unwrap()).unwrap();
        for refused in [body("size 1"), body("type ip"), body("user: x")] {
            assert!(resources.change("u", id, &refused).is_err());
        }
        let changed = resources
            .change("u", id, &body("name c\nuser:k v"))
            .unwrap();
        drop(resources);

        let resources = open();
        assert_eq!(resources.info("u", id).unwrap(), changed);
        assert_eq!(resources.infos("u", None).len(), 2);
        assert_eq!(resources.infos("u", Some(ResourceKind::Vlan)), [vlan]);
        assert!(resources.infos("v", None).is_empty());
        assert_eq!(resources.info("v", id).unwrap_err().error().status(), 404);
        assert!(resources.destroy("v", id).is_err());

        // A damaged file is not mistaken for another resource, and does not affect others.
        let path = resources.path(id);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("name c", "name d")).unwrap();
        assert_eq!(open().infos("u", None).len(), 1);
        fs::write(&path, text).unwrap();
        resources.destroy("u", id).unwrap();
        assert_eq!(open().infos("u", None).len(), 1);
    }

    #[test]
    fn a_resource_in_use_is_neither_reused_nor_destroyed() {
        let data = tempfile::tempdir().unwrap();
        let resources = Resources::open(data.path(), data.path(), Quotas::default()).unwrap();
        let ip = resources.create("u", ResourceKind::Ip, &body("")).unwrap();
        let ip: Ipv4Addr = ip.get("resource").unwrap().parse().unwrap();
        let vlan = resources
            .create("u", ResourceKind::Vlan, &body(""))
            .unwrap();
        let vlan = Uuid::try_parse(vlan.get("resource").unwrap()).unwrap();
        assert!(resources.lend("v", Some(ip), &[]).is_err());
        assert_eq!(resources.lend("u", Some(ip), &[vlan]).unwrap(), ip);
        assert_eq!(
            resources
                .lend("u", Some(ip), &[])
                .unwrap_err()
                .error()
                .status(),
            409
        );
        let any = resources.lend("u", None, &[vlan]).unwrap();
        assert_ne!(any, ip);
        for id in [ResourceId::Ip(ip), ResourceId::Vlan(vlan)] {
            assert_eq!(
                resources.destroy("u", id).unwrap_err().error().status(),
                409
            );
        }
        resources.take_back(ip, &[vlan]);
        resources.destroy("u", ResourceId::Ip(ip)).unwrap();
        assert!(resources.destroy("u", ResourceId::Vlan(vlan)).is_err());
        resources.take_back(any, &[vlan]);
        resources.destroy("u", ResourceId::Vlan(vlan)).unwrap();
    }
}
