//! Names that PostgreSQL gives to constants in sub-selects, left out where nobody can refer to them.
//!
//! `SELECT 'a'` is stored without a name and printed as `SELECT 'a'::text`; parsed again it is called `text`, and printed with
//! ` AS text`. Invariants: only such a name is left out, of a constant with a cast, in a sub-select that is a value (of EXISTS, IN, ANY,
//! ARRAY, or by itself) and that sorts, groups and compares nothing by a name. What is in FROM or WITH, and what is not known to be a
//! value, keeps its names.

use super::{Node, is_of_type_name};

/// Whether somebody may refer to the columns of a query that stands here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Names {
    Seen,
    Hidden,
}

/// The clause of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clause {
    List,
    From,
    Other,
}

pub(super) fn without_derived<'t>(nodes: &[Node<'t>]) -> Vec<Node<'t>> {
    query(nodes, Names::Seen, Clause::Other)
}

/// `names`: of a query that these nodes are; `clause`: in which they stand.
fn query<'t>(nodes: &[Node<'t>], names: Names, clause: Clause) -> Vec<Node<'t>> {
    let refers = nodes.iter().any(|n| matches!(n, Node::Plain(b"ORDER" | b"GROUP" | b"WINDOW" | b"DISTINCT")));
    let names = if refers { Names::Seen } else { names };
    let (mut out, mut clause, mut before) = (vec![], clause, Before::default());
    let mut rest = nodes;
    while let Some((node, after)) = rest.split_first() {
        rest = after;
        match node {
            Node::Group(open, inner) => {
                let within = if clause == Clause::From && before.last != Some(b"ON".as_slice()) {
                    (Names::Seen, Clause::From)
                } else {
                    (before.names_of_group(names, clause), Clause::Other)
                };
                out.push(Node::Group(*open, query(inner, within.0, within.1)));
            }
            Node::Plain(text) => {
                out.push(node.clone());
                clause = clause_after(text).unwrap_or(clause);
                let starts = *text == b"::" && names == Names::Hidden && clause == Clause::List && before.is_item();
                if let Some((of_type, more)) = starts.then(|| derived_name(rest)).flatten() {
                    out.extend_from_slice(of_type);
                    rest = more;
                }
            }
        }
        before.push(node);
    }
    out
}

/// What stands before a node, white space left out.
#[derive(Default)]
struct Before<'t> {
    last: Option<&'t [u8]>,
    last_but_one: Option<&'t [u8]>,
    last_but_two: Option<&'t [u8]>,
    is_white: bool,
    any: bool,
}

/// Stands for a group.
const GROUP: &[u8] = b"()";

impl<'t> Before<'t> {
    fn push(&mut self, node: &Node<'t>) {
        let text = match node {
            Node::Plain(text) => *text,
            Node::Group(..) => GROUP,
        };
        self.is_white = text.iter().all(u8::is_ascii_whitespace);
        if !self.is_white {
            self.any = true;
            self.last_but_two = self.last_but_one;
            self.last_but_one = self.last;
            self.last = Some(text);
        }
    }

    /// Whether the last is a constant that begins an item of a list.
    fn is_item(&self) -> bool {
        // The cast itself is not pushed yet.
        let constant = |text: &[u8]| matches!(text, [b'\'', ..] | [b'E', b'\'', ..] | b"NULL");
        self.last.is_some_and(constant) && matches!(self.last_but_one, Some(b"SELECT" | b","))
    }

    fn names_of_group(&self, names: Names, clause: Clause) -> Names {
        let set_operation = |word: Option<&[u8]>| matches!(word, Some(b"UNION" | b"INTERSECT" | b"EXCEPT"));
        let Some(last) = self.last else { return names };
        let branch = set_operation(Some(last)) || last == b"ALL" && set_operation(self.last_but_one);
        let value = match last {
            _ if branch => return names,
            b"," => clause != Clause::From,
            b"EXISTS" | b"ARRAY" | b"ANY" | b"ALL" | b"SOME" | b"IN" | b"SELECT" | b"WHERE" | b"HAVING" | b"AND"
            | b"OR" | b"NOT" | b"ON" | b"CASE" | b"WHEN" | b"THEN" | b"ELSE" | b"LIMIT" | b"OFFSET" => true,
            [operator] => b"=<>+-*/~!@#%^&|`?".contains(operator),
            _ => false,
        };
        // What a function is called with.
        let called = !self.is_white && last.first().is_some_and(|b| b.is_ascii_lowercase());
        if value || called { Names::Hidden } else { Names::Seen }
    }
}

