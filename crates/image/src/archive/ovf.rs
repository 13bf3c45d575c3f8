//! What an OVF (DMTF DSP0243, 1.x and 2.x, and VMware's 0.9 before it) states about disks: the
//! files of the appliance, which of them are disks, and which disk the machine boots.

use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE};
use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};

/// Maximum nesting of elements; descriptions of machines have about a dozen levels.
const DEPTH_MAX: usize = 64;
/// Maximum number of files, of disks, and of devices, which bounds the time for finding one by its
/// id. Appliances have a few.
const FILES_MAX: usize = 1000;
/// The declaration of a document (`<?xml ...?>`) has to end within this many bytes to be found;
/// actual ones have about 40. Without one, the encoding is UTF-8.
const DECLARATION_BYTES: usize = 256;

/// The relevant content of a description.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Description {
    files: Vec<File>,
    disks: Vec<Disk>,
    /// Devices of the machine that may be disks.
    devices: Vec<Device>,
    /// Number of machines.
    machines: usize,
    /// The devices in VMware's boot order, the first one first.
    boot_order: Vec<String>,
}

/// A file of the appliance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct File {
    id: String,
    /// Its name as written in the description.
    pub(super) reference: String,
    /// Its compression, if stated.
    pub(super) compression: Option<String>,
    /// Bytes of each piece, if it is stored in several.
    pub(super) piece_bytes: Option<String>,
    /// Its size in bytes, if stated.
    pub(super) size: Option<u64>,
    /// Whether it only holds differences from another disk.
    pub(super) has_parent: bool,
}

/// A disk of the machine.
#[derive(Debug, Default, PartialEq, Eq)]
struct Disk {
    id: String,
    /// The file that holds it; `None` for an empty disk.
    file: Option<String>,
    has_parent: bool,
}

/// A device of the machine.
#[derive(Debug, Default, PartialEq, Eq)]
struct Device {
    id: String,
    /// The controller that it is attached to; its address there follows.
    parent: String,
    address: Option<u64>,
    /// The disk in it.
    disk: Option<String>,
}

/// Decodes a document in the encoding that its first bytes declare. Invalid bytes become
/// replacement characters, which no name of a file contains.
///
/// # Errors
/// The name of the encoding, if it is unknown.
pub(super) fn decoded(bytes: &[u8]) -> Result<String, String> {
    let (encoding, mark) = match Encoding::for_bom(bytes) {
        Some(marked) => marked,
        None => (declared(bytes)?, 0),
    };
    let bytes = bytes.get(mark..).unwrap_or_default();
    let (text, _) = encoding.decode_without_bom_handling(bytes);
    Ok(text.into_owned())
}

/// The declared encoding of a document without a byte order mark.
fn declared(bytes: &[u8]) -> Result<&'static Encoding, String> {
    if bytes.starts_with(b"<\0") {
        return Ok(UTF_16LE);
    }
    if bytes.starts_with(b"\0<") {
        return Ok(UTF_16BE);
    }
    let head = &bytes[..bytes.len().min(DECLARATION_BYTES)];
    let head = String::from_utf8_lossy(head);
    let declaration = head.trim_start().strip_prefix("<?xml");
    let declaration = declaration.and_then(|rest| rest.split_once("?>"));
    let Some((_, rest)) = declaration.and_then(|(text, _)| text.split_once("encoding")) else {
        return Ok(UTF_8);
    };
    let rest = rest.trim_start().strip_prefix('=').unwrap_or_default();
    let name = rest.trim().split(['"', '\'']).nth(1).unwrap_or_default();
    match Encoding::for_label_no_replacement(name.as_bytes()) {
        // The declaration was readable, so it cannot be UTF-16.
        Some(encoding) if encoding == UTF_16LE || encoding == UTF_16BE => Ok(UTF_8),
        Some(encoding) => Ok(encoding),
        None => Err(format!("its encoding {name:?} is unknown here")),
    }
}

