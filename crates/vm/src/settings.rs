//! The keys of a server that a client can set: which exist, which values they allow, and what they
//! mean (docs/dev/reference.md, 1.10). Pure functions.
//!
//! Keys of the first generation are accepted and stored as those of the second: `vnc:ip auto` is
//! `vnc auto`. A password stays under the name that the client used, because clients look for
//! either of two names. What is not supported here is refused by name, rather than stored and
//! ignored. Only the keys of the firewall and of placement are stored without effect: they matter
//! to a cloud of several hosts.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use uuid::Uuid;

use super::ids::Slot;
use openhosting_base::drive::DriveId;
use openhosting_base::wire::Properties;
use openhosting_tenancy::{
    Refusal, check_length, one_of, put, put_label, put_or_unset, set, unknown,
};

/// Core MHz of a server. Clients of the clouds used 500 to 20000.
const CPU_MHZ: RangeInclusive<u32> = 100..=1_000_000;
/// Memory of a server in MB; a BIOS runs with 16.
const MEM_MB: RangeInclusive<u32> = 16..=1_048_576;
const CORES_MAX: u32 = 64;
/// MHz of one core for `smp auto`: in recorded answers, 2000 MHz are one core.
const CORE_MHZ: u32 = 2000;
/// Maximum bytes of a VNC password, a limit of the protocol.
const PASSWORD_BYTES_MAX: usize = 8;
/// Maximum network cards of a server.
const NICS: u8 = 4;
const MODELS: [&str; 3] = ["e1000", "rtl8139", "virtio"];
/// The keys of the firewall, which are stored and not enforced.
const FIREWALL: [&str; 3] = [
    "nic:0:firewall:accept",
    "nic:0:firewall:policy",
    "nic:0:firewall:reject",
];

/// An attached drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Where it is attached.
    pub slot: Slot,
    /// Which drive it is.
    pub drive: DriveId,
    /// `media cdrom`: the guest cannot write to it.
    pub is_cdrom: bool,
    /// Its position in the boot order, from 0.
    pub boot_index: Option<usize>,
}

/// A network card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Nic {
    pub(crate) index: u8,
    /// One of `e1000`, `rtl8139` and `virtio`.
    pub(crate) model: &'static str,
    pub(crate) mac: Option<[u8; 6]>,
    /// Its private network; `None` for the card that is connected to the outside.
    pub(crate) vlan: Option<Uuid>,
}

/// The settings of a client. Every key is valid, and they are consistent.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Settings(Properties);

/// Hides the password.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.0.iter().map(|(key, _)| key);
        f.debug_list().entries(keys).finish()
    }
}

type Result<T = ()> = std::result::Result<T, Refusal>;

impl Settings {
    /// The settings of a new server, from the body of `servers/create`.
    pub(crate) fn create(body: &Properties) -> Result<Self> {
        let mut keys = Properties::new();
        set(&mut keys, "smp", "auto");
        let mut settings = Self(keys);
        settings.merge(body)?;
        Ok(settings)
    }

    /// Stored settings, if they are valid.
    pub(crate) fn from_stored(keys: &Properties) -> Option<Self> {
        let mut settings = Self(Properties::new());
        settings.merge(keys).ok()?;
        (settings.0 == *keys).then_some(settings)
    }

    /// Merges the body of `set`: keys that are not in it stay, and an empty value unsets a key. If
    /// it fails, some keys may already be merged, so use a copy.
    pub(crate) fn merge(&mut self, body: &Properties) -> Result {
        for (key, value) in body {
            self.put(key, value)?;
        }
        self.check()
    }

    /// As [`merge`](Self::merge) for an active server, which allows name, cpu, persistent, tags,
    /// user keys and the password (docs/dev/reference.md, 1.10). Any other key is refused unless it
    /// has its current value, because clients send all keys.
    pub(crate) fn merge_active(&mut self, body: &Properties) -> Result {
        let mut wanted = self.clone();
        for (key, value) in body {
            wanted.put(key, value)?;
        }
        let is_open = |key: &str| {
            matches!(
                key,
                "name" | "cpu" | "persistent" | "tags" | "password" | "vnc:password"
            ) || key.starts_with("user:")
        };
        let keys: BTreeSet<_> = wanted.0.iter().chain(&self.0).map(|(key, _)| key).collect();
        let closed = keys
            .into_iter()
            .find(|key| !is_open(key) && wanted.0.get(key) != self.0.get(key));
        if let Some(key) = closed {
            let sentence = format!("Server is active: stop it to set {key:?}");
            return Err(Refusal::busy(sentence));
        }
        wanted.check()?;
        *self = wanted;
        Ok(())
    }

