//! Patterns for paths, as administrators know them from tar, rsync and git: `*` and `?` within a name, `[a-z]`, `**` over any
//! number of directories. Without `/` a pattern is about the name alone, wherever it lies.
//!
//! Names are bytes. Matching takes time in proportion to pattern and path, whatever they are.

/// Longest pattern.
const PATTERN_BYTES_MAX: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    parts: Vec<Part>,
    place: Place,
    /// It ends with `/`.
    directories_alone: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// About the last component.
    Name,
    /// About the path below what was named.
    Relative,
    /// About the whole path.
    Absolute,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// `**`
    Any,
    Name(Vec<Token>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Byte(u8),
    One,
    Many,
    Class { ranges: Vec<(u8, u8)>, not: bool },
}

impl Pattern {
    /// # Errors
    /// Why it is no pattern.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.len() > PATTERN_BYTES_MAX || text.contains('\0') {
            return Err(format!("a pattern has 1 to {PATTERN_BYTES_MAX} bytes, and no NUL"));
        }
        let directories_alone = text.ends_with('/');
        let body = text.trim_end_matches('/');
        let place = match (body.starts_with('/'), body.contains('/')) {
            (true, _) => Place::Absolute,
            (false, true) => Place::Relative,
            (false, false) => Place::Name,
        };
        let parts = body.split('/').filter(|p| !p.is_empty()).map(part).collect::<Result<Vec<Part>, String>>()?;
        if parts.is_empty() {
            return Err("a pattern that matches everything".into());
        }
        Ok(Pattern { text: text.to_owned(), parts, place, directories_alone })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it means what lies at `below` (without a leading `/`) under the absolute path `root`.
    pub fn matches(&self, root: &[u8], below: &[u8], is_directory: bool) -> bool {
        if self.directories_alone && !is_directory {
            return false;
        }
        let of = |path: &[u8]| -> bool {
            let parts: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|p| !p.is_empty()).collect();
            match_path(&self.parts, &parts)
        };
        match self.place {
            Place::Absolute if below.is_empty() => of(root),
            Place::Absolute => of(&[root, b"/", below].concat()),
            Place::Relative => of(below),
            Place::Name => {
                let whole = if below.is_empty() { root } else { below };
                of(whole.rsplit(|b| *b == b'/').next().unwrap_or_default())
            }
        }
    }
}

fn part(text: &str) -> Result<Part, String> {
    if text == "**" {
        return Ok(Part::Any);
    }
    let mut tokens = vec![];
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        tokens.push(match first {
            b'*' => Token::Many,
            b'?' => Token::One,
            b'\\' => {
                let (escaped, after) = rest.split_first().ok_or("a pattern ends with a backslash")?;
                rest = after;
                Token::Byte(*escaped)
            }
            b'[' => {
                let (class, after) = class(rest).ok_or_else(|| format!("'{text}': a '[' without its ']'"))?;
                rest = after;
                class
            }
            b => Token::Byte(*b),
        });
    }
    Ok(Part::Name(tokens))
}

/// After the bracket; a `]` that comes first is one of the class.
fn class(mut rest: &[u8]) -> Option<(Token, &[u8])> {
    let not = matches!(rest.first(), Some(b'!' | b'^'));
    if not {
        rest = rest.get(1..)?;
    }
    let mut ranges = vec![];
    loop {
        let (first, after) = rest.split_first()?;
        if *first == b']' && !ranges.is_empty() {
            return Some((Token::Class { ranges, not }, after));
        }
        match after {
            [b'-', last, more @ ..] if *last != b']' => {
                ranges.push((*first, *last));
                rest = more;
            }
            _ => {
                ranges.push((*first, *first));
                rest = after;
            }
        }
    }
}

