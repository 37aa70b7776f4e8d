// The settings: lines of `key = value`, empty lines, and lines that begin with `#`.

#pragma once

#include "text.h"

struct settings {
  bool days[7];           // from Monday
  unsigned opens, closes; // minutes of the day
  int utc_offset;         // minutes
  unsigned mfa_minutes;
  texts groups;
  text hidden_field;
};

extern const char *const DAYS[7];

// Fills in the settings, and appends all that is wrong with them to `problems`.
void read_settings(text written, struct settings *settings, texts *problems);
