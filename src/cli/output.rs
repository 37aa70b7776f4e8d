//! How secrets and lists look to people: plain columns. Text that others wrote reaches a terminal through
//! [`printable`] only.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

/// A secret as the server releases it. Values stay where they are in the answer's body.
#[derive(Deserialize)]
pub struct Released<'a> {
    /// The fields.
    #[serde(borrow)]
    pub data: BTreeMap<String, &'a RawValue>,
    /// The version that was read.
    pub version: u64,
    #[serde(flatten)]
    about: About,
}

/// What is known of a secret besides its value. A batch without metadata has only the type.
#[derive(Deserialize)]
pub struct About {
    secret_type: Option<String>,
    metadata: Option<Metadata>,
    created_at: Option<String>,
    created_by: Option<String>,
    updated_at: Option<String>,
    updated_by: Option<String>,
    expires_at: Option<String>,
}

/// Not secret: people find the secret by it.
#[derive(Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Metadata {
    /// What the secret is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Any number of tags.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Who looks after it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Whatever else people want to say.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub custom: BTreeMap<String, String>,
}

/// A text as it is, anything else as JSON.
pub fn plain(value: &RawValue) -> Zeroizing<String> {
    serde_json::from_str(value.get()).map_or_else(|_no_text| Zeroizing::new(value.get().to_owned()), Zeroizing::new)
}

/// Appends a secret: what is known of it, then its fields.
pub fn show(text: &mut Zeroizing<String>, path: &str, secret: &Released<'_>) {
    let mut rows = vec![vec!["path".to_owned(), path.to_owned()], vec!["version".into(), secret.version.to_string()]];
    rows.extend(secret.about.rows());
    columns(text, &rows);
    text.push('\n');
    let fields: Vec<_> =
        secret.data.iter().map(|(name, value)| vec![Zeroizing::new(name.clone()), plain(value)]).collect();
    columns(text, &fields);
}

impl About {
    fn rows(&self) -> Vec<Vec<String>> {
        let none = Metadata::default();
        let metadata = self.metadata.as_ref().unwrap_or(&none);
        let mut rows = Vec::new();
        let mut row = |name: &str, value: Option<String>| rows.extend(value.map(|value| vec![name.to_owned(), value]));
        row("type", self.secret_type.clone());
        row("created", by(self.created_at.as_ref(), self.created_by.as_ref()));
        row("updated", by(self.updated_at.as_ref(), self.updated_by.as_ref()));
        row("expires", self.expires_at.clone());
        row("description", metadata.description.clone());
        row("owner", metadata.owner.clone());
        row("tags", (!metadata.tags.is_empty()).then(|| metadata.tags.join(", ")));
        for (name, value) in &metadata.custom {
            row(&format!("custom.{name}"), Some(value.clone()));
        }
        rows
    }
}

fn by(at: Option<&String>, who: Option<&String>) -> Option<String> {
    match (at, who) {
        (Some(at), Some(who)) => Some(format!("{at} by {who}")),
        (at, _) => at.cloned(),
    }
}

/// Appends rows as aligned columns, two spaces apart. Line breaks in a last cell are kept and indented; every other
/// control character is shown as its escape.
pub fn columns<C: AsRef<str>>(out: &mut Zeroizing<String>, rows: &[Vec<C>]) {
    let rows: Vec<Vec<_>> =
        rows.iter().map(|row| row.iter().map(|cell| printable(cell.as_ref())).collect::<Vec<_>>()).collect();
    let widths = widths(&rows);
    for row in &rows {
        line(out, row, &widths);
    }
}

/// The width of every column but the last of its row, which ends where its text ends.
fn widths(rows: &[Vec<Zeroizing<String>>]) -> Vec<usize> {
    let mut widths = Vec::new();
    for row in rows {
        let padded = row.len().saturating_sub(1);
        widths.resize(widths.len().max(padded), 0);
        for (width, cell) in widths.iter_mut().zip(row.iter().take(padded)) {
            *width = (*width).max(cell.chars().count());
        }
    }
    widths
}

fn line(out: &mut Zeroizing<String>, row: &[Zeroizing<String>], widths: &[usize]) {
    let Some((last, padded)) = row.split_last() else { return };
    let mut indent = 0;
    for (cell, width) in padded.iter().zip(widths) {
        let gap = 2 + width.saturating_sub(cell.chars().count());
        out.push_str(&cell.replace('\n', "\\n"));
        out.push_str(&" ".repeat(gap));
        indent += width + 2;
    }
    for (number, piece) in last.trim_end_matches('\n').split('\n').enumerate() {
        if number > 0 {
            out.push_str(&" ".repeat(indent));
        }
        out.push_str(piece);
        out.push('\n');
    }
}

/// The text with what could steer a terminal, or turn the reading direction, shown as escapes. Line breaks stay.
pub fn printable(text: &str) -> Zeroizing<String> {
    let mut shown = Zeroizing::new(String::with_capacity(text.len()));
    for c in text.chars() {
        if (c.is_control() && c != '\n') || turns_direction(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Unicode's embeddings, overrides, isolates and marks: with them a name can read as another.
fn turns_direction(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(rows: &[Vec<&str>]) -> String {
        let mut out = Zeroizing::default();
        columns(&mut out, rows);
        out.to_string()
    }

    #[test]
    fn columns_align_and_lines_do_not_trail() {
        assert_eq!(shown(&[vec!["PATH", "VERSION"], vec!["a/b/c", "12"]]), "PATH   VERSION\na/b/c  12\n");
        assert_eq!(shown(&[vec!["é", "x"], vec!["aa", "y"]]), "é   x\naa  y\n");
        assert_eq!(shown(&[]), "");
    }

    #[test]
    fn line_breaks_are_kept_in_a_last_cell_only() {
        assert_eq!(shown(&[vec!["key", "one\ntwo\n"]]), "key  one\n     two\n");
        assert_eq!(shown(&[vec!["k\ny", "v"]]), "k\\ny  v\n");
    }

    #[test]
    fn nothing_steers_the_terminal() {
        assert_eq!(&*printable("a\u{1b}[2Jb\r\u{202e}c\tä"), "a\\u{1b}[2Jb\\r\\u{202e}c\\tä");
    }
}