/// What a wildcard that takes any number stands for is tried from the shortest on; only the last one has to be tried again, so
/// this ends after |pattern| x |text| steps.
fn match_all<P, T>(pattern: &[P], text: &[T], is_many: impl Fn(&P) -> bool, fits: impl Fn(&P, &T) -> bool) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut again: Option<(usize, usize)> = None;
    while let Some(now) = text.get(t) {
        match pattern.get(p) {
            Some(wild) if is_many(wild) => {
                again = Some((p, t));
                p += 1;
            }
            Some(one) if fits(one, now) => (p, t) = (p + 1, t + 1),
            _ => match again {
                Some((wild, from)) => {
                    again = Some((wild, from + 1));
                    (p, t) = (wild + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern.get(p..).unwrap_or_default().iter().all(is_many)
}

fn match_path(parts: &[Part], path: &[&[u8]]) -> bool {
    let fits = |part: &Part, name: &&[u8]| match part {
        Part::Any => true,
        Part::Name(tokens) => match_name(tokens, name),
    };
    match_all(parts, path, |p| *p == Part::Any, fits)
}

fn match_name(tokens: &[Token], name: &[u8]) -> bool {
    let fits = |token: &Token, byte: &u8| match token {
        Token::Byte(b) => b == byte,
        Token::One | Token::Many => true,
        Token::Class { ranges, not } => ranges.iter().any(|(a, b)| (a..=b).contains(&byte)) != *not,
    };
    match_all(tokens, name, |t| *t == Token::Many, fits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matches(pattern: &str, below: &str) -> bool {
        Pattern::parse(pattern).unwrap().matches(
            b"/srv/app",
            below.trim_end_matches('/').as_bytes(),
            below.ends_with('/'),
        )
    }

    #[test]
    fn patterns_mean_what_administrators_expect() {
        for (pattern, path) in [
            ("*.tmp", "a/b/c.tmp"),
            ("*.tmp", ".tmp"),
            ("cache/**", "cache/a/b"),
            ("cache/**", "cache/a"),
            ("**/cache", "x/y/cache"),
            ("**/cache", "cache"),
            ("a/**/z", "a/z"),
            ("a/**/z", "a/b/c/z"),
            ("/srv/app/up?", "up1"),
            ("/srv/**", "x"),
            ("[a-c]*[!0-9]", "bx"),
            ("[]]", "]"),
            ("\\*", "*"),
            ("*\\[1\\]*", "x[1].jpg"),
            ("cache/", "cache/"),
        ] {
            assert!(matches(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in [
            ("*.tmp", "a.tmp/b"),
            ("cache/**", "x/cache/a"),
            ("a/*/z", "a/b/c/z"),
            ("a/*", "a"),
            ("/srv/app/up?", "up12"),
            ("[a-c]*[!0-9]", "b7"),
            ("\\*", "x"),
            ("cache/", "cache"),
            ("A", "a"),
        ] {
            assert!(!matches(pattern, path), "{pattern} {path}");
        }
        for bad in ["", "/", "//", "[a", "a\\", "a\0", "[]"] {
            assert!(Pattern::parse(bad).is_err(), "{bad:?}");
        }
        assert!(Pattern::parse("\u{1F418}*").unwrap().matches(b"/r", "\u{1F418}\n.jpg".as_bytes(), false));
        assert!(Pattern::parse("*.jpg").unwrap().matches(b"/r", b"\xff\xfe.jpg", false));
    }

    #[test]
    fn many_stars_take_no_time() {
        let pattern = Pattern::parse(&"*a".repeat(1000)).unwrap();
        assert!(!pattern.matches(b"/r", &vec![b'a'; 900], false));
        let deep = Pattern::parse(&vec!["**/a"; 500].join("/")).unwrap();
        assert!(!deep.matches(b"/r", "b/".repeat(2000).as_bytes(), false));
    }

    /// As slow as it is plain.
    fn oracle(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => {
                oracle(rest, text) || text.split_first().is_some_and(|(_, t)| oracle(pattern, t))
            }
            (Some((b'?', rest)), Some((_, t))) => oracle(rest, t),
            (Some((a, rest)), Some((b, t))) => a == b && oracle(rest, t),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn names_match_as_the_plain_way_says(pattern in "[ab*?]{1,8}", text in "[ab]{0,8}") {
            // Two stars are the sign for directories when they are all there is.
            prop_assume!(pattern != "**");
            let Ok(Part::Name(tokens)) = part(&pattern) else { panic!("{pattern}") };
            prop_assert_eq!(match_name(&tokens, text.as_bytes()), oracle(pattern.as_bytes(), text.as_bytes()));
        }

        #[test]
        fn nothing_panics(pattern in "\\PC{0,20}", path in proptest::collection::vec(any::<u8>(), 0..30)) {
            if let Ok(pattern) = Pattern::parse(&pattern) {
                let _ = pattern.matches(b"/r", &path, true);
            }
        }
    }
}
