//! `verify --repair` with the data directory: unchanged pages make a damaged pack whole, changed ones do not.

use std::fs;
use std::path::Path;

use crate::site::Site;

/// Damages the pack at each of these places in turn; returns at how many of them it was made whole again.
fn repaired_at(site: &Site, pack: &Path, per_mille: &[usize]) -> usize {
    let whole = fs::read(pack).expect("a pack");
    let mut count = 0;
    for place in per_mille {
        let mut damaged = whole.clone();
        let at = (damaged.len() - 1) * place / 1000;
        damaged[at] ^= 16;
        fs::write(pack, &damaged).expect("damage");
        site.elsewhere.run(["verify"]).expect_code(20);
        let outcome = site.pgark.run(["verify", "--repair", "--json"]);
        let now = fs::read(pack).expect("a pack");
        match outcome.code {
            Some(0) => {
                assert!(now == whole, "at {place}: other bytes than were written");
                assert_eq!(site.elsewhere.json(["verify"])["ok"], true);
                count += 1;
            }
            Some(20) => assert!(now == damaged, "at {place}: what could not be made whole was touched"),
            _ => panic!("{outcome}"),
        }
        fs::write(pack, &whole).expect("undo");
    }
    count
}

#[test]
fn unchanged_pages_of_the_cluster_make_a_damaged_pack_whole() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "rebuild");
    site.cluster.psql("create table t as select g, md5(g::text) || md5((-g)::text) m from generate_series(1, 60000) g");
    site.cluster.psql("vacuum freeze t");
    site.cluster.psql("checkpoint");
    let full = site.pgark.backup("full");
    let pack = site.elsewhere.repo().join(format!("clusters/main/backups/{full}/packs/000001"));
    let places = [5, 150, 300, 450, 600, 750, 900, 999, 1000];
    let before = repaired_at(&site, &pack, &places);
    assert!(before >= places.len() - 2, "{before} of {}", places.len());

    // The header is what the keys follow from, and a lost pack has none.
    let whole = fs::read(&pack).expect("a pack");
    let mut beheaded = whole.clone();
    beheaded[20] ^= 1;
    fs::write(&pack, &beheaded).expect("damage");
    let outcome = site.pgark.run(["verify", "--repair"]);
    assert_eq!(outcome.code, Some(20), "{outcome}");
    assert!(outcome.stderr.contains("could not be repaired"), "{outcome}");
    assert!(fs::read(&pack).expect("a pack") == beheaded);
    // Cut in the middle, all that is missing is in the cluster.
    fs::write(&pack, &whole[..whole.len() / 2]).expect("damage");
    site.elsewhere.run(["verify"]).expect_code(20);
    let cut = site.pgark.run(["verify", "--repair"]);
    assert!(matches!(cut.code, Some(0 | 20)), "{cut}");
    fs::write(&pack, &whole).expect("undo");

    // Sealed anew under the next key, it is made whole in that seal.
    for words in [&["rotate"][..], &["reencrypt", "--grace", "0s"], &["retire", "--grace", "0s"]] {
        site.elsewhere.run([&["key"][..], words, &["--yes"]].concat()).expect_code(0);
    }
    assert!(!pack.exists());
    let pack = pack.with_file_name("000001.g2");
    assert_eq!(repaired_at(&site, &pack, &[300, 600]), 2);

    site.cluster.psql("update t set m = reverse(m)");
    site.cluster.psql("vacuum full");
    site.cluster.psql("checkpoint");
    let after = repaired_at(&site, &pack, &places);
    assert!(after < before, "{after} and {before}: changed pages cannot help");
    // The last damage was undone behind its back.
    assert_eq!(site.elsewhere.json(["verify"])["ok"], true);
    site.ledger.write_rows(&site.cluster, 1);
    let latest = site.archive_all();
    site.assert_restores("r", &latest, 1, &[]);
}
