//! What must hold besides principal, action and path. Each condition is a parsed type whose constructor is the check,
//! and is answered with yes, no, or unknown: what an unknown counts for depends on the rule's effect.

use std::net::IpAddr;

use crate::request::{Inputs, Request};

/// The conditions of one rule; all of them must hold.
#[derive(Debug, Default)]
pub struct Conditions {
    /// The caller's address is in one of these; anywhere where the list is empty.
    pub ip_ranges: Vec<IpRange>,
    /// A second factor was used.
    pub second_factor: Option<SecondFactor>,
    /// The request is made inside this window.
    pub time_window: Option<TimeWindow>,
    /// The secret carries all of these. A secret that does not exist yet carries none.
    pub tags: Vec<String>,
}

/// Whether a condition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It holds.
    Yes,
    /// It does not.
    No,
    /// What it is about is not known.
    Unknown,
}

impl From<bool> for Answer {
    fn from(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }
}

/// The cause of a refusal, the one to report first being the least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// Not from this address.
    Ip,
    /// Not without a second factor.
    SecondFactor,
    /// Not at this time.
    Time,
}

impl Cause {
    /// The API's code for it.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Ip => "ip_not_allowed",
            Self::SecondFactor => "mfa_required",
            Self::Time => "time_window_violation",
        }
    }
}

impl Conditions {
    /// Whether there is any condition at all.
    #[must_use]
    pub fn ask_anything(&self) -> bool {
        !self.ip_ranges.is_empty()
            || self.second_factor.is_some()
            || self.time_window.is_some()
            || !self.tags.is_empty()
    }

    /// Whether the secret carries every tag that the rule asks for; the tags are asked for only where it asks.
    pub fn tags_hold<'t>(&self, carried: impl FnOnce() -> &'t [String]) -> bool {
        self.tags.is_empty() || {
            let carried = carried();
            self.tags.iter().all(|tag| carried.contains(tag))
        }
    }

    /// Why an allow rule does not allow, tags apart; `None` where all holds. What is not known does not hold.
    pub fn refusal<I: Inputs>(&self, request: &Request<I>) -> Option<Cause> {
        self.answers(request).find(|(_, answer)| *answer != Answer::Yes).map(|(cause, _)| cause)
    }

    /// Whether a deny rule denies, tags apart. What is not known holds.
    pub fn may_hold<I: Inputs>(&self, request: &Request<I>) -> bool {
        self.answers(request).all(|(_, answer)| answer != Answer::No)
    }

    /// For people: what is missing, to do or to know.
    #[must_use]
    pub fn explain(&self, cause: Cause) -> String {
        match (cause, &self.second_factor, &self.time_window) {
            (Cause::SecondFactor, Some(SecondFactor::NotOlderThan(span)), _) => {
                format!("This path needs a second factor not older than {}", span.text)
            }
            (Cause::SecondFactor, ..) => "This path needs a second factor".to_owned(),
            (Cause::Time, _, Some(window)) => format!("This path is open {} only", window.text),
            (Cause::Time, ..) => "This path is not open at this time".to_owned(),
            (Cause::Ip, ..) => "This path may not be reached from this address".to_owned(),
        }
    }

    /// In the order of [`Cause`], each computed when it is looked at.
    fn answers<I: Inputs>(&self, request: &Request<I>) -> impl Iterator<Item = (Cause, Answer)> {
        let order = [Cause::Ip, Cause::SecondFactor, Cause::Time];
        order.into_iter().map(move |cause| match cause {
            Cause::Ip => (cause, self.ip_answer(request)),
            Cause::SecondFactor => {
                (cause, self.second_factor.as_ref().map_or(Answer::Yes, |factor| factor.answer(request)))
            }
            Cause::Time => {
                (cause, self.time_window.as_ref().is_none_or(|window| window.contains(request.now())).into())
            }
        })
    }

    fn ip_answer<I: Inputs>(&self, request: &Request<I>) -> Answer {
        if self.ip_ranges.is_empty() {
            return Answer::Yes;
        }
        match request.source_ip() {
            Some(ip) => self.ip_ranges.iter().any(|range| range.contains(ip)).into(),
            None => Answer::Unknown,
        }
    }
}