impl Description {
    /// Parses a description; the error says why it is invalid. Entities are not expanded, and a
    /// document that defines its own is refused.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        // Elements that are open.
        let mut open: Vec<String> = Vec::new();
        let mut description = Self::default();
        let mut has_root = false;
        let mut reader = Reader::from_str(text.trim_start_matches('\u{feff}'));
        loop {
            let (element, is_empty) = match reader.read_event().map_err(shown)? {
                Event::Start(element) => (element, false),
                Event::Empty(element) => (element, true),
                Event::End(_) => {
                    open.pop();
                    continue;
                }
                Event::Text(text) => {
                    if let [.., parent, name] = open.as_slice() {
                        description.take_text(parent, name, text.trim());
                    }
                    continue;
                }
                Event::DocType(_) => return Err("it defines a type of document".into()),
                Event::Eof if !open.is_empty() => return Err("it ends in the middle".into()),
                Event::Eof if !has_root => return Err("it is empty".into()),
                Event::Eof => return Ok(description),
                _ => continue,
            };
            let name = element.local_name().into_inner();
            if open.is_empty() && (has_root || name != "Envelope") {
                return Err(format!("it is {name:?}, not one Envelope"));
            }
            has_root = true;
            description.take_element(open.last().map(String::as_str), name, &element)?;
            let most = description.files.len().max(description.disks.len());
            if most.max(description.devices.len()) > FILES_MAX {
                return Err(format!("it lists more than {FILES_MAX} files or disks"));
            }
            if !is_empty {
                if open.len() == DEPTH_MAX {
                    return Err(format!("its elements are more than {DEPTH_MAX} deep"));
                }
                open.push(name.to_owned());
            }
        }
    }

    fn take_element(
        &mut self,
        parent: Option<&str>,
        name: &str,
        element: &BytesStart<'_>,
    ) -> Result<(), String> {
        match (parent, name) {
            (Some("References"), "File") => self.files.push(File::of(element)?),
            (Some("DiskSection" | "Section"), "Disk") => self.disks.push(Disk::of(element)?),
            (_, "Item" | "StorageItem") => self.devices.push(Device::default()),
            (_, "VirtualHardwareSection") => self.machines += 1,
            (_, "BootOrderSection") => {
                let attributes = attributes(element)?;
                let value = |name| attributes.iter().find(|(key, _)| key == name);
                if value("type").is_some_and(|(_, kind)| kind == "disk")
                    && let Some((_, devices)) = value("instanceId")
                {
                    let devices = devices.split_whitespace().take(FILES_MAX);
                    self.boot_order.extend(devices.map(str::to_owned));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Stores the text of an element that belongs to a device.
    fn take_text(&mut self, parent: &str, name: &str, text: &str) {
        if !matches!(parent, "Item" | "StorageItem") || text.is_empty() {
            return;
        }
        let Some(device) = self.devices.last_mut() else {
            return;
        };
        match name {
            "InstanceID" | "InstanceId" => text.clone_into(&mut device.id),
            "Parent" => text.clone_into(&mut device.parent),
            "AddressOnParent" => device.address = text.parse().ok(),
            // ovf:/disk/ID, or /disk/ID before the standard.
            "HostResource" => {
                let disk = text.rsplit_once("/disk/");
                device.disk = disk.map(|(_, disk)| disk.to_owned());
            }
            _ => {}
        }
    }

    /// The files of disks: the boot disk first, if the description states it, and then the others
    /// in their order. The error says why a file is missing.
    pub(super) fn disks(&self) -> Result<Vec<File>, String> {
        let mut disks: Vec<&Disk> = self.disks.iter().collect();
        if let Some(boot) = self.boot_disk() {
            // The sort is stable, so the others stay in their order.
            disks.sort_by_key(|disk| disk.id != boot);
        }
        let mut files: Vec<File> = Vec::new();
        for disk in disks {
            let Some(id) = &disk.file else {
                continue;
            };
            let file = self.files.iter().find(|file| file.id == *id);
            let file = file.ok_or_else(|| format!("it does not list the file {id:?}"))?;
            match files.iter_mut().find(|other| other.id == *id) {
                Some(other) => other.has_parent |= disk.has_parent,
                None => files.push(File {
                    has_parent: disk.has_parent,
                    ..file.clone()
                }),
            }
        }
        Ok(files)
    }

    /// The boot disk: the first in the boot order, or, if all disks are attached to one controller,
    /// the one with the lowest address. With several controllers or machines, the description does
    /// not decide.
    fn boot_disk(&self) -> Option<&str> {
        if self.machines > 1 {
            return None;
        }
        let holds_data = |device: &&Device| {
            let mut disks = self.disks.iter().filter(|disk| disk.file.is_some());
            disks.any(|disk| device.disk.as_ref() == Some(&disk.id))
        };
        let devices: Vec<&Device> = self.devices.iter().filter(holds_data).collect();
        let ordered = self.boot_order.iter();
        let ordered = ordered.filter_map(|id| devices.iter().find(|device| device.id == *id));
        if let Some(first) = ordered.clone().next() {
            return first.disk.as_deref();
        }
        let is_one = devices
            .iter()
            .all(|device| device.parent == devices[0].parent);
        let has_addresses = devices.iter().all(|device| device.address.is_some());
        let first = devices.iter().min_by_key(|device| device.address)?;
        (is_one && has_addresses).then_some(first.disk.as_deref())?
    }
}

impl File {
    fn of(element: &BytesStart<'_>) -> Result<Self, String> {
        let mut file = Self::default();
        for (name, value) in attributes(element)? {
            match name.as_str() {
                "id" => file.id = value,
                "href" => file.reference = value,
                "size" => file.size = value.parse().ok(),
                "compression" if value != "identity" && !value.is_empty() => {
                    file.compression = Some(value);
                }
                "chunkSize" => file.piece_bytes = Some(value),
                _ => {}
            }
        }
        Ok(file)
    }
}

impl Disk {
    fn of(element: &BytesStart<'_>) -> Result<Self, String> {
        let mut disk = Self::default();
        for (name, value) in attributes(element)? {
            match name.as_str() {
                "diskId" => disk.id = value,
                "fileRef" if !value.is_empty() => disk.file = Some(value),
                "parentRef" => disk.has_parent = true,
                _ => {}
            }
        }
        Ok(disk)
    }
}

/// The attributes of an element, without their prefixes.
fn attributes(element: &BytesStart<'_>) -> Result<Vec<(String, String)>, String> {
    let mut attributes = Vec::new();
    // The check for duplicates is off: its time is quadratic in the number of attributes.
    for attribute in element.attributes().with_checks(false) {
        let attribute = attribute.map_err(shown)?;
        let value = attribute
            .normalized_value(XmlVersion::Implicit1_0)
            .map_err(shown)?;
        let name = attribute.key.local_name().into_inner().to_owned();
        attributes.push((name, value.into_owned()));
    }
    Ok(attributes)
}

/// The text of an error, without characters that would act on a terminal.
fn shown(error: impl std::fmt::Display) -> String {
    let text = error.to_string();
    text.escape_debug().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_read_in_the_encoding_that_it_declares() {
        let text = |name: &str| format!("<?xml version=\"1.0\" encoding='{name}' ?><a b=\"für\"/>");
        let utf16 = |text: &str, bytes: fn(u16) -> [u8; 2]| {
            let units = text.encode_utf16();
            units.flat_map(bytes).collect::<Vec<u8>>()
        };
        let latin1 = |name: &str| {
            let text = text(name);
            text.chars().map(|c| c as u8).collect::<Vec<u8>>()
        };
        for bytes in [
            text("UTF-8").into_bytes(),
            format!("\u{feff}{}", text("utf-8")).into_bytes(),
            latin1("ISO-8859-1"),
            latin1("windows-1252"),
            utf16(&text("UTF-16"), u16::to_le_bytes),
            utf16(&text("UTF-16"), u16::to_be_bytes),
            utf16(&format!("\u{feff}{}", text("UTF-16")), u16::to_le_bytes),
            utf16(&format!("\u{feff}{}", text("UTF-16")), u16::to_be_bytes),
            "<a b=\"für\"/>".into(),
        ] {
            let decoded = decoded(&bytes).unwrap();
            assert!(decoded.ends_with("<a b=\"für\"/>"), "{decoded}");
        }
        assert!(decoded(&latin1("UTF-8")).unwrap().contains("f\u{fffd}r"));
        assert!(
            decoded(&latin1("klingon"))
                .unwrap_err()
                .contains("\"klingon\"")
        );
        assert_eq!(decoded(b""), Ok(String::new()));
    }

    /// The names of the disk files of a machine with these devices.
    fn disks(devices: &str) -> Vec<String> {
        let file = |id: &str| format!("<File ovf:id=\"f{id}\" ovf:href=\"{id}.vmdk\"/>");
        let disk = |id: &str| format!("<Disk ovf:diskId=\"d{id}\" ovf:fileRef=\"f{id}\"/>");
        let text = format!(
            "<Envelope xmlns:ovf=\"o\"><References>{}{}</References><DiskSection>\
             <Disk ovf:diskId=\"empty\"/>{}{}</DiskSection><VirtualSystem>{devices}\
             </VirtualSystem></Envelope>",
            file("a"),
            file("b"),
            disk("a"),
            disk("b"),
        );
        let disks = Description::parse(&text).unwrap().disks().unwrap();
        disks.into_iter().map(|file| file.reference).collect()
    }

    fn device(id: &str, parent: &str, address: &str, disk: &str) -> String {
        format!(
            "<Item><rasd:AddressOnParent>{address}</rasd:AddressOnParent>\
             <rasd:HostResource>{disk}</rasd:HostResource>\
             <rasd:InstanceID>{id}</rasd:InstanceID><rasd:Parent> {parent} </rasd:Parent></Item>"
        )
    }

    #[test]
    fn the_boot_disk_is_chosen_by_the_description() {
        let machine = |items: &[String]| {
            let items = items.concat();
            format!("<VirtualHardwareSection>{items}</VirtualHardwareSection>")
        };
        let (order, swapped) = (["a.vmdk", "b.vmdk"], ["b.vmdk", "a.vmdk"]);
        let one = [
            device("7", "3", "10", "ovf:/disk/da"),
            device("8", "3", "9", "/disk/db"),
            device("9", "3", "0", "ovf:/disk/empty"),
            device("10", "4", "0", "ovf:/file/fa"),
        ];
        assert_eq!(disks(""), order);
        assert_eq!(disks(&machine(&one)), swapped);
        let boots = |kind, ids| {
            let section = "<Info>Boot order</Info></vmw:BootOrderSection>";
            let start =
                format!("<vmw:BootOrderSection vmw:type=\"{kind}\" vmw:instanceId=\"{ids}\">");
            format!("{}{start}{section}", machine(&one))
        };
        assert_eq!(disks(&boots("disk", "99 7 8")), order);
        assert_eq!(disks(&boots("cdrom", "7")), swapped);
        // Two controllers, an address that is missing, and two machines.
        let several = [
            device("7", "3", "1", "ovf:/disk/da"),
            device("8", "4", "0", "ovf:/disk/db"),
        ];
        assert_eq!(disks(&machine(&several)), order);
        let unknown = [
            device("7", "3", "1", "ovf:/disk/da"),
            device("8", "3", "x", "ovf:/disk/db"),
        ];
        assert_eq!(disks(&machine(&unknown)), order);
        assert_eq!(disks(&[machine(&one), machine(&[])].concat()), order);
    }
}
