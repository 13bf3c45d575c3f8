//! The identifiers of machines, and of the slots in which drives are attached.

use std::fmt;

use uuid::Uuid;

use openhosting_base::drive::parse_uuid;

/// Identifies a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MachineId(Uuid);

impl MachineId {
    /// A new, unique identifier.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// Parses the usual form of 36 characters, in upper or lower case.
    pub fn parse(text: &str) -> Option<Self> {
        parse_uuid(text).map(Self)
    }

    /// The hardware address of one of its network cards: the same at every start.
    pub fn mac(self, nic: u8) -> [u8; 6] {
        let [a, b, c, d, e, f, ..] = self.0.into_bytes();
        // The two lowest bits mark a unicast address that is locally administered.
        [a & 0xfc | 0x02, b, c, d, e, f ^ nic]
    }

    #[cfg(test)]
    pub(crate) fn from_u128(id: u128) -> Self {
        Self(Uuid::from_u128(id))
    }
}

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

/// The slot in which a drive is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    /// `ide:CHANNEL:UNIT`
    Ide(u8, u8),
    /// `scsi:0:UNIT`
    Scsi(u8),
    /// `block:UNIT`, a virtio disk
    Block(u8),
    /// `ata:0:UNIT`
    Ata(u8),
}

impl Slot {
    /// The slot that a key refers to.
    pub fn parse(key: &str) -> Option<Self> {
        let (bus, place) = key.split_once(':')?;
        let digit = |text: &str, at_most: u8| match text.as_bytes() {
            [digit @ b'0'..=b'9'] if digit - b'0' <= at_most => Some(digit - b'0'),
            _ => None,
        };
        match (bus, place.split_once(':')) {
            ("ide", Some((channel, unit))) => Some(Self::Ide(digit(channel, 1)?, digit(unit, 1)?)),
            ("scsi", Some(("0", unit))) => Some(Self::Scsi(digit(unit, 7)?)),
            ("ata", Some(("0", unit))) => Some(Self::Ata(digit(unit, 5)?)),
            ("block", None) => Some(Self::Block(digit(place, 7)?)),
            _ => None,
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ide(channel, unit) => write!(f, "ide:{channel}:{unit}"),
            Self::Scsi(unit) => write!(f, "scsi:0:{unit}"),
            Self::Block(unit) => write!(f, "block:{unit}"),
            Self::Ata(unit) => write!(f, "ata:0:{unit}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_network_card_has_its_own_address() {
        let id = MachineId::random();
        assert_eq!(id.mac(0), id.mac(0));
        assert_ne!(id.mac(0), id.mac(1));
        assert_eq!(id.mac(0)[0] & 3, 2);
    }
}
