//! "Did you mean": the nearest of some names by edit distance.

/// The nearest candidate within a third of the word's length (at least one edit, none for a single letter), or `None`.
/// Ties go to the first.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const WORD_CHARS_MAX: usize = 64;
    let word: Vec<char> = word.to_lowercase().chars().collect();
    if word.len() > WORD_CHARS_MAX {
        return None;
    }
    let allowed = if word.len() < 2 { 0 } else { (word.len() / 3).max(1) };
    let mut best: Option<(usize, &str)> = None;
    for candidate in candidates {
        if candidate.len().abs_diff(word.len()) > allowed * 4 {
            continue;
        }
        let other: Vec<char> = candidate.to_lowercase().chars().collect();
        if other.len().abs_diff(word.len()) > allowed {
            continue;
        }
        let distance = distance(&word, &other);
        if distance <= allowed && best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// The sentence's tail: ` (did you mean 'x'?)`, or nothing.
pub(crate) fn did_you_mean<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, candidates).map_or_else(String::new, |name| format!(" (did you mean '{name}'?)"))
}

/// Edits between two words: insertion, removal, replacement, and exchange of neighbours.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = vec![0; b.len() + 1];
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = Vec::with_capacity(b.len() + 1);
        row.push(i + 1);
        for (j, y) in b.iter().enumerate() {
            let mut least = (above[j] + usize::from(x != y)).min(above[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_typos_and_nothing_far() {
        let names = ["command", "needs", "timeout", "resources"];
        assert_eq!(nearest("comand", names), Some("command"));
        assert_eq!(nearest("nedes", names), Some("needs"));
        assert_eq!(nearest("TIMEOUT", names), Some("timeout"));
        assert_eq!(nearest("image", names), None);
        assert_eq!(nearest("", names), None);
    }
}