fn clause_after(word: &[u8]) -> Option<Clause> {
    match word {
        b"SELECT" => Some(Clause::List),
        b"FROM" => Some(Clause::From),
        b"WHERE" | b"GROUP" | b"HAVING" | b"WINDOW" | b"ORDER" | b"LIMIT" | b"OFFSET" | b"UNION" | b"INTERSECT"
        | b"EXCEPT" | b"RETURNING" => Some(Clause::Other),
        _ => None,
    }
}

/// After a cast: the type, and what follows when that is called as PostgreSQL calls it by itself, and the item ends there.
fn derived_name<'n, 't>(nodes: &'n [Node<'t>]) -> Option<(&'n [Node<'t>], &'n [Node<'t>])> {
    let at = nodes.iter().position(|node| *node == Node::Plain(b"AS"))?;
    let (of_type, rest) = (nodes.get(..at)?, nodes.get(at..)?);
    let (of_type, Node::Plain(white)) = (of_type.get(..at.checked_sub(1)?)?, of_type.last()?) else { return None };
    let [_, Node::Plain(space), Node::Plain(alias), rest @ ..] = rest else { return None };
    let spaces = [*white, *space].iter().all(|text| text.iter().all(u8::is_ascii_whitespace));
    let after = rest.iter().find(|n| !matches!(n, Node::Plain(text) if text.iter().all(u8::is_ascii_whitespace)));
    let ends = match after {
        None | Some(Node::Plain(b"," | b";")) => true,
        Some(Node::Plain(word)) => word.iter().all(u8::is_ascii_uppercase),
        Some(Node::Group(..)) => false,
    };
    (spaces && ends && called(of_type)? == *alias).then_some((of_type, rest))
}

