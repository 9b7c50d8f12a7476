use proptest::prelude::*;

use super::writer::{Bound, Ephemeral, books_key, cluster_key, facts_key, opening_key, reader_of};
use super::*;
use crate::names::ClusterName;
use crate::store::ObjectName;

fn readers() -> Keys {
    let masters = vec![(1, Key32([7; 32])), (3, Key32([9; 32]))];
    let content = content_key(&masters[0].1);
    Keys::from_masters(Algorithm::Aes256Gcm, &masters, &content)
}

fn writer_of(keys: &Keys, cluster: &str) -> KeySet {
    let keys = WriterKeys::of(keys, &ClusterName::parse(cluster).unwrap()).unwrap();
    let keys = WriterKeys::from_bytes(&keys.to_bytes()).unwrap();
    Keys::of_writer(OpenedWriter { keys, slot_key: Key32([1; 32]), slot: "00000000".into() }).into()
}

fn name(text: &str) -> ObjectName {
    ObjectName::parse(text).unwrap()
}

const KINDS: [ObjectKind; 9] = [
    ObjectKind::Pack,
    ObjectKind::Manifest,
    ObjectKind::BackupRecord,
    ObjectKind::WalSegment,
    ObjectKind::WalSideFile,
    ObjectKind::WalHead,
    ObjectKind::Catalog,
    ObjectKind::Report,
    ObjectKind::Audit,
];