/// A block of addresses: `10.0.0.0/8`, `2001:db8::/32`, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpRange {
    first: IpAddr,
    prefix_bits: u32,
}

impl IpRange {
    /// Parses a block.
    ///
    /// # Errors
    ///
    /// What to mend: not an address, a prefix that is too long, bits set after the prefix, or an IPv4 block written as
    /// IPv6 (callers' addresses are compared as IPv4, so it would never match).
    pub fn parse(text: &str) -> Result<Self, String> {
        let bad = || "write a block such as \"10.0.0.0/8\", \"2001:db8::/32\", or one address".to_owned();
        let (address, prefix) = text.split_once('/').map_or((text, None), |(ip, bits)| (ip, Some(bits)));
        let first: IpAddr = address.parse().map_err(|_| bad())?;
        let width = if first.is_ipv4() { 32 } else { 128 };
        let prefix_bits = match prefix {
            Some(bits) if bits.is_empty() || !bits.bytes().all(|b| b.is_ascii_digit()) => return Err(bad()),
            Some(bits) => bits.parse().ok().filter(|bits| *bits <= width).ok_or_else(bad)?,
            None => width,
        };
        if first.to_canonical() != first {
            return Err("write an IPv4 block as IPv4".to_owned());
        }
        let base = masked(first, prefix_bits);
        if base != first {
            return Err(format!("address bits are set after the prefix; write \"{base}/{prefix_bits}\""));
        }
        Ok(Self { first, prefix_bits })
    }

    /// Whether the address is in the block.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.first.is_ipv4() == ip.is_ipv4() && masked(ip, self.prefix_bits) == self.first
    }
}

fn masked(ip: IpAddr, prefix_bits: u32) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            let hidden = u32::MAX.checked_shr(prefix_bits).unwrap_or(0);
            IpAddr::V4((ip.to_bits() & !hidden).into())
        }
        IpAddr::V6(ip) => {
            let hidden = u128::MAX.checked_shr(prefix_bits).unwrap_or(0);
            IpAddr::V6((ip.to_bits() & !hidden).into())
        }
    }
}

/// A second factor: one of the methods `mfa`, `otp`, `hwk` or `fido` is among the token's (`amr`). RFC 8176 has `mfa`
/// for it; the others are issuers' words for the factor itself. `sms` is not accepted: it is not one that resists.
#[derive(Debug, PartialEq, Eq)]
pub enum SecondFactor {
    /// At any time of this session.
    AtAnyTime,
    /// In an authentication that is not older than this.
    NotOlderThan(Span),
}

impl SecondFactor {
    fn answer<I: Inputs>(&self, request: &Request<I>) -> Answer {
        match (request.second_factor(), self) {
            (Answer::Yes, Self::NotOlderThan(span)) => match request.authenticated_at() {
                Some(at) => (request.now().saturating_sub(at) <= span.millis).into(),
                None => Answer::Unknown,
            },
            (answer, _) => answer,
        }
    }
}

/// A length of time, with the text that it was written as.
#[derive(Debug, PartialEq, Eq)]
pub struct Span {
    text: String,
    millis: u64,
}

