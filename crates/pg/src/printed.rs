//! Expressions as PostgreSQL prints them, in the form that they have after a dump was loaded.
//!
//! What `ruleutils.c` prints is not always printed the same way once it was parsed again. Three of its forms change, and each only
//! into something that means the same:
//!
//! - a cast of an array goes to its elements (`transformTypeCast`, `transformArrayExpr` in `parse_expr.c`):
//!   `(ARRAY['a'::character varying])::text[]` comes back as `ARRAY[('a'::character varying)::text]`;
//! - AND in the first place of AND, and OR of OR, are one list (`makeAndExpr`, `makeOrExpr` in `gram.y`): `((a AND b) AND c)`, which
//!   BETWEEN leaves behind, comes back as `(a AND b AND c)`;
//! - a constant without a name in a sub-select gets that of its type (`FigureColname` in `parse_target.c`): `EXISTS ( SELECT 'a'::text)`
//!   comes back as `EXISTS ( SELECT 'a'::text AS text)`. See `names`.
//!
//! Invariants: nothing else is changed, not even a space; what is not understood stays as it is. So two texts of which the
//! normal forms are equal mean the same, and texts that mean the same may still differ.

mod names;

/// Deeper expressions are left as they are.
const DEPTH_MAX: usize = 500;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Node<'t> {
    /// A word, a string, a quoted name, an operator or white space, as it stands.
    Plain(&'t [u8]),
    /// In parentheses or brackets, by the opening one.
    Group(u8, Vec<Node<'t>>),
}

/// What is known of the elements of array constructors in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elements {
    /// None of them is an array: PostgreSQL said so when it parsed the text (`ArrayExpr.multidims`).
    Scalars,
    /// Only what is seen in the text.
    Unknown,
}

/// The text in its normal form. Of bytes in any encoding that a server may have: ASCII stands for itself in all of them.
pub fn normal_form(text: &[u8], elements: Elements) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    match parse(text) {
        Some(nodes) => write(&normal(names::without_derived(&nodes), elements), &mut out),
        None => out.extend_from_slice(text),
    }
    out
}

fn parse(text: &[u8]) -> Option<Vec<Node<'_>>> {
    let mut rest = text;
    let mut open: Vec<(u8, Vec<Node<'_>>)> = vec![];
    let mut nodes = vec![];
    while let Some(first) = rest.first() {
        let (token, after) = rest.split_at(token_length(rest)?);
        rest = after;
        match first {
            b'(' | b'[' if open.len() >= DEPTH_MAX => return None,
            b'(' | b'[' => open.push((*first, std::mem::take(&mut nodes))),
            b')' | b']' => {
                let (by, before) = open.pop()?;
                if closing(by) != *first {
                    return None;
                }
                let inner = std::mem::replace(&mut nodes, before);
                nodes.push(Node::Group(by, inner));
            }
            _ => nodes.push(Node::Plain(token)),
        }
    }
    open.is_empty().then_some(nodes)
}

fn closing(open: u8) -> u8 {
    if open == b'(' { b')' } else { b']' }
}

