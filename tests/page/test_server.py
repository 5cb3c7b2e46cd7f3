"""The page's server: it answers its own page alone, and bad input gets the sentence that the command line gives."""

import asyncio
import json
import socket
from typing import Any, NamedTuple
from urllib.parse import unquote

import eight_capitals
import pytest

from realm_min.page import asked, command, learned
from realm_min.page.running import Running

pytest.importorskip("starlette", reason="the extra `page` is not installed")
from realm_min.page import server  # noqa: E402

QUESTION = "what is the capital of Norway?"
JSON = {"content-type": "application/json"}


class Response(NamedTuple):
    status_code: int
    headers: dict[str, str]
    content: bytes

    @property
    def text(self):
        return self.content.decode()

    def json(self):
        return json.loads(self.content)


class Client(NamedTuple):
    """Speaks to an application as a server does (ASGI), without a socket."""

    application: Any

    received: dict[str, str] = {}  # in the place of a request's body

    def send(self, method, path, headers=None, content=b""):
        sent, given = [], {"host": "127.0.0.1:8000"} | (headers or {})
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": unquote(path), "raw_path": path.encode(), "query_string": b"", "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        }  # fmt: skip

        async def receive():
            return self.received or {"type": "http.request", "body": content, "more_body": False}

        async def send(message):
            sent.append(message)

        asyncio.run(self.application(scope, receive, send))
        found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return Response(sent[0]["status"], found, b"".join(message.get("body", b"") for message in sent[1:]))

    def get(self, path, headers=None):
        return self.send("GET", path, headers)

    def post(self, path, headers, content):
        return self.send("POST", path, headers, content)


@pytest.fixture(scope="module")
def model():
    return eight_capitals.open_qa()


@pytest.fixture(scope="module")
def client(model):
    return Client(server.application(Running(model, "eight capitals")))


def ask(client, name="ask", headers=None, **given):
    return client.post(f"/api/{name}", headers={**JSON, **(headers or {})}, content=json.dumps(given).encode())


def test_the_page_loads_nothing_from_elsewhere(client):
    page = client.get("/")
    assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
    assert page.headers["x-content-type-options"] == "nosniff" and page.headers["cache-control"] == "no-store"
    for path in server.FILES.iterdir():
        found = client.get(f"/{path.name}")
        assert found.status_code == 200 and found.content == path.read_bytes()
        assert not [line for line in found.text.split("\n") if "http" in line and "www.w3.org" not in line.lower()]
    for name in ("running.py", "../server.py", "%2e%2e/server.py", "static", ""):
        assert client.get(f"/{name}").status_code == (200 if name == "" else 404)


def test_answers(client, model):
    found = ask(client, question=QUESTION, k=2)
    assert found.status_code == 200 and found.json() == json.loads(json.dumps(asked.ask(model, QUESTION, 2)))
    block = found.json()["blocks"][0]["id"]
    attention = ask(client, "attention", question=QUESTION, block=block, first=1, last=2).json()
    assert len(attention["weights"]) == model.config.num_hidden_layers and attention["last"] == 2
    search = ask(client, "search", question=QUESTION, k=2, compression="int8").json()
    assert [block["id"] for block in search["found"]] == [block["id"] for block in found.json()["blocks"]]
    about = ask(client, "about").json()
    assert about["model"] == "eight capitals" and about["blocks"] == 8 and about["small"]["documents"] == 120


def test_a_lesson_goes_on_from_where_it_was(client):
    text, hidden = learned.FIRST["text"], learned.FIRST["hidden"]
    assert len(ask(client, "words", text=text).json()["words"]) == 7
    assert ask(client, "salient", text=text, seed=-3).json() == {"hidden": [5]}
    three = ask(client, "learn", text=text, hidden=hidden, steps=3).json()
    assert len(three["with"]) == len(three["without"]) == 4 and three["documents"][0] is None
    one = ask(client, "learn", text=text, hidden=hidden, steps=1).json()
    assert one["with"] == three["with"][:2]
    log_p = [view["log_p"] for view in three["with"]]
    assert log_p == sorted(log_p) and log_p[3] - log_p[0] > 0.5
    assert abs(three["without"][3]["log_p"] - log_p[0]) < 0.05
    assert three["without"][0] == three["with"][0] and three["without"][3]["prior"] == three["with"][0]["prior"]
    back = ask(client, "learn", text=text, hidden=hidden, steps=41)
    assert back.status_code == 400 and back.json()["error"].startswith("41 steps were asked for: take 0 to 40")


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example:8000"}, {"host": "127.0.0.1.evil.example"}, {"host": ""}, {"host": "[::1]:8000"},
        {"origin": "http://evil.example"}, {"origin": "http://127.0.0.1:9000"}, {"origin": "null"},
        {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"},
        {"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"}, {"content-type": ""},
    ],
)  # fmt: skip
def test_strangers_are_refused(client, headers):
    found = ask(client, headers=headers, question=QUESTION, k=2)
    assert found.status_code == 403 and set(found.json()) == {"error"}
    if "host" in headers:
        assert (
            client.get("/", headers=headers).status_code == client.get("/page.js", headers=headers).status_code == 403
        )
    if "sec-fetch-site" in headers:  # a link from elsewhere may open the page
        assert client.get("/", headers=headers).status_code == 200