impl Span {
    /// Parses a whole number above zero and one of `ms`, `s`, `m`, `h`, `d`.
    ///
    /// # Errors
    ///
    /// What to write, for every other text and for more than 100 years.
    pub fn parse(text: &str) -> Result<Self, String> {
        const LONGEST: u64 = 100 * 365 * 86_400_000;
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at_checked(digits).unwrap_or((text, ""));
        let unit = match unit {
            "ms" => Some(1),
            "s" => Some(1_000),
            "m" => Some(60_000),
            "h" => Some(3_600_000),
            "d" => Some(86_400_000),
            _ => None,
        };
        let millis = unit.and_then(|unit| number.parse::<u64>().ok()?.checked_mul(unit));
        match millis {
            Some(millis @ 1..=LONGEST) => Ok(Self { text: text.to_owned(), millis }),
            _ => Err("write a whole number above zero and one of ms, s, m, h, d, such as \"15m\"".to_owned()),
        }
    }
}

const DAY_NAMES: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const MINUTES_OF_DAY: u16 = 24 * 60;

/// Some hours of some weekdays, on a clock at a fixed distance from UTC. `from` is inside, `to` is not. Where `to` is
/// not after `from` the window ends on the next day, and the day it belongs to is the one on which it opens.
#[derive(Debug, PartialEq, Eq)]
pub struct TimeWindow {
    /// Bit 0 is Monday.
    days: u8,
    from: u16,
    to: u16,
    offset_minutes: i16,
    text: String,
}

impl TimeWindow {
    /// Joins the parts of a window; each part that is missing is no limit (every day, the whole day, UTC).
    ///
    /// # Errors
    ///
    /// All problems, each with what to write.
    pub fn parse(
        days: Option<&[&str]>,
        from: Option<&str>,
        to: Option<&str>,
        utc_offset: Option<&str>,
    ) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        let mut keep = |result: Result<u16, String>| result.unwrap_or_else(|problem| push(&mut problems, problem));
        let start = keep(from.map_or(Ok(0), |text| minute_of_day(text, "from", MINUTES_OF_DAY - 1)));
        let end = keep(to.map_or(Ok(MINUTES_OF_DAY), |text| minute_of_day(text, "to", MINUTES_OF_DAY)));
        let mut day_bits = 0;
        for day in days.unwrap_or(&["mon-sun"]) {
            day_bits |= days_of(day).unwrap_or_else(|problem| push(&mut problems, problem));
        }
        let offset = utc_offset.unwrap_or("Z");
        let offset_minutes = minutes_from_utc(offset).unwrap_or_else(|problem| push(&mut problems, problem));
        if problems.is_empty() && start == end {
            problems.push("`from` and `to` are the same; leave both out for the whole day".to_owned());
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let day_text = days.map_or_else(|| "every day".to_owned(), |days| days.join(", "));
        let zone = if offset_minutes == 0 { "UTC".to_owned() } else { format!("UTC{offset}") };
        let text = format!("{day_text} {}-{} {zone}", from.unwrap_or("00:00"), to.unwrap_or("24:00"));
        Ok(Self { days: day_bits, from: start, to: end, offset_minutes, text })
    }

    /// Whether the instant, in Unix milliseconds, is inside.
    #[must_use]
    pub fn contains(&self, now: u64) -> bool {
        let local = i64::try_from(now / 60_000).unwrap_or(i64::MAX).saturating_add(self.offset_minutes.into());
        let day = local.div_euclid(MINUTES_OF_DAY.into());
        let minute = local.rem_euclid(MINUTES_OF_DAY.into());
        let (from, to) = (i64::from(self.from), i64::from(self.to));
        if from < to {
            return self.opens_on(day) && (from..to).contains(&minute);
        }
        (self.opens_on(day) && minute >= from) || (self.opens_on(day - 1) && minute < to)
    }

    /// The days are counted from 1970-01-01, which was a Thursday.
    fn opens_on(&self, day: i64) -> bool {
        self.days & (1 << (day + 3).rem_euclid(7)) != 0
    }
}

/// Keeps the problem and yields a value that is never used.
fn push<T: Default>(problems: &mut Vec<String>, problem: String) -> T {
    problems.push(problem);
    T::default()
}

