// Office rules, in JavaScript. What they say is in ../README.md.

import * as principal from "portcullis:policy/principal@0.1.0";
import { now } from "portcullis:policy/context@0.1.0";
import { tags } from "portcullis:policy/secret@0.1.0";
import { note } from "portcullis:policy/diagnostics@0.1.0";
import { DAYS, readSettings } from "./settings.js";

// Filled by `configure`, once. Every request starts from a copy of the memory as it is then.
let settings;

export function configure(text) {
  settings = readSettings(text);
}

export function evaluate(action, path) {
  if (principal.kind() === "user") {
    if (!isOpen()) {
      return deny("time_window_violation", "People have access in office hours only", "office-hours");
    }
    if (path.split("/")[0] === "production" && !hasFreshMfa()) {
      const message = `Production needs a second factor of the last ${settings.mfaMinutes} minutes`;
      return deny("mfa_required", message, "production-mfa");
    }
  }
  const groups = principal.groups();
  if ((action === "write" || action === "delete") && !mayChange(groups)) {
    return deny("not_owner", "Only its owners change this secret", "owners");
  }
  if (action === "read" && groups.includes("contractors")) {
    const duty = { kind: "without-fields", args: [settings.hiddenField], critical: true };
    return decision("allow", "contractor", { rules: ["contractors"], obligations: [duty] });
  }
  if (groups.some((group) => settings.groups.includes(group))) {
    return decision("allow", "member", { rules: ["members"] });
  }
  return decision("abstain", "no_rule");
}

function isOpen() {
  // 1970 began on a Thursday. A week more, and no offset leads to a time before that. The contract's 64-bit numbers are
  // BigInts here.
  const local = Number(now() / 60_000n) + 7 * 1440 + settings.utcOffset;
  const [day, minute] = [(Math.floor(local / 1440) + 3) % 7, local % 1440];
  const twoDigits = (number) => String(number).padStart(2, "0");
  note(`on the office's clock it is ${DAYS[day]} ${twoDigits(Math.floor(minute / 60))}:${twoDigits(minute % 60)}`);
  return settings.days.has(DAYS[day]) && settings.opens <= minute && minute < settings.closes;
}

// An authentication in the future is one of now: clocks differ a little.
function hasFreshMfa() {
  const authenticatedAt = principal.authenticatedAt();
  if (authenticatedAt === undefined) return false;
  const age = now() - authenticatedAt;
  return age <= BigInt(settings.mfaMinutes) * 60_000n && principal.authenticationMethods().includes("mfa");
}

// A tag `owner:user:ada` or `owner:payments` names who may change the secret. One without such a tag has no owners.
function mayChange(groups) {
  const owners = tags().filter((tag) => tag.startsWith("owner:")).map((tag) => tag.slice("owner:".length));
  const id = principal.id();
  return owners.length === 0 || owners.some((owner) => owner === id || groups.includes(owner));
}

function deny(reason, message, rule) {
  return decision("deny", reason, { message, rules: [rule] });
}

function decision(effect, reason, { message, rules = [], obligations = [] } = {}) {
  return { effect, reason, message, rules, obligations };
}
