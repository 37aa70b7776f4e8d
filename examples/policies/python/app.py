"""Office rules, in Python. What they say is in ../README.md."""

import wit_world
from componentize_py_types import Err
from wit_world.imports import context, principal, secret
from wit_world.imports.diagnostics import note
from wit_world.imports.types import Decision, Effect, Obligation

from settings import DAYS, Settings, read_settings

# Filled by `configure`, once. Every request starts from a copy of the memory as it is then.
settings = Settings()


class WitWorld(wit_world.WitWorld):
    def configure(self, text: str) -> None:
        problems = read_settings(text, settings)
        if problems:
            raise Err(problems)

    def evaluate(self, action: str, path: str) -> Decision:
        if principal.kind() == "user":
            if not is_open():
                return deny("time_window_violation", "People have access in office hours only", "office-hours")
            if path.split("/")[0] == "production" and not has_fresh_mfa():
                message = f"Production needs a second factor of the last {settings.mfa_minutes} minutes"
                return deny("mfa_required", message, "production-mfa")
        groups = principal.groups()
        if action in ("write", "delete") and not may_change(groups):
            return deny("not_owner", "Only its owners change this secret", "owners")
        if action == "read" and "contractors" in groups:
            duty = Obligation(kind="without-fields", args=[settings.hidden_field], critical=True)
            return decision(Effect.ALLOW, "contractor", rules=["contractors"], obligations=[duty])
        if any(group in settings.groups for group in groups):
            return decision(Effect.ALLOW, "member", rules=["members"])
        return decision(Effect.ABSTAIN, "no_rule")


def is_open() -> bool:
    # 1970 began on a Thursday.
    days, minute = divmod(context.now() // 60_000 + settings.utc_offset, 1440)
    day = DAYS[(days + 3) % 7]
    note(f"on the office's clock it is {day} {minute // 60:02}:{minute % 60:02}")
    return day in settings.days and settings.opens <= minute < settings.closes


def has_fresh_mfa() -> bool:
    """An authentication in the future is one of now: clocks differ a little."""
    authenticated_at = principal.authenticated_at()
    if authenticated_at is None:
        return False
    age = context.now() - authenticated_at
    return age <= settings.mfa_minutes * 60_000 and "mfa" in principal.authentication_methods()


def may_change(groups: list[str]) -> bool:
    """A tag `owner:user:ada` or `owner:payments` names who may change the secret. Without one it has no owners."""
    owners = [tag.removeprefix("owner:") for tag in secret.tags() if tag.startswith("owner:")]
    theirs = [principal.id(), *groups]
    return not owners or any(owner in theirs for owner in owners)


def deny(reason: str, message: str, rule: str) -> Decision:
    return decision(Effect.DENY, reason, message, [rule])


def decision(
    effect: Effect,
    reason: str,
    message: str | None = None,
    rules: list[str] | None = None,
    obligations: list[Obligation] | None = None,
) -> Decision:
    return Decision(effect, reason, message, rules or [], obligations or [])