fn minute_of_day(text: &str, field: &str, last: u16) -> Result<u16, String> {
    hours_and_minutes(text)
        .map(|(hours, minutes)| hours * 60 + minutes)
        .filter(|minute| *minute <= last)
        .ok_or_else(|| format!("`{field}` is not a time of day; write it as \"08:00\""))
}

/// `HH:MM` with two digits each, minutes below 60.
fn hours_and_minutes(text: &str) -> Option<(u16, u16)> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |part: &str| (part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit())).then(|| part.parse().ok());
    let (hours, minutes) = (number(hours)??, number(minutes)??);
    (minutes < 60).then_some((hours, minutes))
}

/// One day or a run of days, as bits; `fri-mon` goes round the end of the week.
fn days_of(text: &str) -> Result<u8, String> {
    let bit = |name: &str| DAY_NAMES.iter().position(|day| *day == name);
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (Some(first), Some(last)) = (bit(first), bit(last)) else {
        return Err(format!("{text:?} names no weekday; write \"mon\" to \"sun\", or a run such as \"mon-fri\""));
    };
    let count = (last + 7 - first) % 7;
    Ok((0..=count).fold(0, |bits, step| bits | 1 << ((first + step) % 7)))
}

fn minutes_from_utc(text: &str) -> Result<i16, String> {
    const FURTHEST: i16 = 14 * 60;
    if text == "Z" {
        return Ok(0);
    }
    let signed = text.strip_prefix('+').map(|rest| (1, rest)).or_else(|| text.strip_prefix('-').map(|rest| (-1, rest)));
    signed
        .and_then(|(sign, rest)| hours_and_minutes(rest).map(|hm| (sign, hm)))
        .and_then(|(sign, (hours, minutes))| Some(sign * i16::try_from(hours * 60 + minutes).ok()?))
        .filter(|minutes| minutes.abs() <= FURTHEST)
        .ok_or_else(|| format!("`utc_offset` {text:?} is none; write \"Z\" or one such as \"+01:00\", up to 14 hours"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    /// Monday 2026-04-20, 00:00 UTC.
    const MONDAY: u64 = 1_776_643_200_000;

    #[test]
    fn ip_ranges_match() {
        let table: &[(&str, &[&str], &[&str])] = &[
            ("10.0.0.0/8", &["10.0.0.0", "10.255.255.255"], &["11.0.0.0", "9.255.255.255", "::a00:0"]),
            ("192.168.1.64/26", &["192.168.1.64", "192.168.1.127"], &["192.168.1.63", "192.168.1.128"]),
            ("10.1.2.3", &["10.1.2.3"], &["10.1.2.2"]),
            ("0.0.0.0/0", &["1.2.3.4"], &["::1"]),
            ("2001:db8::/32", &["2001:db8:ffff::1"], &["2001:db9::", "10.0.0.1"]),
            ("::1/128", &["::1"], &["::2"]),
            ("::/0", &["::", "ff::1"], &["1.2.3.4"]),
        ];
        for (range, inside, outside) in table {
            let parsed = IpRange::parse(range).unwrap();
            inside.iter().for_each(|ip| assert!(parsed.contains(ip.parse().unwrap()), "{range} {ip}"));
            outside.iter().for_each(|ip| assert!(!parsed.contains(ip.parse().unwrap()), "{range} {ip}"));
        }
    }

    #[test]
    fn bad_ip_ranges_are_refused() {
        for text in [
            "",
            "vpn",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "10.0.0.1/8",
            "::/129",
            "2001:db8::1/32",
            "10.0.0/8",
            "10.0.0.0/8/8",
            "::ffff:10.0.0.0/104",
            " 10.0.0.0/8",
            "010.0.0.0/8",
            "10.0.0.0/99999999999",
        ] {
            assert!(IpRange::parse(text).is_err(), "{text:?}");
        }
        assert_eq!(
            IpRange::parse("10.1.2.3/8").unwrap_err(),
            "address bits are set after the prefix; write \"10.0.0.0/8\""
        );
    }

    #[test]
    fn spans_are_read() {
        for (text, millis) in [("1ms", 1), ("30s", 30_000), ("15m", 900_000), ("12h", 43_200_000), ("1d", 86_400_000)] {
            assert_eq!(Span::parse(text).unwrap().millis, millis, "{text}");
        }
        for text in ["", "m", "15", "0s", "-1s", "1.5h", "1w", "15 m", "15M", "99999999999999999999d", "36501d", "ä"] {
            assert!(Span::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn windows_open_and_close() {
        let office = TimeWindow::parse(Some(&["mon-fri"]), Some("08:00"), Some("18:00"), Some("+01:00")).unwrap();
        let night = TimeWindow::parse(Some(&["sun"]), Some("22:00"), Some("06:00"), None).unwrap();
        let weekend = TimeWindow::parse(Some(&["sat-sun"]), None, None, Some("-05:30")).unwrap();
        let late = TimeWindow::parse(None, Some("18:00"), Some("00:00"), None).unwrap();
        let table = [
            (&office, 7 * HOUR - 1, false),
            (&office, 7 * HOUR, true),
            (&office, 17 * HOUR - 1, true),
            (&office, 17 * HOUR, false),
            (&office, 4 * DAY + 12 * HOUR, true),
            (&office, 5 * DAY + 12 * HOUR, false),
            (&night, 6 * DAY + 22 * HOUR - 1, false),
            (&night, 6 * DAY + 22 * HOUR, true),
            (&night, 7 * DAY + 6 * HOUR - 1, true),
            (&night, 7 * DAY + 6 * HOUR, false),
            (&night, 5 * HOUR, true),
            (&night, DAY + 5 * HOUR, false),
            (&weekend, 5 * DAY + 5 * HOUR, false),
            (&weekend, 5 * DAY + 5 * HOUR + 30 * MINUTE, true),
            (&weekend, 7 * DAY + 5 * HOUR + 29 * MINUTE, true),
            (&weekend, 7 * DAY + 5 * HOUR + 30 * MINUTE, false),
            (&late, 18 * HOUR, true),
            (&late, DAY - 1, true),
            (&late, DAY, false),
        ];
        for (window, after_monday, inside) in table {
            assert_eq!(window.contains(MONDAY + after_monday), inside, "{window:?} {after_monday}");
        }
        assert!(TimeWindow::parse(Some(&["wed"]), None, None, Some("-01:00")).unwrap().contains(0), "the epoch's eve");
        let _no_instant_overflows = office.contains(u64::MAX);
    }

    #[test]
    fn days_are_read() {
        for (text, bits) in [("mon", 1), ("sun", 64), ("mon-fri", 0b1_1111), ("fri-mon", 0b111_0001), ("tue-tue", 2)] {
            assert_eq!(days_of(text), Ok(bits), "{text}");
        }
        for text in ["", "-", "Mon", "monday", "mon-", "mon-fri-sun", "mon - fri", "1"] {
            assert!(days_of(text).is_err(), "{text}");
        }
    }

    #[test]
    fn all_problems_of_a_window_are_reported() {
        let problems = TimeWindow::parse(Some(&["mo", "fri"]), Some("24:00"), Some("8:00"), Some("CET")).unwrap_err();
        assert_eq!(problems.len(), 4, "{problems:?}");
        assert!(TimeWindow::parse(None, Some("08:00"), Some("08:00"), None).is_err());
        for text in ["", "0800", "08:60", "24:01", "08:0", "+8:00", "08:00:00"] {
            assert!(TimeWindow::parse(None, None, Some(text), None).is_err(), "{text}");
        }
        for text in ["", "01:00", "+1:00", "+14:01", "+00:60", "z", "+01"] {
            assert!(TimeWindow::parse(None, None, None, Some(text)).is_err(), "{text}");
        }
    }
}
