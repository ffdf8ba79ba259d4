//! What is read from a header.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// A header of version 3 with an L1 table in cluster 1 and a refcount table in cluster 2.
fn sound() -> Vec<u8> {
    let mut header = vec![0; 4096];
    header[..4].copy_from_slice(&MAGIC);
    for (at, number) in [(4, 3_u32), (20, 12), (36, 1), (56, 1), (96, 4), (100, 112)] {
        header[at..at + 4].copy_from_slice(&number.to_be_bytes());
    }
    for (at, number) in [(24, 1_u64 << 20), (40, 4096), (48, 8192)] {
        header[at..at + 8].copy_from_slice(&number.to_be_bytes());
    }
    header
}

fn parsed(bytes: &[u8]) -> Result<Header, String> {
    let header = Header::parse(bytes, 3, 12)?;
    header.check_tables(3 << 12)?;
    Ok(header)
}

#[test]
fn a_name_and_extensions_are_read() {
    let mut bytes = sound();
    let format = [&0xe279_2aca_u32.to_be_bytes()[..], &5_u32.to_be_bytes(), b"qcow2\0\0\0", &[0; 8]].concat();
    bytes[112..112 + format.len()].copy_from_slice(&format);
    bytes[8..20].copy_from_slice(&[&200_u64.to_be_bytes()[..], &8_u32.to_be_bytes()].concat());
    bytes[200..208].copy_from_slice(b"base.img");
    let header = parsed(&bytes).unwrap();
    let backing = header.backing.unwrap();
    assert_eq!((backing.name.to_str(), backing.format.as_deref()), (Some("base.img"), Some("qcow2")));
    assert_eq!(backing.format_of(Path::new("top")).unwrap(), Format::Qcow2);
    let unsaid = Backing { name: "base.img".into(), format: None };
    assert_eq!(unsaid.format_of(Path::new("top")).unwrap(), Format::Raw);
    let other = Backing { name: "base.img".into(), format: Some("vmdk\u{7}".into()) };
    assert!(other.format_of(Path::new("top")).unwrap_err().to_string().contains("`vmdk?`"));
}

proptest! {
    #[test]
    fn a_header_that_is_accepted_is_within_its_limits(changes in vec((0_usize..256, any::<u8>()), 0..12), length in 0_usize..4097) {
        let mut bytes = sound();
        for (place, byte) in changes {
            bytes[place] = byte;
        }
        if let Ok(header) = parsed(&bytes[..length]) {
            let file = 3_u64 << 12;
            prop_assert!(header.l1_offset + u64::from(header.l1_entries) * 8 <= file);
            prop_assert!(header.refcount_table_offset + (u64::from(header.refcount_table_clusters) << 12) <= file);
            prop_assert!(u64::from(header.l1_entries) << 21 >= header.size);
            prop_assert!(header.refcount_bits.is_power_of_two() && header.refcount_bits <= 64);
            prop_assert!(header.backing.is_none_or(|backing| backing.name.as_os_str().len() <= LONGEST_NAME));
        }
    }
}