fn token_length(text: &[u8]) -> Option<usize> {
    let run = |is: fn(u8) -> bool| text.iter().take_while(|b| is(**b)).count();
    match text {
        [b'E', b'\'', ..] => Some(1 + quoted(text.get(1..)?, true)?),
        [b'\'' | b'"', ..] => quoted(text, false),
        [b':', b':', ..] => Some(2),
        [first, ..] if is_word(*first) => Some(run(is_word)),
        [first, ..] if first.is_ascii_whitespace() => Some(run(|b| b.is_ascii_whitespace())),
        [_, ..] => Some(1),
        [] => None,
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$') || byte >= 0x80
}

/// From the quote to its other one, both included; None when that is missing.
fn quoted(text: &[u8], backslashes: bool) -> Option<usize> {
    let quote = text.first()?;
    let mut at = 1;
    loop {
        match text.get(at)? {
            b'\\' if backslashes => at += 2,
            byte if byte == quote && text.get(at + 1) == Some(quote) => at += 2,
            byte if byte == quote => return Some(at + 1),
            _ => at += 1,
        }
    }
}

fn write(nodes: &[Node<'_>], out: &mut Vec<u8>) {
    for node in nodes {
        match node {
            Node::Plain(text) => out.extend_from_slice(text),
            Node::Group(open, inner) => {
                out.push(*open);
                write(inner, out);
                out.push(closing(*open));
            }
        }
    }
}

/// From the inside out.
fn normal(nodes: Vec<Node<'_>>, known: Elements) -> Vec<Node<'_>> {
    let mut out = vec![];
    let mut rest = nodes.as_slice();
    while let Some((first, after)) = rest.split_first() {
        if let Some((elements, of_type, taken)) = cast_of_array(rest, known) {
            out.push(Node::Plain(ARRAY));
            out.push(Node::Group(b'[', cast_each(normal(elements.to_vec(), known), of_type)));
            rest = rest.get(taken..).unwrap_or_default();
            continue;
        }
        out.push(match first {
            Node::Group(open, inner) => Node::Group(*open, flat(normal(inner.clone(), known))),
            plain @ Node::Plain(_) => plain.clone(),
        });
        rest = after;
    }
    out
}

const ARRAY: &[u8] = b"ARRAY";

/// `(ARRAY[…])::type[]` at the beginning: the elements, the type of one, and how many nodes that is.
fn cast_of_array<'n, 't>(nodes: &'n [Node<'t>], known: Elements) -> Option<(&'n [Node<'t>], &'n [Node<'t>], usize)> {
    let [Node::Group(b'(', inner), Node::Plain(b"::"), of_type @ ..] = nodes else { return None };
    let [Node::Plain(ARRAY), Node::Group(b'[', elements)] = inner.as_slice() else { return None };
    let length = of_type.iter().position(|node| matches!(node, Node::Group(b'[', inner) if inner.is_empty()))?;
    let name = of_type.get(..length)?;
    let is_type = !name.is_empty() && name.iter().all(is_of_type_name);
    (is_type && (known == Elements::Scalars || are_scalars(elements))).then_some((elements, name, 2 + length + 1))
}

