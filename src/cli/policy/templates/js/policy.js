// The policy `{{name}}`: members of one group may do everything below one path prefix.

import { groups } from "portcullis:policy/principal@0.1.0";
import { note } from "portcullis:policy/diagnostics@0.1.0";

// Filled by `configure`, once. Every request starts from a copy of the memory as it is then.
let settings;

export function configure(text) {
  settings = parse(text);
}

export function evaluate(action, path) {
  if (!path.startsWith(settings.prefix)) return answer("abstain", "no_rule");
  const theirs = groups();
  note(`the groups are: ${theirs.join(", ")}`);
  return theirs.includes(settings.group) ? answer("allow", "in_group", ["group"]) : answer("abstain", "no_rule");
}

function answer(effect, reason, rules = []) {
  return { effect, reason, message: undefined, rules, obligations: [] };
}

// Reads the settings, or throws all that is wrong with them.
function parse(text) {
  const found = { group: "", prefix: "" };
  const problems = [];
  text.split("\n").forEach((line, index) => {
    line = line.trim();
    if (line === "" || line.startsWith("#")) return;
    const at = line.indexOf("=");
    const [key, value] = at < 0 ? [line, ""] : [line.slice(0, at).trim(), line.slice(at + 1).trim()];
    if (Object.hasOwn(found, key)) found[key] = value;
    else problems.push(`line ${index + 1}: there is no key \`${key}\``);
  });
  for (const [key, value] of Object.entries(found)) {
    if (value === "") problems.push(`\`${key}\` is missing`);
  }
  if (problems.length > 0) throw problems;
  return found;
}
