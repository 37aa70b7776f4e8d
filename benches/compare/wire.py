"""A small HTTP/1.1 client for raw requests: what is checked and filled with is, byte for byte, what is measured with."""

import http.client
import selectors
import socket
import time


class WrongAnswer(Exception):
    """A server did not answer as it has to."""


def request(method, target, token=None, body=None):
    """A request as it goes over the wire."""
    lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1"]
    if token:
        lines.append(f"Authorization: Bearer {token}")
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b"")


def exchange(port, raw, timeout=60):
    """Sends one request on a connection of its own: status and body of the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        connection.sendall(raw)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer.status, answer.read()


def wait_until_answered(port, raw, process, seconds=120, statuses=(200,)):
    """Asks until the server answers well. Returns the time when it did."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise WrongAnswer(f"the server ended with {process.returncode}")
        try:
            if exchange(port, raw, timeout=5)[0] in statuses:
                return time.monotonic()
        except OSError:
            pass
        time.sleep(0.001)
    raise WrongAnswer(f"no good answer on port {port} within {seconds} s")


def send_all(port, requests, connections=64):
    """Sends each request over some connections that are kept, again where it is refused; a few times at most."""
    waiting = ((raw, 5) for raw in requests)
    again = []
    selector = selectors.DefaultSelector()

    def send_next(connection, state):
        state["sent"] = again.pop() if again else next(waiting, None)
        state["received"] = bytearray()
        if state["sent"]:
            connection.sendall(state["sent"][0])
        else:
            selector.unregister(connection)
            connection.close()

    for _ in range(connections):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        state = {}
        selector.register(connection, selectors.EVENT_READ, state)
        send_next(connection, state)
    while selector.get_map():
        for key, _ in selector.select():
            chunk, state = key.fileobj.recv(1 << 16), key.data
            if not chunk:
                raise WrongAnswer("the server hung up")
            state["received"] += chunk
            if not is_whole(state["received"]):
                continue
            if not state["received"].startswith(b"HTTP/1.1 20"):
                raw, left = state["sent"]
                if left == 0:
                    raise WrongAnswer(state["received"].decode(errors="replace"))
                again.append((raw, left - 1))
            send_next(key.fileobj, state)


def is_whole(answer):
    """Whether this is all of an answer that says how long it is."""
    head, end, body = bytes(answer).partition(b"\r\n\r\n")
    if not end:
        return False
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return len(body) >= int(value)
    if head.startswith(b"HTTP/1.1 204"):
        return True
    raise WrongAnswer("an answer without a length")
