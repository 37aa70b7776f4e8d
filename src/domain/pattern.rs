//! Patterns over secret paths. Standard library only: the `rules` policy module compiles this same file.

/// Longest pattern, in bytes.
pub const MAX_PATTERN_BYTES: usize = 512;

/// An anchored pattern: `*` is any run of characters inside one segment, `?` is one character inside a segment, `**` as
/// a whole segment is any number of segments, zero included (`**/ssl/*` matches `ssl/cert`; `app/**` matches `app`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PathPattern {
    text: String,
    segments: Vec<Segment>,
}

/// A text that is no pattern; the message says what to mend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidPattern(pub &'static str);

impl std::fmt::Display for InvalidPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for InvalidPattern {}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Segment {
    Literal(String),
    Wild(Vec<u8>),
    AnyDepth,
}

impl PathPattern {
    /// Parses a pattern.
    ///
    /// # Errors
    ///
    /// [`InvalidPattern`] for an empty segment, a byte that no path can have, `**` beside other characters, or a
    /// pattern of more than [`MAX_PATTERN_BYTES`].
    pub fn parse(text: &str) -> Result<Self, InvalidPattern> {
        if text.len() > MAX_PATTERN_BYTES {
            return Err(InvalidPattern("a pattern has 512 bytes at most"));
        }
        let segments = text.split('/').map(Segment::parse).collect::<Result<_, _>>()?;
        Ok(Self { text: text.to_owned(), segments })
    }

    /// The pattern as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the pattern holds no wildcard, and so names one path.
    #[must_use]
    pub fn is_literal(&self) -> bool {
        self.segments.iter().all(|segment| matches!(segment, Segment::Literal(_)))
    }

    /// Whether the whole of `path` matches.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        let segments = path.as_bytes().split(|byte| *byte == b'/');
        wildcard_match(&self.segments, segments, |s| matches!(s, Segment::AnyDepth), Segment::matches)
    }

    /// The longest text that every matching path starts with: where a scan of the store may begin.
    #[must_use]
    pub fn literal_prefix(&self) -> &str {
        let wild = self.text.bytes().position(|byte| byte == b'*' || byte == b'?').unwrap_or(self.text.len());
        let prefix = self.text.get(..wild).unwrap_or_default();
        // `app/**` matches `app` itself, so the slash before `**` is not part of what every match starts with.
        let any_depth_follows = self.text.get(wild..).is_some_and(|rest| rest == "**" || rest.starts_with("**/"));
        if any_depth_follows { prefix.strip_suffix('/').unwrap_or(prefix) } else { prefix }
    }
}

impl Segment {
    fn parse(text: &str) -> Result<Self, InvalidPattern> {
        if text.is_empty() {
            return Err(InvalidPattern("a pattern has no empty segment"));
        }
        if text == "**" {
            return Ok(Self::AnyDepth);
        }
        if text.contains("**") {
            return Err(InvalidPattern("`**` stands alone between slashes"));
        }
        if !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b'*' | b'?')) {
            return Err(InvalidPattern("a pattern is made of letters, digits, `_`, `.`, `-`, `/`, `*` and `?`"));
        }
        if text.bytes().any(|b| b == b'*' || b == b'?') {
            return Ok(Self::Wild(text.as_bytes().to_vec()));
        }
        Ok(Self::Literal(text.to_owned()))
    }

    fn matches(&self, segment: &&[u8]) -> bool {
        match self {
            Self::AnyDepth => true,
            Self::Literal(text) => text.as_bytes() == *segment,
            Self::Wild(glob) => wildcard_match(glob, segment.iter(), |g| *g == b'*', |g, b| *g == b'?' || g == *b),
        }
    }
}

/// Matches `text` against `pattern`, in which items that `is_star` accepts stand for any run of items.
///
/// Greedy with one point to come back to, so the time is at most the product of the two lengths; see Kirk J. Krauss,
/// "Matching Wildcards: An Algorithm", Dr. Dobb's Journal, 2008.
fn wildcard_match<P, T: Iterator + Clone>(
    pattern: &[P],
    mut text: T,
    is_star: impl Fn(&P) -> bool,
    one: impl Fn(&P, &T::Item) -> bool,
) -> bool {
    let mut p = 0;
    // The place after the last star, and what of the text is left if the star stands for as little as it still may.
    let mut resume: Option<(usize, T)> = None;
    loop {
        if pattern.get(p).is_some_and(&is_star) {
            p += 1;
            resume = Some((p, text.clone()));
            continue;
        }
        let Some(item) = text.next() else { break };
        match (pattern.get(p), &mut resume) {
            (Some(single), _) if one(single, &item) => p += 1,
            (_, Some((after_star, from))) => {
                p = *after_star;
                from.next();
                text = from.clone();
            }
            (_, None) => return false,
        }
    }
    p == pattern.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_as_documented() {
        let table: &[(&str, &[&str], &[&str])] = &[
            ("a/b", &["a/b"], &["a", "a/b/c", "a/B", "xa/b"]),
            ("a/*", &["a/b", "a/b.c-d"], &["a", "a/b/c"]),
            ("a/b*d", &["a/bd", "a/bcd", "a/bcdd"], &["a/bc", "a/b/d"]),
            ("a/?", &["a/b"], &["a/bc", "a"]),
            ("app/**", &["app", "app/x", "app/x/y"], &["apple", "b/app"]),
            ("**", &["a", "a/b/c"], &[]),
            ("**/ssl/*", &["ssl/cert", "x/ssl/cert", "x/y/ssl/key"], &["ssl", "ssl/a/b"]),
            ("a/**/z", &["a/z", "a/b/z", "a/b/c/z", "a/z/z"], &["a", "a/b", "a/z/b"]),
            ("**/a/**/b", &["a/b", "x/a/a/y/b"], &["b/a", "a/b/c"]),
        ];
        for (pattern, yes, no) in table {
            let parsed = PathPattern::parse(pattern).unwrap();
            for path in *yes {
                assert!(parsed.matches(path), "{pattern} must match {path}");
                assert!(path.starts_with(parsed.literal_prefix()), "{pattern} prefix of {path}");
            }
            for path in *no {
                assert!(!parsed.matches(path), "{pattern} must not match {path}");
            }
        }
    }

    #[test]
    fn refuses_bad_patterns() {
        for text in ["", "/a", "a/", "a//b", "a**", "**a", "a/***", "a b", "a/[b]", "ä/*", &"a".repeat(513)] {
            assert!(PathPattern::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn literal_prefixes() {
        for (pattern, prefix) in
            [("a/b", "a/b"), ("a/b*", "a/b"), ("app/**", "app"), ("app/**/x", "app"), ("**", ""), ("a/?b", "a/")]
        {
            assert_eq!(PathPattern::parse(pattern).unwrap().literal_prefix(), prefix, "{pattern}");
        }
    }
}
