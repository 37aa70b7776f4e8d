"""The settings: lines of `key = value`, empty lines, and lines that begin with `#`."""

import re
from dataclasses import dataclass, field

DAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


@dataclass
class Settings:
    days: list[str] = field(default_factory=list)
    opens: int = 0  # minutes of the day
    closes: int = 0
    utc_offset: int = 0  # minutes
    mfa_minutes: int = 0
    groups: list[str] = field(default_factory=list)
    hidden_field: str = ""


def read_settings(text: str, settings: Settings) -> list[str]:
    """Fills in the settings, and answers all that is wrong with them."""
    problems = []
    given: set[str] = set()
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip()
        if line == "" or line.startswith("#"):
            continue
        problem = read_line(line, settings, given)
        if problem:
            problems.append(f"line {number}: {problem}")
    return problems + [f"`{key}` is missing" for key in KEYS if key not in given]


def read_line(line: str, settings: Settings, given: set[str]) -> str | None:
    key, _, value = (part.strip() for part in line.partition("="))
    if key not in KEYS:
        return f"there is no key `{key}`"
    if key in given:
        return f"{key}: it is given already"
    given.add(key)
    read, wanted = KEYS[key]
    return None if read(settings, value) else f"{key}: {wanted}"


def read_days(settings: Settings, value: str) -> bool:
    settings.days = names(value)
    return all(day in DAYS for day in settings.days)


def read_hours(settings: Settings, value: str) -> bool:
    opens, _, closes = value.partition("-")
    settings.opens, settings.closes = minutes(opens, 1440), minutes(closes, 0)
    return settings.opens < settings.closes


def read_utc_offset(settings: Settings, value: str) -> bool:
    distance = minutes(value[1:], 1440)
    settings.utc_offset = -distance if value.startswith("-") else distance
    return value.startswith(("+", "-")) and distance <= 14 * 60


def read_mfa_minutes(settings: Settings, value: str) -> bool:
    settings.mfa_minutes = int(value) if re.fullmatch(r"[0-9]{1,4}", value) else 0
    return 1 <= settings.mfa_minutes <= 1440


def read_groups(settings: Settings, value: str) -> bool:
    settings.groups = names(value)
    return "" not in settings.groups


def read_hidden_field(settings: Settings, value: str) -> bool:
    settings.hidden_field = value
    return value != ""


def names(value: str) -> list[str]:
    return [name.strip() for name in value.split(",")]


def minutes(text: str, otherwise: int) -> int:
    """`HH:MM`, up to 24:00, in minutes."""
    if not re.fullmatch(r"[0-9]{2}:[0-5][0-9]", text):
        return otherwise
    total = int(text[:2]) * 60 + int(text[3:])
    return total if total <= 1440 else otherwise


# Each key: what reads its value and says whether it is good, and what is wanted.
KEYS = {
    "days": (read_days, "weekdays are wanted, such as mon, tue, fri"),
    "hours": (read_hours, "a span within one day is wanted, such as 08:00-18:00"),
    "utc-offset": (read_utc_offset, "14 hours at most are wanted, such as +01:00"),
    "mfa-minutes": (read_mfa_minutes, "a number from 1 to 1440 is wanted"),
    "groups": (read_groups, "names are wanted, such as developers, operators"),
    "hidden-field": (read_hidden_field, "the name of a field is wanted"),
}