@pytest.mark.parametrize("headers", [{"host": "localhost:9000"}, {"origin": "http://127.0.0.1:8000"}])
def test_the_page_itself_is_not(client, headers):
    assert ask(client, headers=headers, question=QUESTION, k=2).status_code == 200


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("ask", {"question": "  ", "k": 2}, "the question is empty: ask something"),
        ("ask", {"question": "why " * 140, "k": 2}, "the question has 142 wordpieces, the limit is 128: shorten"),
        ("ask", {"question": QUESTION, "k": 9}, "9 blocks were asked for: give a whole number from 1 to 8"),
        ("ask", {"question": QUESTION, "k": True}, "k is 'True': expected int | None"),
        ("ask", {"question": 3, "k": 2}, "question is '3': expected str"),
        ("ask", {"question": QUESTION}, "the request names 'question': expected question, k"),
        ("search", {"question": QUESTION, "k": 2, "compression": "int2"}, "'int2' is no way to store the blocks"),
        ("learn", {"text": "", "hidden": [0], "steps": 0}, "the sentence is empty: type one, or take another"),
        ("learn", {"text": "oslo", "hidden": [[0]], "steps": 0}, "hidden is [[0]]: expected the numbers of words"),
        ("words", {"text": "oslo " * 31}, "the sentence has 31 words and marks, the limit is 30: shorten it"),
    ],
)
def test_bad_input_gets_one_sentence(client, name, given, said):
    found = ask(client, name, **given)
    assert found.status_code == 400
    error = found.json()["error"]
    assert error.startswith(said) and "\n" not in error


@pytest.mark.parametrize(
    ("data", "status", "said"),
    [
        (b"{", 400, "the request is not valid JSON"),
        (b"[1]", 400, "the request holds a list, not a JSON object"),
        (
            b'{"question": ' + b"[" * 5000 + b"]" * 5000 + b', "k": 2}',
            400,
            "the request is not valid JSON (it is nested",
        ),
        (b'{"question": "\xff"}', 400, "the request is not valid JSON"),
        (b'{"question": "' + b"a" * (1 << 16) + b'"}', 413, "the text is longer than 65,536 bytes: shorten it"),
    ],
)
def test_what_is_no_request(client, data, status, said):
    found = client.post("/api/ask", headers=JSON, content=data)
    assert found.status_code == status and found.json()["error"].startswith(said)
    assert client.post("/api/nothing", headers=JSON, content=b"{}").status_code == 404
    assert client.get("/api/ask").status_code == 405


def test_a_client_that_goes_away_in_mid_request_is_no_failure(client):
    class Leaving(Client):
        received = {"type": "http.disconnect"}

    assert Leaving(client.application).post("/api/ask", headers=JSON, content=b"{").status_code == 400


def test_hostile_text_comes_back_as_text(client):
    hostile = "</script><img src=x onerror=alert(1)> \u202e\x1b[2J \ud800 oslo?"
    found = ask(client, question=hostile, k=1)
    assert found.status_code == 200 and found.json()["question"] == hostile
    assert found.headers["content-type"] == "application/json"
    page = ask(client, "save", question=hostile, k=1)
    assert page.status_code == 200 and page.text.count("<img") == 0 and "onerror" in page.text


def test_a_port_that_is_taken():
    with (
        command.listening(0) as listener,
        pytest.raises(OSError, match="cannot be served .*: give another --port, or none"),
    ):
        assert listener.getsockname()[0] == "127.0.0.1"
        command.listening(listener.getsockname()[1])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command.listening(port).close()
