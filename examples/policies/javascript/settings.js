// The settings: lines of `key = value`, empty lines, and lines that begin with `#`.

export const DAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

// Each key: what reads its value, with `undefined` for a bad one, and what is wanted.
const KEYS = {
  days: [readDays, "weekdays are wanted, such as mon, tue, fri"],
  hours: [readHours, "a span within one day is wanted, such as 08:00-18:00"],
  "utc-offset": [readUtcOffset, "14 hours at most are wanted, such as +01:00"],
  "mfa-minutes": [readMfaMinutes, "a number from 1 to 1440 is wanted"],
  groups: [readGroups, "names are wanted, such as developers, operators"],
  "hidden-field": [readHiddenField, "the name of a field is wanted"],
};

// Reads the settings, or throws all that is wrong with them.
export function readSettings(text) {
  const settings = {};
  const problems = [];
  const given = new Set();
  text.split("\n").forEach((line, index) => {
    line = line.trim();
    if (line === "" || line.startsWith("#")) return;
    const problem = readLine(line, settings, given);
    if (problem) problems.push(`line ${index + 1}: ${problem}`);
  });
  for (const key of Object.keys(KEYS)) {
    if (!given.has(key)) problems.push(`\`${key}\` is missing`);
  }
  if (problems.length > 0) throw problems;
  return settings;
}

function readLine(line, settings, given) {
  const at = line.indexOf("=");
  const [key, value] = at < 0 ? [line, ""] : [line.slice(0, at).trim(), line.slice(at + 1).trim()];
  if (!Object.hasOwn(KEYS, key)) return `there is no key \`${key}\``;
  if (given.has(key)) return `${key}: it is given already`;
  given.add(key);
  const [read, wanted] = KEYS[key];
  const found = read(value);
  if (found === undefined) return `${key}: ${wanted}`;
  Object.assign(settings, found);
}

function readDays(value) {
  const days = value.split(",").map((day) => day.trim());
  if (days.every((day) => DAYS.includes(day))) return { days: new Set(days) };
}

function readHours(value) {
  const [opens, closes, ...rest] = value.split("-").map(minutes);
  if (rest.length === 0 && opens < closes) return { opens, closes };
}

function readUtcOffset(value) {
  const distance = minutes(value.slice(1));
  if (distance > 14 * 60) return;
  if (value.startsWith("+") && distance >= 0) return { utcOffset: distance };
  if (value.startsWith("-") && distance >= 0) return { utcOffset: -distance };
}

function readMfaMinutes(value) {
  const mfaMinutes = number(value);
  if (mfaMinutes >= 1 && mfaMinutes <= 1440) return { mfaMinutes };
}

function readGroups(value) {
  const groups = value.split(",").map((name) => name.trim());
  if (!groups.includes("")) return { groups };
}

function readHiddenField(hiddenField) {
  if (hiddenField !== "") return { hiddenField };
}

// `HH:MM`, up to 24:00, in minutes.
function minutes(text) {
  if (!/^\d\d:\d\d$/.test(text)) return;
  const [hours, minutes] = text.split(":").map(Number);
  if (minutes < 60 && hours * 60 + minutes <= 1440) return hours * 60 + minutes;
}

// One to four digits.
function number(text) {
  if (/^\d{1,4}$/.test(text)) return Number(text);
}