/// The last name of a type as the parser knows it.
fn called<'t>(of_type: &[Node<'t>]) -> Option<&'t [u8]> {
    let name = match of_type {
        [name @ .., Node::Group(b'[', inner)] if inner.is_empty() => name,
        name => name,
    };
    if !name.iter().all(|node| matches!(node, Node::Plain(_)) && is_of_type_name(node)) {
        return None;
    }
    let words: Vec<&'t [u8]> =
        name.iter().filter_map(|n| if let Node::Plain(t) = n { Some(*t) } else { None }).collect();
    Some(match words.as_slice() {
        [b"integer"] => b"int4",
        [b"bigint"] => b"int8",
        [b"smallint"] => b"int2",
        [b"boolean"] => b"bool",
        [b"real"] => b"float4",
        [b"double", b" ", b"precision"] => b"float8",
        [b"character", b" ", b"varying"] => b"varchar",
        [b"character"] => b"bpchar",
        [b"bit", b" ", b"varying"] => b"varbit",
        [b"timestamp", b" ", b"with", ..] => b"timestamptz",
        [b"timestamp", b" ", b"without", ..] => b"timestamp",
        [b"time", b" ", b"with", ..] => b"timetz",
        [b"time", b" ", b"without", ..] => b"time",
        [name] | [_, b".", name] => name,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Elements, normal_form};

    fn normal_of(text: &str) -> String {
        String::from_utf8(normal_form(text.as_bytes(), Elements::Unknown)).expect("UTF-8")
    }

    /// What PostgreSQL 15 prints before a dump and after it was loaded.
    #[test]
    fn a_name_that_a_constant_has_of_its_type_is_left_out_where_nobody_sees_it() {
        for (before, after) in [
            (
                "(EXISTS ( SELECT NULL::text FROM t u WHERE (u.i = t.i)))",
                "(EXISTS ( SELECT NULL::text AS text FROM t u WHERE (u.i = t.i)))",
            ),
            (" SELECT ( SELECT 'a'::text) AS x\n   FROM t", " SELECT ( SELECT 'a'::text AS text) AS x\n   FROM t"),
            (" SELECT ARRAY( SELECT 'b'::text) AS \"array\"", " SELECT ARRAY( SELECT 'b'::text AS text) AS \"array\""),
            (
                " SELECT 1 WHERE (v IN ( SELECT 'a'::text\n UNION\n SELECT 'it''s, b'::text))",
                " SELECT 1 WHERE (v IN ( SELECT 'a'::text AS text\n UNION\n SELECT 'it''s, b'::text AS text))",
            ),
            (
                "(x <> ALL ( SELECT '-1'::integer, i, E'\\\\'::character varying, '{}'::app.\"Mood\"[] FROM t))",
                "(x <> ALL ( SELECT '-1'::integer AS int4, i, E'\\\\'::character varying AS varchar, '{}'::app.\"Mood\"[] AS \"Mood\" FROM t))",
            ),
            (
                "BEGIN ATOMIC\n SELECT (EXISTS ( SELECT 'x'::text\n            FROM t)) AS \"exists\";\nEND",
                "BEGIN ATOMIC\n SELECT (EXISTS ( SELECT 'x'::text AS text\n            FROM t)) AS \"exists\";\nEND",
            ),
            ("((i > 0) AND (v = ( SELECT 'a'::text)))", "((i > 0) AND (v = ( SELECT 'a'::text AS text)))"),
        ] {
            assert_eq!((normal_of(before), normal_of(after)), (before.to_owned(), before.to_owned()));
        }
    }

    #[test]
    fn names_that_somebody_may_refer_to_stay() {
        for text in [
            // Of the view itself, of what is in FROM or WITH, of branches of such.
            " SELECT 'a'::text AS text\n   FROM t",
            "SELECT s.text FROM ( SELECT 'a'::text AS text) s",
            "SELECT s.text FROM t, ( SELECT 'a'::text AS text) s",
            "SELECT s.text FROM (t JOIN ( SELECT 'a'::text AS text) s ON (true))",
            "SELECT s.text FROM t, LATERAL ( SELECT 'a'::text AS text) s",
            "SELECT s.text FROM (( SELECT 'a'::text AS text) UNION ( SELECT 'b'::text AS text)) s",
            " WITH x AS ( SELECT 'a'::text AS text) SELECT x.text FROM x",
            " WITH x AS MATERIALIZED ( SELECT 'a'::text AS text) SELECT x.text FROM x",
            "ON UPDATE TO t DO INSTEAD ( SELECT 'a'::text AS text)",
            // By which it sorts, groups, or takes the first.
            "(v = ( SELECT 'a'::text AS text FROM t ORDER BY text))",
            "(v = ( SELECT 'a'::text AS text FROM t GROUP BY text))",
            "(v = ( SELECT DISTINCT ON (text) 'a'::text AS text FROM t))",
            "(v = (( SELECT 'a'::text AS text) UNION ( SELECT 'b'::text AS text) ORDER BY text))",
            // Other names, and names of something else than a constant.
            "(EXISTS ( SELECT 'a'::text AS v FROM t))",
            "(EXISTS ( SELECT 'a'::text AS varchar FROM t))",
            "(EXISTS ( SELECT 'a'::character varying AS text FROM t))",
            "(EXISTS ( SELECT (i)::text AS text FROM t))",
            "(EXISTS ( SELECT i || 'a'::text AS text FROM t))",
            "(EXISTS ( SELECT 'a'::text || 'b'::text AS text FROM t))",
            "(EXISTS ( SELECT 1 FROM f('a'::text) AS text))",
        ] {
            assert_eq!(normal_of(text), text);
        }
        // A view within a value is of that kind again.
        let text =
            "(EXISTS ( SELECT 1 FROM ( SELECT 'a'::text AS text) s WHERE (s.text = ( SELECT 'b'::text AS text))))";
        let normal = "(EXISTS ( SELECT 1 FROM ( SELECT 'a'::text AS text) s WHERE (s.text = ( SELECT 'b'::text))))";
        assert_eq!(normal_of(text), normal);
    }
}
