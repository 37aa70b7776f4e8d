// Office rules, in C. What they say is in ../README.md.
//
// The rules of memory: what is handed in belongs to this code, and it frees it; what it answers was allocated, and the
// bindings free it. The bindings are written by `portcullis policy build`.

#include <stdlib.h>
#include <string.h>

#include "settings.h"

// Filled by `configure`, once. Every request starts from a copy of the memory as it is then.
static struct settings settings;

bool exports_policy_configure(text *written, texts *problems) {
  *problems = (texts){0};
  read_settings(*written, &settings, problems);
  return problems->len == 0;
}

static void note(text line) {
  portcullis_policy_diagnostics_note(&line);
  policy_string_free(&line);
}

static bool is_user(void) {
  text kind;
  portcullis_policy_principal_kind(&kind);
  bool user = equal(kind, "user");
  policy_string_free(&kind);
  return user;
}

static bool is_open(void) {
  // 1970 began on a Thursday. A week more, and no offset leads to a time before that.
  uint64_t local = portcullis_policy_context_now() / 60000 + 7 * 1440 + (uint64_t)(int64_t)settings.utc_offset;
  unsigned day = (local / 1440 + 3) % 7, minute = local % 1440;
  char hours[11], minutes[11];
  note(join((const char *[]){"on the office's clock it is ", DAYS[day], " ", decimal(minute / 60, 2, hours), ":",
                             decimal(minute % 60, 2, minutes), NULL}));
  return settings.days[day] && settings.opens <= minute && minute < settings.closes;
}

static bool is_production(text path) {
  return equal(path, "production") || starts_with(path, "production/");
}

// An authentication in the future is one of now: clocks differ a little.
static bool has_fresh_mfa(void) {
  uint64_t authenticated_at, now = portcullis_policy_context_now();
  if (!portcullis_policy_principal_authenticated_at(&authenticated_at)) return false;
  uint64_t age = now > authenticated_at ? now - authenticated_at : 0;
  if (age > settings.mfa_minutes * (uint64_t)60000) return false;
  texts methods;
  portcullis_policy_principal_authentication_methods(&methods);
  bool mfa = contains(methods, (text){.ptr = (uint8_t *)"mfa", .len = 3});
  policy_list_string_free(&methods);
  return mfa;
}

// A tag `owner:user:ada` or `owner:payments` names who may change the secret. One without such a tag has no owners.
static bool may_change(texts groups) {
  static const char prefix[] = "owner:";
  bool owned = false, owner = false;
  texts tags;
  text id;
  portcullis_policy_secret_tags(&tags);
  portcullis_policy_principal_id(&id);
  for (size_t i = 0; i < tags.len; i++) {
    if (!starts_with(tags.ptr[i], prefix)) continue;
    text name = {.ptr = tags.ptr[i].ptr + strlen(prefix), .len = tags.ptr[i].len - strlen(prefix)};
    owned = true;
    owner = owner || same(name, id) || contains(groups, name);
  }
  policy_list_string_free(&tags);
  policy_string_free(&id);
  return !owned || owner;
}

static bool is_member(texts groups) {
  for (size_t i = 0; i < groups.len; i++) {
    if (contains(settings.groups, groups.ptr[i])) return true;
  }
  return false;
}

static policy_decision_t decision(uint8_t effect, const char *reason, const char *rule) {
  policy_decision_t decision = {.effect = effect};
  policy_string_dup(&decision.reason, reason);
  if (rule != NULL) append(&decision.rules, join((const char *[]){rule, NULL}));
  return decision;
}

static policy_decision_t deny(const char *reason, text message, const char *rule) {
  policy_decision_t denial = decision(PORTCULLIS_POLICY_TYPES_EFFECT_DENY, reason, rule);
  denial.message = (policy_option_string_t){.is_some = true, .val = message};
  return denial;
}

static text mfa_message(void) {
  char minutes[11];
  const char *number = decimal(settings.mfa_minutes, 1, minutes);
  return join((const char *[]){"Production needs a second factor of the last ", number, " minutes", NULL});
}

static policy_decision_t contractor(void) {
  policy_decision_t allowed = decision(PORTCULLIS_POLICY_TYPES_EFFECT_ALLOW, "contractor", "contractors");
  portcullis_policy_types_obligation_t *duty = calloc(1, sizeof *duty);
  text field;
  policy_string_dup_n(&field, (const char *)settings.hidden_field.ptr, settings.hidden_field.len);
  policy_string_dup(&duty->kind, "without-fields");
  append(&duty->args, field);
  duty->critical = true;
  allowed.obligations.ptr = duty;
  allowed.obligations.len = 1;
  return allowed;
}

static policy_decision_t decide_by_groups(text action, texts groups) {
  if ((equal(action, "write") || equal(action, "delete")) && !may_change(groups)) {
    return deny("not_owner", join((const char *[]){"Only its owners change this secret", NULL}), "owners");
  }
  if (equal(action, "read") && contains(groups, (text){.ptr = (uint8_t *)"contractors", .len = 11})) {
    return contractor();
  }
  if (is_member(groups)) return decision(PORTCULLIS_POLICY_TYPES_EFFECT_ALLOW, "member", "members");
  return decision(PORTCULLIS_POLICY_TYPES_EFFECT_ABSTAIN, "no_rule", NULL);
}

static policy_decision_t decide(text action, text path) {
  if (is_user()) {
    if (!is_open()) {
      text message = join((const char *[]){"People have access in office hours only", NULL});
      return deny("time_window_violation", message, "office-hours");
    }
    if (is_production(path) && !has_fresh_mfa()) return deny("mfa_required", mfa_message(), "production-mfa");
  }
  texts groups;
  portcullis_policy_principal_groups(&groups);
  policy_decision_t answer = decide_by_groups(action, groups);
  policy_list_string_free(&groups);
  return answer;
}

void exports_policy_evaluate(text *action, text *path, policy_decision_t *answer) {
  *answer = decide(*action, *path);
  policy_string_free(action);
  policy_string_free(path);
}
