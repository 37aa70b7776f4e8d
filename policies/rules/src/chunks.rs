//! Cuts the settings into pieces that are TOML by themselves. The parser needs about twenty times the memory of its
//! text, and a module has 16 MiB: read piece by piece, only what the rules come to counts.

use toml_parser::{Source, lexer::TokenKind};

/// A piece is cut at the first place that allows it after this many bytes.
pub const CHUNK_BYTES: usize = 32 * 1024;

/// A piece of the settings.
#[derive(Debug, PartialEq, Eq)]
pub struct Chunk<'t> {
    /// Where in the settings it begins, in bytes.
    pub start: usize,
    /// Begins with `[[policy]]`, or with a `[[policy.rules]]` that goes on with the last policy of the piece before.
    pub text: &'t str,
}

/// Cuts the text. The pieces joined are the text; one that is not TOML somewhere is not TOML in some piece either.
#[must_use]
pub fn chunks(text: &str, chunk_bytes: usize) -> Vec<Chunk<'_>> {
    let (mut chunks, mut start) = (Vec::new(), 0);
    let (mut starts_with_rule, mut policy_has_rules) = (false, false);
    for (at, header) in headers(text) {
        let long = at - start >= chunk_bytes;
        let cut = match header {
            // After a piece that goes on with a policy, a new policy needs a new piece: `policy` is another kind there.
            Header::Policy => long || starts_with_rule,
            Header::Rule => long && policy_has_rules,
        };
        if cut {
            chunks.extend(text.get(start..at).map(|text| Chunk { start, text }));
            (start, starts_with_rule) = (at, header == Header::Rule);
        }
        policy_has_rules = header == Header::Rule;
    }
    chunks.extend(text.get(start..).map(|text| Chunk { start, text }));
    chunks
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Header {
    Policy,
    Rule,
}

/// The lines `[[policy]]` and `[[policy.rules]]`, each with its place. Follows the lexer, because inside a text of several
/// lines the same characters are no header.
fn headers(text: &str) -> impl Iterator<Item = (usize, Header)> {
    let mut line_is_blank = true;
    Source::new(text).lex().filter_map(move |token| {
        let at_line_start = line_is_blank;
        line_is_blank = match token.kind() {
            TokenKind::Newline => true,
            TokenKind::Whitespace => line_is_blank,
            _ => false,
        };
        let start = token.span().start();
        let is_bracket = at_line_start && token.kind() == TokenKind::LeftSquareBracket;
        is_bracket.then(|| Some((start, header_of(text.get(start..)?)?))).flatten()
    })
}

fn header_of(text: &str) -> Option<Header> {
    let line = text.lines().next()?.split('#').next()?;
    let bare: String = line.chars().filter(|c| !matches!(c, ' ' | '\t' | '"' | '\'')).take(20).collect();
    match bare.as_str() {
        "[[policy]]" => Some(Header::Policy),
        "[[policy.rules]]" => Some(Header::Rule),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn starts(text: &str, chunk_bytes: usize) -> Vec<&str> {
        let cut = chunks(text, chunk_bytes);
        assert_eq!(cut.iter().map(|chunk| chunk.text).collect::<String>(), text);
        assert!(cut.iter().all(|chunk| text[chunk.start..].starts_with(chunk.text)));
        cut.iter().map(|chunk| chunk.text.lines().next().unwrap_or_default()).collect()
    }

    #[test]
    fn cuts_at_policies_and_at_rules_after_the_first() {
        let text = "# top\n[[policy]]\na=1\n[[policy.rules]]\nb=1\n[[policy.rules]]\nc=1\n[[ 'policy' ]] # x\n[[policy.rules]]\n";
        assert_eq!(starts(text, 1), ["# top", "[[policy]]", "[[policy.rules]]", "[[ 'policy' ]] # x"]);
        assert_eq!(starts(text, 30), ["# top", "[[policy.rules]]", "[[ 'policy' ]] # x"]);
        assert_eq!(starts(text, 1_000), ["# top"]);
        assert_eq!(starts("", 1), [""]);
    }

    #[test]
    fn a_header_inside_a_text_is_none() {
        for quotes in ["\"\"\"", "'''"] {
            let text = format!("[[policy]]\ndescription = {quotes}\n[[policy]]\n{quotes}\n[[policy]]\n");
            assert_eq!(starts(&text, 1).len(), 2);
        }
        assert_eq!(starts("a = 1 [[policy]]\n# [[policy]]\n[policy]\n[[policies]]\n", 1).len(), 1);
    }
}
