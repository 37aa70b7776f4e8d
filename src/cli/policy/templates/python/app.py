"""The policy `{{name}}`: members of one group may do everything below one path prefix."""

import wit_world
from componentize_py_types import Err
from wit_world.imports import principal
from wit_world.imports.diagnostics import note
from wit_world.imports.types import Decision, Effect

# Filled by `configure`, once. Every request starts from a copy of the memory as it is then.
settings: dict[str, str] = {}


class WitWorld(wit_world.WitWorld):
    def configure(self, text: str) -> None:
        settings.update(parse(text))

    def evaluate(self, action: str, path: str) -> Decision:
        if not path.startswith(settings["prefix"]):
            return answer(Effect.ABSTAIN, "no_rule")
        groups = principal.groups()
        note(f"the groups are: {', '.join(groups)}")
        if settings["group"] in groups:
            return answer(Effect.ALLOW, "in_group", ["group"])
        return answer(Effect.ABSTAIN, "no_rule")


def answer(effect: Effect, reason: str, rules: list[str] | None = None) -> Decision:
    return Decision(effect=effect, reason=reason, message=None, rules=rules or [], obligations=[])


def parse(text: str) -> dict[str, str]:
    """Reads the settings, or raises all that is wrong with them."""
    found = {"group": "", "prefix": ""}
    problems = []
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip()
        if line == "" or line.startswith("#"):
            continue
        key, _, value = (part.strip() for part in line.partition("="))
        if key in found:
            found[key] = value
        else:
            problems.append(f"line {number}: there is no key `{key}`")
    problems += [f"`{key}` is missing" for key, value in found.items() if value == ""]
    if problems:
        raise Err(problems)
    return found
