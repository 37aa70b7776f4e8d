"""Portcullis from Python: needs httpx. Prints paths and versions, never a value.

    batch.py [read] [metadata] [startup]     all three if none is named
"""

import os
import sys
from typing import Any

import httpx

A_FEW = [
    "integrations/salesforce/oauth",
    "integrations/scaisend/api-key",
    "integrations/stripe/secret-key",
]
ALL_WE_NEED = [*A_FEW, "infra/db/primary/credentials", "infra/redis/primary/credentials"]


def post(token_variable: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The server's answer, or an exception: a client that goes on without its secrets is worse than one that stops."""
    response = httpx.post(
        os.environ["PORTCULLIS_URL"].rstrip("/") + path,
        headers={"Authorization": f"Bearer {os.environ[token_variable]}"},
        json=body,
        timeout=10.0,
    )
    if response.is_error:
        print(f"HTTP {response.status_code}: {reason(response)}", file=sys.stderr)
    response.raise_for_status()
    return response.json()


def reason(response: httpx.Response) -> str:
    """The error's code, path, message and request id, as far as the answer has them."""
    try:
        error = response.json()["error"]
        where = error.get("details", {}).get("path", "-")
        return f"{error['code']} at {where}: {error['message']} (request {error['request_id']})"
    except (ValueError, KeyError):
        return "no error of Portcullis's own"


def expect(holds: bool, what: str) -> None:
    if not holds:
        raise SystemExit(f"unexpected answer: not {what}")


def read_some() -> None:
    """A few credentials at once. Whatever is denied or missing is in `errors`, next to what was released."""
    options = {"include_metadata": False, "fail_fast": False}
    reply = post("PORTCULLIS_TOKEN", "/v1/secrets/batch", {"paths": A_FEW, "options": options})
    secrets, errors = reply["secrets"], reply["errors"]
    expect(sorted([*secrets, *errors]) == sorted(A_FEW), "every path once")
    expect((reply["retrieved"], reply["failed"]) == (len(secrets), len(errors)), "the counts")
    for path in A_FEW:
        if path in secrets:
            print(f"read {path} version {secrets[path]['version']}")
        else:
            print(f"refused {path} {errors[path]['code']}: {errors[path]['message']}")


def list_some() -> None:
    """What there is below two prefixes, without values: needs no right to read."""
    patterns = ["integrations/salesforce/*", "integrations/stripe/*"]
    reply = post("PORTCULLIS_TOKEN", "/v1/secrets/batch/metadata", {"paths": patterns, "expand_wildcards": True})
    expect(not reply.get("has_more"), "one page")
    for path, about in sorted(reply["metadata"].items()):
        expect("data" not in about, "free of values")
        print(f"metadata {path} version {about['version']}")


def start_up() -> None:
    """All that a service needs, or no start: with fail_fast the first denied or missing path is a 4xx."""
    body = {"paths": ALL_WE_NEED, "options": {"fail_fast": True}}
    secrets = post("PORTCULLIS_STARTUP_TOKEN", "/v1/secrets/batch", body)["secrets"]
    expect(sorted(secrets) == sorted(ALL_WE_NEED), "every path")
    for path in ALL_WE_NEED:
        print(f"loaded {path} version {secrets[path]['version']}")


PARTS = {"read": read_some, "metadata": list_some, "startup": start_up}

if __name__ == "__main__":
    for name in sys.argv[1:] or PARTS:
        PARTS[name]()
