"""What is stored and what is asked: paths, values, requests, and what a right answer is."""

import json
import random

from wire import WrongAnswer, request

# A subtree holds 1,000 of 100,000 secrets, so that a wildcard finds as many as a page may hold.
SUBTREES = 100
# How many different requests each kind has: batches of 100 touch a quarter of 100,000 secrets.
DIFFERENT = {"get": 4096, "put": 2048, "batch-1": 4096, "batch-10": 1024, "batch-100": 256, "metadata": 100}
KINDS = list(DIFFERENT)


def secrets(kind, count):
    """How many secrets (or entries) one request returns or writes, where `count` are stored."""
    if kind == "metadata":
        return count // SUBTREES
    return int(kind.removeprefix("batch-")) if kind.startswith("batch") else 1


def path(n):
    """The path of the n-th secret: they go round the subtrees."""
    subtree = n % SUBTREES
    return f"bench/g{subtree % 10}/t{subtree // 10}/s{n // SUBTREES:06}"


def value(n):
    """The n-th secret's value: about 200 bytes of JSON."""
    password = random.Random(n).randbytes(64).hex()
    return {"username": f"app-{n}", "password": password, "host": f"db-{n}.internal", "port": 5432}


def compact(thing):
    return json.dumps(thing, separators=(",", ":")).encode()


class Portcullis:
    """The words of our API, which the floors speak as well."""

    kinds = KINDS

    @staticmethod
    def get(place, token):
        return request("GET", f"/v1/secrets/{place}", token)

    @staticmethod
    def put(place, data, token):
        return request("PUT", f"/v1/secrets/{place}", token, compact({"data": data}))

    @staticmethod
    def batch(places, token):
        return request("POST", "/v1/secrets/batch", token, compact({"paths": places}))

    @staticmethod
    def metadata(subtree, token):
        body = compact({"paths": [f"{subtree}/*"], "expand_wildcards": True, "options": {"limit": 1000}})
        return request("POST", "/v1/secrets/batch/metadata", token, body)

    @staticmethod
    def found(kind, answer):
        if kind == "metadata":
            return len(answer["metadata"])
        if kind.startswith("batch"):
            return sum(1 for secret in answer["secrets"].values() if secret["data"]["password"])
        return 1 if kind == "put" or answer["data"]["password"] else 0


class Floor(Portcullis):
    kinds = [kind for kind in KINDS if kind != "metadata"]


class OpenBao:
    """KV v2 at `secret/`. It has no batch: a batch of N is N GETs."""

    kinds = ["get", "put", "metadata"]

    @staticmethod
    def get(place, token):
        return request("GET", f"/v1/secret/data/{place}", token)

    @staticmethod
    def put(place, data, token):
        return request("POST", f"/v1/secret/data/{place}", token, compact({"data": data}))

    @staticmethod
    def metadata(subtree, token):
        return request("GET", f"/v1/secret/metadata/{subtree}/?scan=true", token)

    @staticmethod
    def found(kind, answer):
        if kind == "metadata":
            return len(answer["data"]["keys"])
        return 1 if kind == "put" or answer["data"]["data"]["password"] else 0


def requests(dialect, kind, count, token):
    """The requests of a kind, spread over `count` stored secrets; the same ones for every server."""
    dice = random.Random(kind)
    for _ in range(DIFFERENT[kind]):
        if kind == "metadata":
            yield dialect.metadata(path(dice.randrange(SUBTREES)).rpartition("/")[0], token)
        elif kind == "get":
            yield dialect.get(path(dice.randrange(count)), token)
        elif kind == "put":
            n = dice.randrange(count)
            yield dialect.put(path(n), value(n), token)
        else:
            yield dialect.batch([path(n) for n in dice.sample(range(count), secrets(kind, count))], token)


def check(dialect, kind, count, status, body):
    """A right answer is a 200 that holds all that was asked for."""
    if status != 200:
        raise WrongAnswer(f"{kind}: {status} {body[:300]!r}")
    found = dialect.found(kind, json.loads(body))
    if found != secrets(kind, count):
        raise WrongAnswer(f"{kind}: {found} of {secrets(kind, count)} in the answer")
