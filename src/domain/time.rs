//! Instants and lengths of time, as the API writes them and as the store keeps them.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Serialize, Serializer};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// An instant in microseconds since 1970-01-01 UTC. Written as RFC 3339 with six decimals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

impl Timestamp {
    /// From microseconds since the Unix epoch.
    #[must_use]
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since the Unix epoch.
    #[must_use]
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// Whole milliseconds since the Unix epoch; zero before it.
    #[must_use]
    pub fn unix_millis(self) -> u64 {
        u64::try_from(self.0.div_euclid(1_000)).unwrap_or(0)
    }

    /// Whole seconds since the Unix epoch.
    #[must_use]
    pub const fn unix_seconds(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    /// This instant and a length of time after it; the end of time where that overflows.
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(span.as_micros()).unwrap_or(i64::MAX)))
    }

    /// This instant and a length of time before it; the beginning of time where that overflows.
    #[must_use]
    pub fn minus(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(span.as_micros()).unwrap_or(i64::MAX)))
    }

    /// How long after `earlier` this is; zero where it is not after it.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000);
        let Some(at) = at.ok().filter(|at| at.year() >= 0) else {
            return f.write_str("9999-12-31T23:59:59.999999Z");
        };
        let (year, month, day) = at.to_calendar_date();
        let (hour, minute, second, micros) = at.to_hms_micro();
        let fields = [
            year.unsigned_abs(),
            u8::from(month).into(),
            day.into(),
            hour.into(),
            minute.into(),
            second.into(),
            micros,
        ];
        let mut text = *b"0000-00-00T00:00:00.000000Z";
        for (field, value) in text.split_mut(|byte| !byte.is_ascii_digit()).zip(fields) {
            write_decimal(field, value);
        }
        f.write_str(str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

/// Fills the field with the number's last digits.
fn write_decimal(field: &mut [u8], mut number: u32) {
    for digit in field.iter_mut().rev() {
        *digit = b'0' + u8::try_from(number % 10).unwrap_or_default();
        number /= 10;
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for Timestamp {
    type Err = time::error::Parse;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let micros = OffsetDateTime::parse(text, &Rfc3339)?.unix_timestamp_nanos() / 1_000;
        Ok(Self(i64::try_from(micros).unwrap_or(i64::MAX)))
    }
}

impl<'de> serde::Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        let wanted = "an instant as RFC 3339 writes it is wanted, such as 2026-03-02T09:00:00Z";
        text.parse().map_err(|_| serde::de::Error::custom(wanted))
    }
}

/// 100 years, in milliseconds: beyond that a limit is a mistake, and no instant can overflow.
const LONGEST: u64 = 100 * 365 * 86_400_000;

/// A length of time as people write it: a whole number and one of `s`, `m`, `h`, `d` (`15m`, `48h`, `90d`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

/// A text that is not a [`Span`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a duration is a whole number above zero and one of ms, s, m, h, d, such as 15m, 48h or 90d")]
pub struct InvalidDuration;

impl FromStr for Span {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at_checked(digits).ok_or(InvalidDuration)?;
        let number: u64 = number.parse().map_err(|_| InvalidDuration)?;
        let millis = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(InvalidDuration),
        };
        match number.checked_mul(millis) {
            Some(total @ 1..=LONGEST) => Ok(Self(Duration::from_millis(total))),
            _ => Err(InvalidDuration),
        }
    }
}

impl<'de> serde::Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_and_reads_rfc_3339() {
        let text = "2026-04-20T08:09:10.000123Z";
        assert_eq!(text.parse::<Timestamp>().unwrap().to_string(), text);
        assert_eq!("1970-01-01T01:00:00+01:00".parse::<Timestamp>().unwrap(), Timestamp::from_micros(0));
        assert!("yesterday".parse::<Timestamp>().is_err());
    }

    proptest::proptest! {
        /// Of the years from 0 to 9999.
        #[test]
        fn reads_what_it_wrote(micros in -62_167_219_200_000_000_i64..=253_402_300_799_999_999) {
            let text = Timestamp::from_micros(micros).to_string();
            assert_eq!(text.len(), 27, "{text}");
            assert_eq!(text.parse(), Ok(Timestamp::from_micros(micros)), "{text}");
        }
    }

    #[test]
    fn an_instant_without_a_year_of_four_digits_is_written_as_the_last_one() {
        for micros in [i64::MIN, -62_167_219_200_000_001, 253_402_300_800_000_000, i64::MAX] {
            assert_eq!(Timestamp::from_micros(micros).to_string(), "9999-12-31T23:59:59.999999Z");
        }
    }

    #[test]
    fn reads_spans() {
        assert_eq!("15m".parse::<Span>().unwrap().0, Duration::from_mins(15));
        assert_eq!("90d".parse::<Span>().unwrap().0, Duration::from_hours(90 * 24));
        for text in ["", "m", "15", "0s", "-1s", "1.5h", "1w", "15 m", "99999999999d", "36501d"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }
}
