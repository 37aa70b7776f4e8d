//! The settings: lines of `key = value`, empty lines, and lines that begin with `#`.

use std::ops::Range;

pub const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

#[derive(Default)]
pub struct Settings {
    /// From Monday.
    pub days: [bool; 7],
    /// Minutes of the day.
    pub hours: Range<u64>,
    /// In minutes.
    pub utc_offset: i64,
    pub mfa_minutes: u64,
    pub groups: Vec<String>,
    pub hidden_field: String,
}

/// A key, what reads its value, and what is wanted of one.
type Key = (&'static str, fn(&mut Settings, &str) -> Option<()>, &'static str);

const KEYS: [Key; 6] = [
    ("days", read_days, "weekdays are wanted, such as mon, tue, fri"),
    ("hours", read_hours, "a span within one day is wanted, such as 08:00-18:00"),
    ("utc-offset", read_utc_offset, "14 hours at most are wanted, such as +01:00"),
    ("mfa-minutes", read_mfa_minutes, "a number from 1 to 1440 is wanted"),
    ("groups", read_groups, "names are wanted, such as developers, operators"),
    ("hidden-field", read_hidden_field, "the name of a field is wanted"),
];

impl Settings {
    /// Reads the settings, or says all that is wrong with them.
    pub fn read(text: &str) -> Result<Self, Vec<String>> {
        let mut settings = Self::default();
        let mut problems = Vec::new();
        let mut given = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Err(problem) = settings.read_line(line, &mut given) {
                problems.push(format!("line {}: {problem}", index + 1));
            }
        }
        let missing = KEYS.iter().filter(|(key, ..)| !given.contains(key));
        problems.extend(missing.map(|(key, ..)| format!("`{key}` is missing")));
        if problems.is_empty() { Ok(settings) } else { Err(problems) }
    }

    fn read_line(&mut self, line: &str, given: &mut Vec<&'static str>) -> Result<(), String> {
        let (key, value) = line.split_once('=').map_or((line, ""), |(key, value)| (key.trim(), value.trim()));
        let known = KEYS.iter().find(|(name, ..)| *name == key);
        let (name, read, wanted) = known.ok_or_else(|| format!("there is no key `{key}`"))?;
        if given.contains(name) {
            return Err(format!("{name}: it is given already"));
        }
        given.push(name);
        read(self, value).ok_or_else(|| format!("{name}: {wanted}"))
    }
}

fn read_days(settings: &mut Settings, value: &str) -> Option<()> {
    for name in value.split(',') {
        settings.days[DAYS.iter().position(|day| *day == name.trim())?] = true;
    }
    Some(())
}

fn read_hours(settings: &mut Settings, value: &str) -> Option<()> {
    let (opens, closes) = value.split_once('-')?;
    settings.hours = minutes(opens)?..minutes(closes)?;
    (!settings.hours.is_empty()).then_some(())
}

fn read_utc_offset(settings: &mut Settings, value: &str) -> Option<()> {
    let (sign, distance) = match value.strip_prefix('+') {
        Some(distance) => (1, distance),
        None => (-1, value.strip_prefix('-')?),
    };
    let distance = minutes(distance).filter(|minutes| *minutes <= 14 * 60)?;
    settings.utc_offset = sign * distance as i64;
    Some(())
}

fn read_mfa_minutes(settings: &mut Settings, value: &str) -> Option<()> {
    settings.mfa_minutes = number(value).filter(|minutes| (1..=1440).contains(minutes))?;
    Some(())
}

fn read_groups(settings: &mut Settings, value: &str) -> Option<()> {
    settings.groups = value.split(',').map(|name| name.trim().to_owned()).collect();
    (!settings.groups.contains(&String::new())).then_some(())
}

fn read_hidden_field(settings: &mut Settings, value: &str) -> Option<()> {
    settings.hidden_field = value.to_owned();
    (!value.is_empty()).then_some(())
}

/// `HH:MM`, up to 24:00, in minutes.
fn minutes(text: &str) -> Option<u64> {
    let (hours, minutes) = text.split_once(':').filter(|(hours, minutes)| hours.len() == 2 && minutes.len() == 2)?;
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    (minutes < 60 && hours * 60 + minutes <= 1440).then_some(hours * 60 + minutes)
}

/// One to four digits.
fn number(text: &str) -> Option<u64> {
    let digits = (1..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}