    fn put(&mut self, key: &str, value: &str) -> Result {
        let keys = &mut self.0;
        match key {
            "boot" => put_or_unset(keys, key, value),
            "cpu" => put_number(keys, key, value, &CPU_MHZ),
            "mem" => put_number(keys, key, value, &MEM_MB),
            "smp" if matches!(value, "" | "auto") => put(keys, key, "auto"),
            "smp" => put_number(keys, key, value, &(1..=CORES_MAX)),
            "persistent" => match value {
                "" | "false" => put_or_unset(keys, key, ""),
                _ => {
                    one_of(key, value, &["true", "false"])?;
                    put(keys, key, value)
                }
            },
            "vnc" | "vnc:ip" => match value {
                "" => put_or_unset(keys, "vnc", ""),
                _ => {
                    one_of(key, value, &["auto"])?;
                    put(keys, "vnc", value)
                }
            },
            "password" | "vnc:password" => {
                let is_fit = |b: u8| b.is_ascii_graphic() || b == b' ';
                if value.len() > PASSWORD_BYTES_MAX || !value.bytes().all(is_fit) {
                    let sentence = format!(
                        "Password is invalid: it is of at most {PASSWORD_BYTES_MAX} characters of ASCII"
                    );
                    return Err(Refusal::usage(sentence));
                }
                keys.remove("password");
                keys.remove("vnc:password");
                put_or_unset(keys, key, value)
            }
            "vnc:tls" if matches!(value, "" | "off") => Ok(()),
            "vnc:tls" => Err(Refusal::usage(
                "Key \"vnc:tls\" is not supported: VNC is on this machine only",
            )),
            "type" => one_of(key, value, &["vm"]),
            // Accepted and not shown, as for drives: there is only one host.
            "avoid:drives" | "avoid:servers" => Ok(()),
            "nic:0:firewall:policy" => {
                if !value.is_empty() {
                    one_of(key, value, &["accept", "reject"])?;
                }
                put_or_unset(keys, key, value)
            }
            _ if FIREWALL.contains(&key) => put_or_unset(keys, key, value),
            "name" | "tags" => put_label(keys, key, value),
            _ if key.starts_with("user:") => put_label(keys, key, value),
            _ if key.starts_with("nic:") => self.put_nic(key, value),
            _ => self.put_device(key, value),
        }
    }

    fn put_nic(&mut self, key: &str, value: &str) -> Result {
        let unknown = || unknown(key);
        let (index, rest) = key[4..].split_once(':').ok_or_else(unknown)?;
        let index: u8 = index.parse().map_err(|_| unknown())?;
        if index >= NICS || key != format!("nic:{index}:{rest}") {
            return Err(unknown());
        }
        let invalid = |what| {
            let sentence = format!("Value {value:?} of {key:?} is invalid, it is {what}");
            Refusal::usage(sentence)
        };
        match (index, rest) {
            _ if value.is_empty() && matches!(rest, "model" | "dhcp" | "vlan" | "mac") => {}
            (_, "model") => one_of(key, value, &MODELS)?,
            // A client sends this address for "none".
            (0, "dhcp") if value == "0" => return put_or_unset(&mut self.0, key, ""),
            (0, "dhcp") if value == "auto" || value.parse::<Ipv4Addr>().is_ok() => {}
            (0, "dhcp") => return Err(invalid("auto or an IP address")),
            (1.., "vlan") if Uuid::try_parse(value).is_ok() => {}
            (1.., "vlan") => return Err(invalid("the UUID of a VLAN")),
            (1.., "mac") if mac(value).is_some() => {}
            (1.., "mac") => return Err(invalid("like 6a:cc:d6:a2:8e:e3")),
            _ => return Err(unknown()),
        }
        put_or_unset(&mut self.0, key, value)
    }

    fn put_device(&mut self, key: &str, value: &str) -> Result {
        let (slot, is_media) = match key.strip_suffix(":media") {
            Some(slot) => (slot, true),
            None => (key, false),
        };
        let slot = Slot::parse(slot).ok_or_else(|| unknown(key))?;
        if value.is_empty() {
            if !is_media {
                self.0.remove(&format!("{slot}:media"));
            }
            self.0.remove(key);
            return Ok(());
        }
        if is_media {
            one_of(key, value, &["disk", "cdrom"])?;
        } else if value.parse::<DriveId>().is_err() {
            let sentence = format!("Value {value:?} of {key:?} is invalid, it is a drive UUID");
            return Err(Refusal::usage(sentence));
        }
        put(&mut self.0, key, value)
    }