/// Whether each element is seen to be no array: of columns that is not seen, and a cast of an array of arrays is another one.
fn are_scalars(elements: &[Node<'_>]) -> bool {
    let white = |node: &Node<'_>| matches!(node, Node::Plain(text) if text.iter().all(u8::is_ascii_whitespace));
    elements.split(|node| *node == Node::Plain(b",")).all(|element| {
        let from = element.iter().take_while(|n| white(n)).count();
        let element = element.get(from..).unwrap_or_default();
        match element {
            [Node::Plain(ARRAY), Node::Group(b'[', inner)] => are_scalars(inner),
            // One element of an array, and no slice.
            [.., _, Node::Group(b'[', at)] => !at.is_empty() && !at.contains(&Node::Plain(b":")),
            [Node::Plain(word)] => {
                *word == b"NULL"
                    || matches!(word, [b'\'', ..] | [b'E', b'\'', ..])
                    || word.iter().all(|b| b.is_ascii_digit() || *b == b'.')
            }
            _ => {
                let of_type = element.iter().rposition(|node| *node == Node::Plain(b"::"));
                let of_type = of_type.and_then(|n| element.get(n + 1..)).unwrap_or_default();
                !of_type.is_empty() && of_type.iter().all(is_of_type_name)
            }
        }
    })
}

/// As `format_type` prints names. Unquoted names are of small letters, and keywords of capital ones.
fn is_of_type_name(node: &Node<'_>) -> bool {
    match node {
        Node::Plain([b'"', ..] | b"." | b" ") => true,
        Node::Plain(text) => text.iter().all(|b| is_word(*b) && !b.is_ascii_uppercase()),
        Node::Group(b'(', inner) => {
            inner.iter().all(|n| matches!(n, Node::Plain(n) if n.iter().all(|b| b.is_ascii_digit() || *b == b',')))
        }
        Node::Group(..) => false,
    }
}

fn cast_each<'t>(elements: Vec<Node<'t>>, of_type: &[Node<'t>]) -> Vec<Node<'t>> {
    let mut out = vec![];
    for (n, element) in elements.split(|node| *node == Node::Plain(b",")).enumerate() {
        if n > 0 {
            out.push(Node::Plain(b","));
        }
        let white = |node: &&Node<'_>| matches!(node, Node::Plain(text) if text.iter().all(u8::is_ascii_whitespace));
        let (before, element) = element.split_at(element.iter().take_while(white).count());
        out.extend_from_slice(before);
        match element {
            // An array of arrays: its innermost elements.
            [array @ Node::Plain(ARRAY), Node::Group(b'[', inner)] => {
                out.push(array.clone());
                out.push(Node::Group(b'[', cast_each(inner.clone(), of_type)));
            }
            element => {
                out.push(Node::Group(b'(', element.to_vec()));
                out.push(Node::Plain(b"::"));
                out.extend_from_slice(of_type);
            }
        }
    }
    out
}

/// What was in parentheses in the first place of the same connective joins it.
fn flat(nodes: Vec<Node<'_>>) -> Vec<Node<'_>> {
    let Some(by) = connective(&nodes) else { return nodes };
    match nodes.split_first() {
        Some((Node::Group(b'(', first), rest))
            if connective(first) == Some(by)
                && matches!(rest, [Node::Plain(_), Node::Plain(word), ..] if *word == by) =>
        {
            first.iter().chain(rest).cloned().collect()
        }
        _ => nodes,
    }
}

/// AND or OR, when that is what holds this list together. BETWEEN is printed in frames of windows alone.
fn connective<'t>(nodes: &[Node<'t>]) -> Option<&'t [u8]> {
    let mut found = None;
    for node in nodes {
        match node {
            Node::Plain(b"BETWEEN" | b"SELECT") => return None,
            Node::Plain(word @ (b"AND" | b"OR")) if found.is_none_or(|f| f == *word) => found = Some(*word),
            Node::Plain(b"AND" | b"OR") => return None,
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal_of(text: &str) -> String {
        String::from_utf8(normal_form(text.as_bytes(), Elements::Unknown)).expect("UTF-8")
    }

    #[test]
    fn columns_that_postgresql_knows_to_be_scalars_have_the_form_of_a_loaded_dump() {
        let known = |text: &str| String::from_utf8(normal_form(text.as_bytes(), Elements::Scalars)).expect("UTF-8");
        for (before, after) in [
            (
                "CHECK (((x)::text = ANY ((ARRAY[y, \"Z\", t.y, lower((y)::text)])::text[])))",
                "CHECK (((x)::text = ANY (ARRAY[(y)::text, (\"Z\")::text, (t.y)::text, (lower((y)::text))::text])))",
            ),
            ("((x)::text <> ALL ((ARRAY[y, new.z])::text[]))", "((x)::text <> ALL (ARRAY[(y)::text, (new.z)::text]))"),
        ] {
            assert_eq!((known(before), known(after)), (after.to_owned(), after.to_owned()));
            assert_ne!(normal_of(before), after, "columns could be arrays");
        }
        let arrays =
            ["((v)::text = ANY (ARRAY[(x)::text[], (y)::text[]]))", "((v)::text = ANY ((ARRAY[x, y])::text[]))"];
        assert_ne!(normal_of(arrays[0]), normal_of(arrays[1]));
        for (one, other) in
            [("ARRAY[x, y]", "ARRAY[y, x]"), ("ARRAY[x, y]", "ARRAY[x]"), ("ARRAY[x, y]", "ARRAY[x, z]")]
        {
            assert_ne!(known(&format!("(({one})::text[])")), known(&format!("(({other})::text[])")));
        }
    }

    /// What PostgreSQL 15 prints before a dump and after it was loaded.
    const PAIRS: [(&str, &str); 14] = [
        (
            "CHECK (((x)::text = ANY ((ARRAY['a'::character varying, 'it''s, [x])::text[]'::character varying])::text[])))",
            "CHECK (((x)::text = ANY (ARRAY[('a'::character varying)::text, ('it''s, [x])::text[]'::character varying)::text])))",
        ),
        (
            "((x)::text <> ALL ((ARRAY[('a'::text)::character varying, NULL::character varying])::text[]))",
            "((x)::text <> ALL (ARRAY[(('a'::text)::character varying)::text, (NULL::character varying)::text]))",
        ),
        (
            "(f = ANY ((ARRAY[ARRAY[1, 2], ARRAY[3, 4]])::double precision[]))",
            "(f = ANY (ARRAY[ARRAY[(1)::double precision, (2)::double precision], ARRAY[(3)::double precision, (4)::double precision]]))",
        ),
        ("(ARRAY[1])::numeric(10,2)[]", "ARRAY[(1)::numeric(10,2)]"),
        ("(ARRAY[1])::\"S\".\"it[]\"[]", "ARRAY[(1)::\"S\".\"it[]\"]"),
        ("((((y >= 1) AND (y <= 9)) AND (z > 0)))", "(((y >= 1) AND (y <= 9) AND (z > 0)))"),
        ("((((a OR b) OR c) OR d))", "((a OR b OR c OR d))"),
        (
            "(((y < 1) OR (y > 2)) OR (z > 0) OR (f > (1)::double precision))",
            "((y < 1) OR (y > 2) OR (z > 0) OR (f > (1)::double precision))",
        ),
        (
            "CHECK (((((x)::text >= 'a'::text) AND ((x)::text <= 'b'::text)) AND ((y > 1) AND (z > 2))))",
            "CHECK ((((x)::text >= 'a'::text) AND ((x)::text <= 'b'::text) AND ((y > 1) AND (z > 2))))",
        ),
        (
            "(upper(CASE WHEN (v = ANY ((ARRAY['a'::character varying])::text[])) THEN 'x' END))[1]",
            "(upper(CASE WHEN (v = ANY (ARRAY[('a'::character varying)::text])) THEN 'x' END))[1]",
        ),
        (
            "(((((x)::text = ANY ((ARRAY['a'::character varying])::text[])) AND b) AND c) OR d)",
            "((((x)::text = ANY (ARRAY[('a'::character varying)::text])) AND b AND c) OR d)",
        ),
        // A cast to an array within a cast to another.
        ("(ARRAY[((ARRAY[1])::text[])[1]])::character varying[]", "ARRAY[((ARRAY[(1)::text])[1])::character varying]"),
        ("(\"AND\" = ANY ((ARRAY[E'\\'a'])::text[]))", "(\"AND\" = ANY (ARRAY[(E'\\'a')::text]))"),
        ("na\u{ef}ve = ((ARRAY['\u{e9}'])::na\u{ef}f[])", "na\u{ef}ve = (ARRAY[('\u{e9}')::na\u{ef}f])"),
    ];

    #[test]
    fn what_a_loaded_dump_prints_otherwise_has_one_normal_form() {
        for (before, after) in PAIRS {
            assert_eq!(normal_of(before), after);
            assert_eq!(normal_of(after), after, "the normal form is its own");
        }
    }

    #[test]
    fn what_means_something_else_stays_different() {
        let checks = [
            "((x)::text = ANY ((ARRAY['a'::character varying, 'b'::character varying])::text[]))",
            "((x)::text = ANY ((ARRAY['a'::character varying, 'c'::character varying])::text[]))",
            "((x)::text = ANY ((ARRAY['b'::character varying, 'a'::character varying])::text[]))",
            "((x)::text = ANY ((ARRAY['a'::character varying])::text[]))",
            "((x)::text <> ALL ((ARRAY['a'::character varying, 'b'::character varying])::text[]))",
            "((x)::text = ANY ((ARRAY['a'::character varying, 'b'::character varying])::name[]))",
            "((x)::text = ANY ((ARRAY['a'::bpchar, 'b'::character varying])::text[]))",
            "((x)::text = ANY ('{a,b}'::text[]))",
            "((x)::text = ANY ((ARRAY['a'::character varying, ' b'::character varying])::text[]))",
            "((v)::text = ANY ((ARRAY[x, y])::text[]))",
            "((v)::text = ANY (ARRAY[(x)::text, (y)::text]))",
            "(((a AND b) OR c) AND d)",
            "((a AND (b OR c)) AND d)",
            "(a AND (b OR (c AND d)))",
            "((a OR b) AND (c AND d))",
            "((a AND b) AND (c AND d))",
            "((a AND b) AND (c OR d))",
            "(a AND (b AND c))",
            "((x < 1) AND (y >= 2))",
            "((x <= 1) AND (y >= 2))",
        ];
        let forms: std::collections::BTreeSet<String> = checks.iter().map(|c| normal_of(c)).collect();
        assert_eq!(forms.len(), checks.len(), "{forms:#?}");
    }

    #[test]
    fn what_is_none_of_these_forms_is_left_to_the_last_byte() {
        for text in [
            "",
            "sum(y) OVER ((ORDER BY z ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) AND b)",
            "ARRAY[1, 2]",
            "(ARRAY[1, 2])::foo ELSE ARRAY[]",
            "(ARRAY[1, 2])::text",
            "( SELECT  (ARRAY [1])::int[] \n FROM t)",
            "ARRAY[]::text[]",
            "((a AND b)::text AND c)",
            "unbalanced ((ARRAY[1])::text[]",
            "crossed ((ARRAY[1)]::text[]",
            "'open (ARRAY[1])::text[]",
            "(NOT (a AND b) AND c)",
        ] {
            assert_eq!(normal_of(text), text);
        }
        let deep = format!("{}(ARRAY[1])::text[]{}", "(".repeat(2000), ")".repeat(2000));
        assert_eq!(normal_of(&deep), deep);
    }
}
