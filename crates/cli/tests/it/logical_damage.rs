//! Damage in dumps: what is found once is built upon by nobody, and what is dropped was saved whole before.

use std::fs;
use std::path::PathBuf;

use pgark_testkit::Server;
use serde_json::Value;

use crate::site::Site;

struct Damaged {
    site: Site,
}

impl Damaged {
    fn new(server: &Server) -> Self {
        let site = Site::small(server, "logical-damage");
        site.cluster.psql("create database app");
        let table = "create table t as select i, md5(i::text) || md5((-i)::text) as m from generate_series(1, 30000) i";
        site.cluster.psql_db("app", table);
        // Enough of them that the list in front of a dump is taken over, too.
        let many = "do $$ begin for n in 1..600 loop execute format('create table x%s (i int primary key, t text)', n); end loop; end $$";
        site.cluster.psql_db("app", many);
        Damaged { site }
    }

    fn dump(&self, code: i32) -> Value {
        self.site.pgark.run(["backup", "--kind", "logical", "--database", "app", "--json"]).expect_code(code).json()
    }

    fn restored(&self, id: &str, to: &str, question: &str) -> String {
        self.site.pgark.run(["restore", id, "--database", "app", "--to-database", to, "-q"]).expect_code(0);
        self.site.cluster.psql_db(to, question)
    }

    fn pack(&self, id: &str) -> PathBuf {
        self.site.pgark.repo().join(format!("clusters/main/backups/{id}/packs/000001"))
    }

    fn spoil(&self, id: &str, at: impl Fn(usize) -> usize) {
        let path = self.pack(id);
        let mut bytes = fs::read(&path).expect("a pack");
        let at = at(bytes.len());
        bytes[at] ^= 8;
        fs::write(&path, bytes).expect("damage");
    }

    fn is_marked(&self, id: &str) -> bool {
        let info = self.site.pgark.json(["info"]);
        let all = info["clusters"][0]["backups"].as_array().cloned().unwrap_or_default();
        all.iter().any(|b| b["id"] == id && !b["damaged"].is_null())
    }
}

fn id_of(document: &Value) -> String {
    document["id"].as_str().unwrap_or_else(|| panic!("no id in {document}")).to_owned()
}

#[test]
fn what_a_restore_finds_damaged_is_not_built_upon_and_the_replaced_database_is_saved_whole() {
    let server = installed_or_skip!();
    let d = Damaged::new(&server);
    let good = id_of(&d.dump(0));
    d.site.cluster.psql_db("app", "update t set m = m || 'z' where i % 7 = 0");
    let newest = id_of(&d.dump(0));
    d.spoil(&newest, |len| len / 2);
    d.site.cluster.psql_db("app", "insert into t values (-7, 'only here')");
    assert!(!d.is_marked(&newest));
    let words = ["restore", "--kind", "logical", "--database", "app", "--in-place", "--yes", "--json"];
    let document = d.site.pgark.run(words).expect_code(3).json();
    assert_eq!(document["backup"], good.as_str(), "{document}");
    assert!(d.is_marked(&newest) && !d.is_marked(&good));
    let safety =
        document["safety_backup"].as_str().unwrap_or_else(|| panic!("no safety backup: {document}")).to_owned();
    let question =
        "select count(*) || ' ' || count(*) filter (where i = -7) || ' ' || count(*) filter (where m like '%z') from t";
    assert_eq!(d.restored(&safety, "saved", question), "30001 1 4285");

    // Damage that nobody has seen yet, where it is read back: it is stored anew, and that is said.
    let before = id_of(&d.dump(0));
    d.site.cluster.psql_db("app", "update t set m = m || 'y' where i % 5 = 0");
    d.spoil(&before, |_| 100);
    let told = d.dump(3);
    assert!(told["warnings"].to_string().contains("it was stored anew"), "{told}");
    assert_eq!(d.restored(&id_of(&told), "anew", "select count(*) filter (where m like '%y') from t"), "6000");
}