    /// Checks that the keys are consistent.
    fn check(&self) -> Result {
        for key in ["cpu", "mem"] {
            if self.0.get(key).is_none() {
                return Err(Refusal::usage(format!("Key {key:?} is missing")));
            }
        }
        for (key, _) in &self.0 {
            let slot = key
                .strip_suffix(":media")
                .filter(|_| !key.starts_with("user:"));
            if let Some(slot) = slot.filter(|slot| self.0.get(slot).is_none()) {
                let sentence = format!("Key {key:?} is invalid: there is no drive at {slot:?}");
                return Err(Refusal::usage(sentence));
            }
        }
        let boot = self.0.get("boot").unwrap_or_default();
        let nowhere = |device: &&str| Slot::parse(device).is_none() || self.0.get(device).is_none();
        if let Some(device) = boot.split_whitespace().find(nowhere) {
            let sentence = format!("Boot device {device:?} is invalid: no drive is attached there");
            return Err(Refusal::usage(sentence));
        }
        let mut drives = BTreeSet::new();
        if let Some(device) = self.devices().iter().find(|d| !drives.insert(d.drive)) {
            let sentence = format!("Drive {} is attached twice", device.drive);
            return Err(Refusal::usage(sentence));
        }
        for nic in 1..NICS {
            let is_named = |rest| self.0.get(&format!("nic:{nic}:{rest}")).is_some();
            if (is_named("model") || is_named("mac")) && !is_named("vlan") {
                let sentence = format!("Key \"nic:{nic}:vlan\" is missing");
                return Err(Refusal::usage(sentence));
            }
        }
        check_length(&self.0, "server")
    }

    /// All keys, as they are shown and stored.
    pub(crate) fn keys(&self) -> &Properties {
        &self.0
    }

    fn number(&self, key: &str) -> Option<u32> {
        self.0.get(key)?.parse().ok()
    }

    /// Core MHz.
    pub(crate) fn cpu_mhz(&self) -> u32 {
        self.number("cpu").unwrap_or(*CPU_MHZ.start())
    }

    /// Memory in MB.
    pub(crate) fn mem_mb(&self) -> u32 {
        self.number("mem").unwrap_or(*MEM_MB.start())
    }

    /// Number of cores: the requested number, or one for each 2000 MHz or part of it, but not more
    /// than this host has.
    pub(crate) fn cores(&self, cores_here: u32) -> u32 {
        let auto = || {
            self.cpu_mhz()
                .div_ceil(CORE_MHZ)
                .clamp(1, cores_here.clamp(1, CORES_MAX))
        };
        self.number("smp").unwrap_or_else(auto)
    }

    /// Whether the server continues to exist after it stopped.
    pub(crate) fn is_persistent(&self) -> bool {
        self.0.get("persistent").is_some()
    }

    /// The VNC password; without one, nobody gets access.
    pub(crate) fn password(&self) -> Option<&str> {
        let given = self.0.get("password");
        given.or_else(|| self.0.get("vnc:password"))
    }

    /// The static address that the server should have.
    pub(crate) fn static_address(&self) -> Option<Ipv4Addr> {
        self.0.get("nic:0:dhcp")?.parse().ok()
    }

    /// Whether the server has an address of its own.
    pub(crate) fn has_dhcp(&self) -> bool {
        self.0.get("nic:0:dhcp").is_some()
    }

    /// The attached drives, by slot.
    pub(crate) fn devices(&self) -> Vec<Device> {
        let boot = self.0.get("boot").unwrap_or_default();
        let boot: Vec<_> = boot.split_whitespace().collect();
        let device = |(key, value): (&String, &String)| {
            Some(Device {
                slot: Slot::parse(key)?,
                drive: value.parse().ok()?,
                is_cdrom: self.0.get(&format!("{key}:media")) == Some("cdrom"),
                boot_index: boot.iter().position(|device| device == key),
            })
        };
        self.0.iter().filter_map(device).collect()
    }

    /// The network cards. The first exists if any of its keys is set.
    pub(crate) fn nics(&self) -> Vec<Nic> {
        let nic = |index: u8| {
            let get = |rest: &str| self.0.get(&format!("nic:{index}:{rest}"));
            let vlan = get("vlan").and_then(|vlan| Uuid::try_parse(vlan).ok());
            let is_there = match index {
                0 => get("model").is_some() || get("dhcp").is_some(),
                _ => vlan.is_some(),
            };
            let model = MODELS
                .into_iter()
                .find(|model| Some(*model) == get("model"));
            is_there.then(|| Nic {
                index,
                model: model.unwrap_or(MODELS[0]),
                mac: get("mac").and_then(mac),
                vlan,
            })
        };
        (0..NICS).filter_map(nic).collect()
    }
}