/// What one side sealed, opened by the other.
fn opens(key: &ObjectKey, sealed: &[u8]) -> Option<Vec<u8>> {
    let mut buf = sealed.to_vec();
    let n = key.open(Purpose::Block, 1, b"aad", &mut buf)?;
    buf.truncate(n);
    Some(buf)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_a_writer_seals_a_reader_opens_under_its_name_and_kind_alone(
        plain in proptest::collection::vec(any::<u8>(), 0..300),
        kind in 0usize..8,
        other_kind in 0usize..8,
        part in "[a-z]{1,20}",
        other in "[a-z]{1,20}",
        bit in 0usize..512,
    ) {
        let (kind, other_kind) = (KINDS[kind], KINDS[other_kind]);
        let (held, object) = (readers(), name(&format!("clusters/main/{part}")));
        let writer = writer_of(&held, "main");
        let reader: KeySet = held.into();
        let (header, key) = writer.new_object(kind, &object).unwrap();
        let mut sealed = plain.clone();
        key.seal(Purpose::Block, 1, b"aad", &mut sealed, 0);
        let opened = reader.open_object(&header, kind, &object).unwrap();
        prop_assert_eq!(opens(&opened, &sealed), Some(plain.clone()));
        prop_assert_eq!(opened.has_facts(), matches!(kind, ObjectKind::WalSegment | ObjectKind::Audit));
        // The writer itself opens books and nothing else.
        prop_assert_eq!(writer.open_object(&header, kind, &object).is_ok(), kind.is_books());
        prop_assert_eq!(writer.open_facts(&header, kind, &object).is_ok(), kind.has_facts());
        if other_kind != kind {
            let mut forged = header;
            forged[8] = other_kind as u8;
            prop_assert!(reader.open_object(&forged, other_kind, &object).is_err());
        }
        for place in [format!("clusters/main/{part}{other}"), format!("clusters/{other}/{part}"), part.clone()] {
            prop_assert!(place == object.as_str() || reader.open_object(&header, kind, &name(&place)).is_err());
        }
        // Any other bit of the header, and nothing is opened.
        let mut damaged = header;
        damaged[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(reader.open_object(&damaged, kind, &object).is_err(), "bit {}", bit);
        // Each object has a key of its own.
        let (second, key) = writer.new_object(kind, &object).unwrap();
        let mut again = plain.clone();
        key.seal(Purpose::Block, 1, b"aad", &mut again, 0);
        prop_assert!(second != header && again != sealed);
    }

    #[test]
    fn bytes_that_nobody_wrote_are_no_keys_of_a_writer(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(WriterKeys::from_bytes(&bytes).is_err());
    }
}

#[test]
fn facts_open_to_both_and_tell_nothing_else() {
    let (held, object) = (readers(), name("clusters/main/wal/7/x"));
    let (writer, other) = (writer_of(&held, "main"), writer_of(&held, "other"));
    let reader: KeySet = held.into();
    let (header, key) = writer.new_object(ObjectKind::WalSegment, &object).unwrap();
    let (mut facts, mut content) = (b"facts".to_vec(), b"content".to_vec());
    key.seal(Purpose::Facts, 0, b"", &mut facts, 0);
    key.seal(Purpose::Block, 1, b"", &mut content, 0);
    for keys in [&writer, &reader] {
        let key = keys.open_facts(&header, ObjectKind::WalSegment, &object).unwrap();
        assert_eq!(key.open(b"", &mut facts.clone()), Some(5));
        assert_eq!(key.open(b"", &mut content.clone()), None);
    }
    assert!(matches!(other.open_facts(&header, ObjectKind::WalSegment, &object), Err(RepoError::WriteOnly { .. })));
    // An object that was made for readers alone says nothing.
    let (header, _) = reader.new_object(ObjectKind::WalSegment, &object).unwrap();
    for keys in [&writer, &reader] {
        let outcome = keys.open_facts(&header, ObjectKind::WalSegment, &object);
        assert!(matches!(outcome, Err(RepoError::WriteOnly { .. })));
    }
}

#[test]
fn each_domain_and_each_cluster_has_keys_of_its_own() {
    let held = readers();
    let keys = |cluster: &str| WriterKeys::of(&held, &ClusterName::parse(cluster).unwrap()).unwrap();
    let mut seen = std::collections::HashSet::new();
    let mut readers = std::collections::HashSet::new();
    for cluster in ["main", "other"] {
        for generation in &keys(cluster).generations {
            for domain in Domain::ALL {
                assert!(seen.insert(generation.cluster_key(domain).0), "{cluster} {domain:?}");
                readers.extend(generation.reader(domain));
            }
        }
    }
    assert_eq!((seen.len(), readers.len()), (12, 4));
    // None of them is a key of a domain, or the private half of a public one.
    for (_, _, domain) in &held.domains {
        assert!(!seen.contains(&domain.0) && !readers.contains(&domain.0));
        assert!(!seen.contains(&reader_of(domain)));
    }
}

#[test]
fn a_public_key_with_which_everybody_agrees_is_refused() {
    let (held, object) = (readers(), name("clusters/main/x"));
    let reader: KeySet = held.into();
    let (mut header, _) = reader.new_object_in(Form::Writer, ObjectKind::Pack, &object).unwrap();
    // Points of small order: the shared secret would be zero.
    let one = {
        let mut p = [0u8; 32];
        p[0] = 1;
        p
    };
    for point in [[0u8; 32], one] {
        header[16..48].copy_from_slice(&point);
        let outcome = reader.open_object(&header, ObjectKind::Pack, &object);
        assert!(matches!(outcome, Err(RepoError::Corrupt { .. })));
    }
}

/// Computed by an implementation of its own, see docs/format.md; what was written once must be readable for good.
#[test]
fn keys_are_what_the_format_says() {
    let domain = Key32([3; 32]);
    let cluster = cluster_key(&domain, "main");
    assert_eq!(cluster, derive(&[3; 32], b"", &[b"pgark v2 cluster main"]));
    let bound = Bound { header: b"header", name: "name" };
    assert_eq!(books_key(&cluster, &bound), derive(&cluster.0, b"", &[b"pgark v2 books headername"]));
    assert_eq!(facts_key(&cluster, &bound), derive(&cluster.0, b"", &[b"pgark v2 facts headername"]));
    let ephemeral = Ephemeral::new().unwrap();
    let reader = reader_of(&domain);
    let made = ephemeral.key_for(&reader, &cluster, &bound).unwrap();
    assert!(opening_key(&domain, &ephemeral.public, &cluster, &bound) == Some(made));
}
