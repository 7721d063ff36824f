//! Owns stop strings in a growing text: nothing of a match is shown, and what may yet become one is held back. Pure text;
//! knows no tokens. Where the text is cut into pieces changes nothing.

/// Watches a text for the first of several stop strings.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    include: bool,
    /// The end of the text, not shown yet: a proper beginning of a stop string, or empty.
    held: String,
}

/// What a push made of the text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    pub text: String,
    /// Index of the stop string that ended the text; nothing comes after it.
    pub hit: Option<usize>,
}

impl StopMatcher {
    /// With `include` the match itself is shown. Empty stop strings match nothing.
    pub fn new(stops: Vec<String>, include: bool) -> Self {
        Self { stops, include, held: String::new() }
    }

    /// Bytes held back.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Adds text. Of several matches the one that is complete first counts, and of these the longest.
    pub fn push(&mut self, text: &str) -> Shown {
        let mut all = std::mem::take(&mut self.held);
        all.push_str(text);
        if let Some((start, end, hit)) = self.first_match(&all) {
            all.truncate(if self.include { end } else { start });
            return Shown { text: all, hit: Some(hit) };
        }
        let ready = all.len() - self.beginning_at_end(&all);
        self.held = all.split_off(ready);
        Shown { text: all, hit: None }
    }

    /// Text that is not looked at. What was held back before it is shown.
    pub fn pass(&mut self, text: &str) -> String {
        let mut all = std::mem::take(&mut self.held);
        all.push_str(text);
        all
    }

    /// The end of the text came: what was held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// (start, end, index)
    fn first_match(&self, text: &str) -> Option<(usize, usize, usize)> {
        let found = self.stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty());
        let found = found.filter_map(|(i, stop)| text.find(stop.as_str()).map(|at| (at, at + stop.len(), i)));
        found.min_by_key(|(start, end, i)| (*end, *start, *i))
    }

    /// Length of the longest proper beginning of a stop string that `text` ends with.
    fn beginning_at_end(&self, text: &str) -> usize {
        let longest = |stop: &String| {
            let lengths = stop.char_indices().map(|(i, _)| i).filter(|len| *len > 0 && *len <= text.len());
            lengths.rev().find(|len| text.ends_with(&stop[..*len])).unwrap_or(0)
        };
        self.stops.iter().map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str], include: bool) -> (String, Option<usize>) {
        let mut matcher = StopMatcher::new(stops.iter().map(|s| s.to_string()).collect(), include);
        let mut out = String::new();
        for piece in pieces {
            let shown = matcher.push(piece);
            out += &shown.text;
            if shown.hit.is_some() {
                return (out, shown.hit);
            }
        }
        (out + &matcher.finish(), None)
    }

    /// The oracle: the shortest beginning of the text that ends with a stop string.
    fn oracle(stops: &[&str], text: &str) -> (String, Option<usize>) {
        for end in (0..=text.len()).filter(|end| text.is_char_boundary(*end)) {
            let ending: Vec<usize> = (0..stops.len()).filter(|i| text[..end].ends_with(stops[*i])).collect();
            if let Some(hit) = ending.into_iter().max_by_key(|i| (stops[*i].len(), std::cmp::Reverse(*i))) {
                return (text[..end - stops[hit].len()].into(), Some(hit));
            }
        }
        (text.into(), None)
    }

    #[test]
    fn every_way_to_cut_a_text_shows_the_same() {
        let texts = ["aabaabaac", "xaab", "ab", "äöäöü", "aaaa", "no", "abcabcabd"];
        let stops: [&[&str]; 6] =
            [&["aabaac"], &["ab", "b"], &["öü", "äöäö"], &["aaa", "aab"], &["abcabd", "bca"], &["o", "no"]];
        for text in texts {
            let chars: Vec<char> = text.chars().collect();
            for stops in stops {
                for cuts in 0..1u32 << (chars.len() - 1) {
                    let mut pieces = vec![String::new()];
                    for (i, c) in chars.iter().enumerate() {
                        pieces.last_mut().unwrap().push(*c);
                        if cuts >> i & 1 == 1 {
                            pieces.push(String::new());
                        }
                    }
                    let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
                    assert_eq!(
                        run(stops, &pieces, false),
                        oracle(stops, text),
                        "{text:?} cut as {pieces:?}, {stops:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn nothing_is_held_longer_than_it_must() {
        let mut matcher = StopMatcher::new(vec!["stop".into()], false);
        assert_eq!(matcher.push("no st").text, "no ");
        assert_eq!(matcher.push("ep st").text, "step ");
        assert_eq!(matcher.finish(), "st");
    }

    #[test]
    fn the_match_is_shown_when_asked_for() {
        assert_eq!(run(&["ab"], &["xa", "by"], true), ("xab".into(), Some(0)));
    }
}
