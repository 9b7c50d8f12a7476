//! The nearest known word to a misspelt one. Knows nothing of settings.

/// The number of single-character changes, swaps of neighbours included, from one word to the other.
pub fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=to.len()).collect();
    let mut previous_char = None;
    for (row, a) in from.chars().enumerate() {
        let mut current = vec![row + 1];
        let mut left = row + 1;
        let mut previous_to = None;
        for (column, ((&b, &above), &diagonal)) in to.iter().zip(last.iter().skip(1)).zip(last.iter()).enumerate() {
            let mut cost = (diagonal + usize::from(a != b)).min(above + 1).min(left + 1);
            if previous_char == Some(b) && previous_to == Some(a) && column > 0 {
                let swapped = before_last.get(column - 1).map_or(usize::MAX, |c| c + 1);
                cost = cost.min(swapped);
            }
            current.push(cost);
            left = cost;
            previous_to = Some(b);
        }
        before_last = std::mem::replace(&mut last, current);
        previous_char = Some(a);
    }
    last.last().copied().unwrap_or(0)
}

/// The nearest of the known words, when it is near enough to be what was meant: at most a third of it differs, or one
/// is the beginning of the other.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let closest = known.into_iter().map(|k| (distance(word, k), k)).min()?;
    let (steps, candidate) = closest;
    let longest = word.chars().count().max(candidate.chars().count());
    let prefix = word.len() >= 3 && (candidate.starts_with(word) || word.starts_with(candidate));
    (steps <= (longest / 3).max(1) || prefix).then_some(candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_changes_and_swaps() {
        let cases =
            [("", "", 0), ("", "ab", 2), ("kitten", "sitting", 3), ("ab", "ba", 1), ("retnetion", "retention", 1)];
        for (from, to, steps) in cases {
            assert_eq!((distance(from, to), distance(to, from)), (steps, steps), "{from} {to}");
        }
    }

    #[test]
    fn only_a_near_word_is_suggested() {
        let known = ["passphrase_file", "url", "keep_daily", "keep_weekly"];
        assert_eq!(nearest("passphrase_fil", known), Some("passphrase_file"));
        assert_eq!(nearest("keep_dayly", known), Some("keep_daily"));
        assert_eq!(nearest("frobnicate", known), None);
        assert_eq!(nearest("x", []), None);
    }
}
