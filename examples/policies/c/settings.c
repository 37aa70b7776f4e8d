#include "settings.h"

#include <ctype.h>
#include <string.h>

const char *const DAYS[7] = {"mon", "tue", "wed", "thu", "fri", "sat", "sun"};

static char *trimmed(char *text) {
  while (isspace((unsigned char)*text)) text++;
  size_t len = strlen(text);
  while (len > 0 && isspace((unsigned char)text[len - 1])) len--;
  text[len] = '\0';
  return text;
}

// One to four digits; -1 for anything else.
static int number(const char *digits) {
  size_t len = strspn(digits, "0123456789");
  if (len < 1 || len > 4 || digits[len] != '\0') return -1;
  int value = 0;
  for (; *digits != '\0'; digits++) value = value * 10 + (*digits - '0');
  return value;
}

// `HH:MM`, up to 24:00, in minutes; -1 for anything else.
static int minutes(char *clock) {
  if (strlen(clock) != 5 || clock[2] != ':') return -1;
  clock[2] = '\0';
  int hours = number(clock), minutes = number(clock + 3);
  bool good = hours >= 0 && minutes >= 0 && minutes < 60 && hours * 60 + minutes <= 1440;
  return good ? hours * 60 + minutes : -1;
}

static bool read_days(struct settings *settings, char *value) {
  while (value != NULL) {
    const char *name = trimmed(strsep(&value, ","));
    size_t day = 0;
    while (day < 7 && strcmp(DAYS[day], name) != 0) day++;
    if (day == 7) return false;
    settings->days[day] = true;
  }
  return true;
}

static bool read_hours(struct settings *settings, char *value) {
  char *opens = strsep(&value, "-");
  if (value == NULL) return false;
  int from = minutes(opens), to = minutes(value);
  if (from < 0 || from >= to) return false;
  settings->opens = (unsigned)from;
  settings->closes = (unsigned)to;
  return true;
}

static bool read_utc_offset(struct settings *settings, char *value) {
  if (*value != '+' && *value != '-') return false;
  int distance = minutes(value + 1);
  settings->utc_offset = *value == '-' ? -distance : distance;
  return distance >= 0 && distance <= 14 * 60;
}

static bool read_mfa_minutes(struct settings *settings, char *value) {
  int minutes = number(value);
  settings->mfa_minutes = (unsigned)minutes;
  return minutes >= 1 && minutes <= 1440;
}

static bool read_groups(struct settings *settings, char *value) {
  while (value != NULL) {
    const char *name = trimmed(strsep(&value, ","));
    if (*name == '\0') return false;
    append(&settings->groups, join((const char *[]){name, NULL}));
  }
  return true;
}

static bool read_hidden_field(struct settings *settings, char *value) {
  settings->hidden_field = join((const char *[]){value, NULL});
  return *value != '\0';
}

// Each key: what reads its value and says whether it is good, and what is wanted.
static const struct {
  const char *name;
  bool (*read)(struct settings *settings, char *value);
  const char *wanted;
} KEYS[] = {
    {"days", read_days, "weekdays are wanted, such as mon, tue, fri"},
    {"hours", read_hours, "a span within one day is wanted, such as 08:00-18:00"},
    {"utc-offset", read_utc_offset, "14 hours at most are wanted, such as +01:00"},
    {"mfa-minutes", read_mfa_minutes, "a number from 1 to 1440 is wanted"},
    {"groups", read_groups, "names are wanted, such as developers, operators"},
    {"hidden-field", read_hidden_field, "the name of a field is wanted"},
};
enum { KEY_COUNT = sizeof KEYS / sizeof KEYS[0] };

static void add_problem(texts *problems, unsigned line, const char *a, const char *b, const char *c) {
  char digits[11];
  append(problems, join((const char *[]){"line ", decimal(line, 1, digits), ": ", a, b, c, NULL}));
}

static void read_line(char *line, unsigned number, struct settings *settings, bool given[], texts *problems) {
  char *equals = strchr(line, '=');
  if (equals != NULL) *equals = '\0';
  const char *name = trimmed(line);
  char *value = equals != NULL ? trimmed(equals + 1) : line + strlen(line);
  size_t key = 0;
  while (key < KEY_COUNT && strcmp(KEYS[key].name, name) != 0) key++;
  if (key == KEY_COUNT) {
    add_problem(problems, number, "there is no key `", name, "`");
  } else if (given[key]) {
    add_problem(problems, number, name, ": ", "it is given already");
  } else {
    given[key] = true;
    if (!KEYS[key].read(settings, value)) add_problem(problems, number, name, ": ", KEYS[key].wanted);
  }
}

void read_settings(text written, struct settings *settings, texts *problems) {
  bool given[KEY_COUNT] = {false};
  char *rest = strndup((const char *)written.ptr, written.len);
  for (unsigned number = 1; rest != NULL; number++) {
    char *line = trimmed(strsep(&rest, "\n"));
    if (*line != '\0' && *line != '#') read_line(line, number, settings, given, problems);
  }
  for (size_t key = 0; key < KEY_COUNT; key++) {
    if (!given[key]) append(problems, join((const char *[]){"`", KEYS[key].name, "` is missing", NULL}));
  }
}