fn put_number(
    keys: &mut Properties,
    key: &str,
    value: &str,
    range: &RangeInclusive<u32>,
) -> Result {
    let value = value.trim();
    let is_digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    let number = is_digits.then(|| value.parse::<u32>().ok()).flatten();
    match number.filter(|number| range.contains(number)) {
        Some(number) => put(keys, key, &number.to_string()),
        None => {
            let (least, most) = (range.start(), range.end());
            Err(Refusal::usage(format!(
                "Value {value:?} of {key:?} is invalid, it is a number from {least} to {most}"
            )))
        }
    }
}

/// Parses the hardware address of a single card.
fn mac(text: &str) -> Option<[u8; 6]> {
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.len() == 2)?;
        // `from_str_radix` accepts a leading plus.
        part.bytes().all(|b| b.is_ascii_hexdigit()).then_some(())?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    // The lowest bit of the first byte marks a group address.
    (parts.next().is_none() && bytes[0] & 1 == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use openhosting_base::wire::ErrorType;
    use openhosting_base::wire::Format;

    const DRIVE: &str = "08c92dd5-70a0-4f51-83d2-835919d254df";
    const OTHER: &str = "853bb98a-4fff-4c2f-a265-97c363f19ea5";

    fn body(text: &str) -> Properties {
        let text = text.replace("DRIVE", DRIVE).replace("OTHER", OTHER);
        Properties::parse(Format::Text, text.as_bytes()).unwrap()
    }

    fn create(text: &str) -> Result<Settings> {
        Settings::create(&body(&format!("cpu 2000\nmem 1024\n{text}")))
    }

    #[test]
    fn keys_of_the_first_generation_are_translated_to_the_second() {
        let first = create("vnc:ip auto\nvnc:password secret\nsmp auto\nnic:0:dhcp auto").unwrap();
        assert_eq!(first.keys().get("vnc"), Some("auto"));
        assert_eq!(first.keys().get("vnc:ip"), None);
        // The password is under the name that the client uses.
        assert_eq!(first.keys().get("vnc:password"), Some("secret"));
        assert_eq!(first.password(), Some("secret"));
        let second = create("vnc auto\npassword secret").unwrap();
        assert_eq!(second.password(), Some("secret"));
        assert!(!format!("{first:?}{second:?}").contains("secret"));
        let mut changed = first.clone();
        changed.merge(&body("password other")).unwrap();
        assert_eq!(changed.password(), Some("other"));
        assert_eq!(changed.keys().get("vnc:password"), None);
    }

    #[test]
    fn stored_settings_equal_the_given_ones() {
        let settings = create(
            "name n\npersistent true\nide:0:0 DRIVE\nide:0:0:media cdrom\nboot ide:0:0\nnic:0:dhcp 127.70.0.1\nuser:a b\npassword 12345678\ntags a b",
        )
        .unwrap();
        let stored = Settings::from_stored(settings.keys());
        assert_eq!(stored.as_ref(), Some(&settings));
        let mut bad = settings.keys().clone();
        set(&mut bad, "cpu", "x");
        assert_eq!(Settings::from_stored(&bad), None);
    }

    #[test]
    fn drives_are_attached_where_the_keys_say() {
        let settings =
            create("ide:0:1 DRIVE\nscsi:0:7 OTHER\nscsi:0:7:media cdrom\nboot scsi:0:7 ide:0:1")
                .unwrap();
        let [ide, scsi] = settings.devices().try_into().unwrap();
        assert_eq!((ide.slot, ide.boot_index), (Slot::Ide(0, 1), Some(1)));
        assert_eq!((scsi.slot, scsi.boot_index), (Slot::Scsi(7), Some(0)));
        assert!(scsi.is_cdrom && !ide.is_cdrom);
        for key in ["ide:1:0", "scsi:0:0", "block:7", "ata:0:5"] {
            assert_eq!(Slot::parse(key).unwrap().to_string(), key);
        }
        for key in [
            "ide:2:0",
            "ide:0:2",
            "ide:0",
            "scsi:1:0",
            "scsi:0:8",
            "block:0:1",
            "block:8",
            "block:",
            "ata:0:6",
            "ide:0:0:media",
            "ide:+1:0",
            "ide:00:0",
            "usb:0",
        ] {
            assert_eq!(Slot::parse(key), None, "{key}");
        }
    }

    #[test]
    fn a_network_card_exists_if_a_key_mentions_it() {
        assert!(create("").unwrap().nics().is_empty());
        let settings = create(&format!(
            "nic:0:model virtio\nnic:0:dhcp auto\nnic:2:vlan {OTHER}\nnic:2:mac 6a:cc:d6:a2:8e:e3"
        ))
        .unwrap();
        let [first, second] = settings.nics().try_into().unwrap();
        assert_eq!((first.index, first.model, first.vlan), (0, "virtio", None));
        assert_eq!((second.index, second.model), (2, "e1000"));
        assert_eq!(second.mac, Some([0x6a, 0xcc, 0xd6, 0xa2, 0x8e, 0xe3]));
        assert_eq!(second.vlan, Uuid::try_parse(OTHER).ok());
        assert_eq!(create("nic:0:dhcp auto").unwrap().nics()[0].model, "e1000");
        assert!(create("nic:0:dhcp 0").unwrap().nics().is_empty());
    }

    #[test]
    fn auto_gives_one_core_for_each_2000_mhz_up_to_those_of_the_machine() {
        assert_eq!(create("").unwrap().cores(8), 1);
        assert_eq!(create("cpu 2001").unwrap().cores(8), 2);
        assert_eq!(create("cpu 20000").unwrap().cores(4), 4);
        assert_eq!(create("smp 6").unwrap().cores(4), 6);
    }

    #[test]
    fn bad_values_are_refused() {
        for text in [
            "cpu 0",
            "cpu fast",
            "cpu +500",
            "mem 8",
            "mem 1G",
            "smp 0",
            "smp 65",
            "smp many",
            "persistent maybe",
            "vnc on",
            "vnc:ip 1.2.3.4",
            "password 123456789",
            "password a\u{e9}",
            "vnc:tls on",
            "type container",
            "fs:0 x",
            "sever x",
            "ide:0:0 nosuch",
            "ide:0:0:media cdrom",
            "ide:0:0 DRIVE\nide:0:0:media floppy",
            "boot ide:0:0",
            "ide:0:0 DRIVE\nboot ide:0:0 ide:0:1",
            "boot network",
            "ide:0:0 DRIVE\nide:0:1 DRIVE",
            "block:0:1 DRIVE",
            "nic:0:model ne2k",
            "nic:0:dhcp here",
            "nic:0:vlan OTHER",
            "nic:1:vlan x",
            "nic:1:model e1000",
            "nic:1:dhcp auto",
            "nic:4:vlan OTHER",
            "nic:01:vlan OTHER",
            "nic:x:model e1000",
            "nic:1:vlan OTHER\nnic:1:mac 6b:cc:d6:a2:8e:e3",
            "nic:0:mac 6a:cc:d6:a2:8e:e3",
            "nic:0:firewall:policy maybe",
            "user: x",
            "name a\u{7}b",
            "status active",
        ] {
            let refusal = create(text).unwrap_err();
            assert_eq!(refusal.error(), ErrorType::Usage, "{text}");
        }
        for missing in ["cpu 2000", "mem 64", ""] {
            assert!(Settings::create(&body(missing)).is_err(), "{missing}");
        }
    }

    #[test]
    fn an_active_server_accepts_few_keys_and_unchanged_values() {
        let old = create("name a\nide:0:0 DRIVE\nboot ide:0:0\nuser:x y").unwrap();
        let merge = |text: &str| {
            let mut settings = old.clone();
            settings.merge_active(&body(text)).map(|()| settings)
        };
        let new = merge(
            "name b\ncpu 500\npersistent true\ntags t\nuser:x\nuser:z 1\npassword p\nmem 1024\nboot ide:0:0",
        )
        .unwrap();
        assert_eq!(new.keys().get("name"), Some("b"));
        assert_eq!(new.keys().get("user:x"), None);
        assert!(new.is_persistent());
        for text in [
            "mem 512",
            "ide:0:0",
            "ide:0:1 OTHER",
            "smp 2",
            "boot",
            "vnc auto",
        ] {
            let refusal = merge(text).unwrap_err();
            assert_eq!(refusal.error(), ErrorType::Busy, "{text}");
        }
        assert_eq!(merge("cpu 0").unwrap_err().error(), ErrorType::Usage);
    }

    #[test]
    fn an_empty_value_unsets() {
        let mut settings =
            create("ide:0:0 DRIVE\nide:0:0:media disk\npersistent true\nvnc auto").unwrap();
        settings
            .merge(&body("ide:0:0\npersistent\nvnc:ip\nsmp"))
            .unwrap();
        assert!(settings.devices().is_empty() && !settings.is_persistent());
        assert_eq!(settings.keys(), create("").unwrap().keys());
    }
}
