//! Statements that take several rows at once: fewer round trips.

use super::{StoreError, StoreResult, audit_tables, change_tables};

/// Rows that one statement takes at most: few enough shapes of each statement to stay prepared.
pub const AT_ONCE: usize = 16;

/// How a database writes what the statements have in common.
pub struct Dialect {
    /// The beginning of an insertion that fails the whole transaction where it fails, if there is a word for that.
    pub insert: &'static str,
    /// The n-th value's placeholder, counted from 1.
    pub place: fn(usize) -> String,
}

/// The statements in one dialect.
pub struct Statements {
    pub append_rows: ManyRows,
    pub find_heads: ManyRows,
    pub insert_versions: ManyRows,
    pub prune_versions: ManyRows,
    pub keep_heads: ManyRows,
}

impl Statements {
    pub fn of(dialect: &Dialect) -> Self {
        Self {
            append_rows: ManyRows::of(dialect, audit_tables::APPEND_ROWS),
            find_heads: ManyRows::of(dialect, change_tables::FIND_HEADS),
            insert_versions: ManyRows::of(dialect, change_tables::INSERT_VERSIONS),
            prune_versions: ManyRows::of(dialect, change_tables::PRUNE_VERSIONS),
            keep_heads: ManyRows::of(dialect, change_tables::KEEP_HEADS),
        }
    }
}

/// A statement before it has its rows: how many values each has, and the text, where `{insert}` stands for the beginning
/// of an insertion and `{rows}` for the rows.
pub type Template = (usize, &'static str);

/// A statement for 1, 2, … rows.
pub struct ManyRows(Vec<String>);

impl ManyRows {
    fn of(dialect: &Dialect, (width, text): Template) -> Self {
        let text = text.replace("{insert}", dialect.insert);
        let row = |row: usize| {
            let places: Vec<String> = (1..=width).map(|value| (dialect.place)(row * width + value)).collect();
            format!("({})", places.join(", "))
        };
        let rows = |count| (0..count).map(row).collect::<Vec<_>>().join(", ");
        Self((1..=AT_ONCE).map(|count| text.replace("{rows}", &rows(count))).collect())
    }

    /// The statement for so many rows, at most [`AT_ONCE`].
    ///
    /// # Errors
    ///
    /// Where there are none, or more.
    pub fn over(&self, count: usize) -> StoreResult<&str> {
        count.checked_sub(1).and_then(|at| self.0.get(at)).map(String::as_str).ok_or(StoreError::Damaged("group"))
    }
}
