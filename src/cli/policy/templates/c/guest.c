// The policy `{{name}}`: members of one group may do everything below one path prefix.
//
// The rules of memory: what is handed in belongs to this code, and it frees it; what it answers was allocated, and the
// bindings free it. The header is written by the first build. A policy has no files and no console: <stdio.h> is out.

#include <stdlib.h>
#include <string.h>

#include "policy.h"

typedef policy_string_t string;

// Filled by `configure`, once. Every request starts from a copy of the memory as it is then.
static string group, prefix;

static bool starts_with(string text, string start) {
  return text.len >= start.len && memcmp(text.ptr, start.ptr, start.len) == 0;
}

static bool equal(string a, string b) {
  return a.len == b.len && starts_with(a, b);
}

static bool is_in_group(void) {
  policy_list_string_t groups;
  portcullis_policy_principal_groups(&groups);
  bool found = false;
  for (size_t i = 0; i < groups.len; i++) found |= equal(groups.ptr[i], group);
  policy_list_string_free(&groups);
  return found;
}

static void answer(policy_decision_t *decision, uint8_t effect, const char *reason, const char *rule) {
  *decision = (policy_decision_t){.effect = effect};
  policy_string_dup(&decision->reason, reason);
  if (rule == NULL) return;
  decision->rules.ptr = malloc(sizeof(string));
  decision->rules.len = 1;
  policy_string_dup(&decision->rules.ptr[0], rule);
}

void exports_policy_evaluate(string *action, string *path, policy_decision_t *decision) {
  string note;
  bool below = starts_with(*path, prefix);
  policy_string_set(&note, below ? "the path is below the prefix" : "the path is not below the prefix");
  portcullis_policy_diagnostics_note(&note);
  if (below && is_in_group()) {
    answer(decision, PORTCULLIS_POLICY_TYPES_EFFECT_ALLOW, "in_group", "group");
  } else {
    answer(decision, PORTCULLIS_POLICY_TYPES_EFFECT_ABSTAIN, "no_rule", NULL);
  }
  policy_string_free(action);
  policy_string_free(path);
}

static void add_problem(policy_list_string_t *problems, const char *before, const char *key, const char *after) {
  size_t space = strlen(before) + strlen(key) + strlen(after) + 1;
  char *problem = calloc(space, 1);
  strcat(strcat(strcat(problem, before), key), after);
  problems->ptr = realloc(problems->ptr, (problems->len + 1) * sizeof(string));
  policy_string_set(&problems->ptr[problems->len++], problem);
}

static char *trimmed(char *text) {
  text += strspn(text, " \t\r");
  size_t len = strlen(text);
  while (len > 0 && strchr(" \t\r", text[len - 1])) len--;
  text[len] = '\0';
  return text;
}

static void read_line(char *line, policy_list_string_t *problems) {
  line = trimmed(line);
  if (*line == '\0' || *line == '#') return;
  char *equals = strchr(line, '=');
  if (equals != NULL) *equals = '\0';
  char *key = trimmed(line), *value = equals != NULL ? trimmed(equals + 1) : "";
  if (strcmp(key, "group") == 0) {
    policy_string_dup(&group, value);
  } else if (strcmp(key, "prefix") == 0) {
    policy_string_dup(&prefix, value);
  } else {
    add_problem(problems, "there is no key `", key, "`");
  }
}

// Reads the settings, or says all that is wrong with them.
bool exports_policy_configure(string *settings, policy_list_string_t *problems) {
  *problems = (policy_list_string_t){0};
  char *rest = strndup((char *)settings->ptr, settings->len);
  while (rest != NULL) read_line(strsep(&rest, "\n"), problems);
  if (group.len == 0) add_problem(problems, "`", "group", "` is missing");
  if (prefix.len == 0) add_problem(problems, "`", "prefix", "` is missing");
  return problems->len == 0;
}
