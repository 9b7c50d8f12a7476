//! A foreign key as `pg_dump` writes it (pg_dump.c: dumpConstraint; ruleutils.c: pg_get_constraintdef_worker).
//!
//! Invariant: what is not exactly of this form is not understood, rather than half.

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignKey {
    pub name: String,
    /// From `FOREIGN KEY` on.
    pub definition: String,
    pub columns: Vec<String>,
    pub refers_to_schema: String,
    pub refers_to_table: String,
    pub refers_to_columns: Vec<String>,
}

impl ForeignKey {
    /// Of the statement that adds it to its table. None: another form, such as one of a period of time.
    pub fn parse(statement: &str) -> Option<Self> {
        let mut rest = statement.strip_prefix("ALTER TABLE ")?;
        rest = rest.strip_prefix("ONLY ").unwrap_or(rest);
        qualified(&mut rest)?;
        skip(&mut rest, "\n    ADD CONSTRAINT ")?;
        let name = identifier(&mut rest)?;
        skip(&mut rest, " ")?;
        let definition = rest.trim_end().strip_suffix(';')?.to_owned();
        skip(&mut rest, "FOREIGN KEY ")?;
        let columns = identifiers(&mut rest)?;
        skip(&mut rest, " REFERENCES ")?;
        let (refers_to_schema, refers_to_table) = qualified(&mut rest)?;
        let refers_to_columns = identifiers(&mut rest)?;
        (columns.len() == refers_to_columns.len()).then_some(Self {
            name,
            definition,
            columns,
            refers_to_schema,
            refers_to_table,
            refers_to_columns,
        })
    }
}

fn skip(rest: &mut &str, what: &str) -> Option<()> {
    *rest = rest.strip_prefix(what)?;
    Some(())
}

fn qualified(rest: &mut &str) -> Option<(String, String)> {
    let schema = identifier(rest)?;
    skip(rest, ".")?;
    Some((schema, identifier(rest)?))
}

/// In parentheses.
fn identifiers(rest: &mut &str) -> Option<Vec<String>> {
    skip(rest, "(")?;
    let mut all = vec![identifier(rest)?];
    while skip(rest, ", ").is_some() {
        all.push(identifier(rest)?);
    }
    skip(rest, ")")?;
    Some(all)
}

/// As `quote_identifier` writes it.
fn identifier(rest: &mut &str) -> Option<String> {
    if skip(rest, "\"").is_none() {
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let end = rest.find(|c: char| !is_plain(c)).unwrap_or(rest.len());
        let (name, behind) = rest.split_at_checked(end)?;
        *rest = behind;
        return (!name.is_empty()).then(|| name.to_owned());
    }
    let mut name = String::new();
    loop {
        let (part, behind) = rest.split_once('"')?;
        name.push_str(part);
        *rest = behind;
        if skip(rest, "\"").is_none() {
            return (!name.is_empty()).then_some(name);
        }
        name.push('"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_pg_dump_writes_is_read_whatever_names_are_made_of() {
        let statement = "ALTER TABLE ONLY public.orders\n    ADD CONSTRAINT orders_cust_fkey FOREIGN KEY (cust_id) \
                         REFERENCES public.customers(id) ON DELETE CASCADE;\n";
        let key = ForeignKey::parse(statement).expect("understood");
        assert_eq!(
            (key.name.as_str(), key.columns.as_slice()),
            ("orders_cust_fkey", ["cust_id".to_owned()].as_slice())
        );
        assert_eq!((key.refers_to_schema.as_str(), key.refers_to_table.as_str()), ("public", "customers"));
        assert_eq!(key.definition, "FOREIGN KEY (cust_id) REFERENCES public.customers(id) ON DELETE CASCADE");
        let odd = "ALTER TABLE \"a.b\".\"it\"\"s (1)\"\n    ADD CONSTRAINT \"x FOREIGN KEY (\" FOREIGN KEY (a, \"B,\"\"\") \
                   REFERENCES \"S\".t(c, \"é)\");\n";
        let key = ForeignKey::parse(odd).expect("understood");
        assert_eq!(key.name, "x FOREIGN KEY (");
        assert_eq!((key.columns[1].as_str(), key.refers_to_columns[1].as_str()), ("B,\"", "é)"));
        assert_eq!((key.refers_to_schema.as_str(), key.refers_to_table.as_str()), ("S", "t"));
    }

    #[test]
    fn another_form_is_not_half_understood() {
        let of = |definition: &str| {
            ForeignKey::parse(&format!("ALTER TABLE ONLY public.a\n    ADD CONSTRAINT k {definition};\n"))
        };
        assert!(of("FOREIGN KEY (a) REFERENCES public.b(c)").is_some());
        for other in [
            "CHECK ((a > 0))",
            "FOREIGN KEY (a) REFERENCES b(c)",
            "FOREIGN KEY (a, b) REFERENCES public.b(c)",
            "FOREIGN KEY (a, PERIOD b) REFERENCES public.b(c, PERIOD d)",
            "FOREIGN KEY () REFERENCES public.b()",
            "FOREIGN KEY (\"a) REFERENCES public.b(c)",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn foreign_text_never_panics(text in "(ALTER TABLE |ONLY |a|\"|\\.|\n    ADD CONSTRAINT | |FOREIGN KEY |\\(|\\)|, |;|é){0,20}") {
            let _ = ForeignKey::parse(&text);
        }
    }
}
