"""What a visitor of a bot sees of HAProxy with the role's configuration."""

import http.client
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import aiohttp
import pytest

from tests.ports import loopback
from tests.unit.edge.conftest import Site
from tests.unit.edge.harness import BASE, Answer, Edge, await_condition, connects


def test_a_public_path_reaches_the_bot_of_that_name(edge: Edge) -> None:
    answer = edge.ask("alice", "/health", source="192.0.2.9")
    assert answer.status == 200
    assert answer.json["bot"] == loopback(71, 2)
    assert answer.json["target"] == "/health"
    assert answer.json["headers"]["x-forwarded-for"] == "192.0.2.9"


def test_upper_case_and_a_port_in_the_host_do_not_matter(edge: Edge) -> None:
    assert edge.ask("", "/health", host="ALICE.Bots.Example.test:8443").json["bot"] == loopback(71, 2)


@pytest.mark.parametrize(
    "host",
    [
        BASE,
        f".{BASE}",
        f"nobody.{BASE}",
        f"alice.{BASE}.",
        f"alice.{BASE}.evil.test",
        f"alice.evil.{BASE}",
        f"alice.{BASE.replace('.', 'x')}",
        f"alice{BASE}",
        "alice.evil.test",
        "alice",
        "127.0.0.1",
        f"alice.{BASE}:port",
        f"alice.{BASE}@evil.test",
        f"evil.test/alice.{BASE}",
        f"-alice.{BASE}",
        "",
    ],
)
def test_any_other_host_is_nobody(edge: Edge, host: str) -> None:
    answer = edge.ask("", "/health", host=host)
    # HAProxy 3.0 refuses what is no host name at all before it comes to our rules.
    assert answer.status == 400 or (answer.status, answer.error) == (404, "unknown_bot")


@pytest.mark.parametrize(
    "target",
    [
        "/telegram", "/pair", "/", "/health/", "/Health", "//health", "/health/../telegram", "/./health",
        "/%68ealth", "/health%2f", "/health;x=1", "/webhook/../telegram", "/webhook\\..\\telegram",
        "/webhook%00",
    ],
)  # fmt: skip
def test_only_the_exact_paths_of_the_agent_pass(edge: Edge, target: str) -> None:
    answer = edge.ask("alice", target, token="cg_alice")
    assert (answer.status, answer.error) == (404, "unknown_path")


def test_a_target_with_another_host_in_it_does_not_change_the_bot(edge: Edge) -> None:
    answer = edge.ask("alice", f"http://small.{BASE}/telegram", token="cg_alice")
    assert answer.status in (400, 404)


def test_the_longest_prefix_decides_who_may(edge: Edge) -> None:
    assert edge.ask("ui", "/assets/app.js").status == 200
    assert edge.ask("ui", "/api/list").status == 401
    assert edge.ask("ui", "/api/list", token="cg_ui").status == 200
    assert edge.ask("ui", "/api/open/list").status == 200


@pytest.mark.parametrize(
    "target",
    ["/api/open/../list", "/api/open//list", "/api/open/%2e%2e/list", "/api/open/%2E./x", "/api/open/%2flist",
     "/api/open/\\list", "/api/open/%5Clist"],
)  # fmt: skip
def test_a_disguised_path_matches_no_prefix(edge: Edge, target: str) -> None:
    assert edge.ask("ui", target, token="cg_ui").error == "unknown_path"


def test_the_holder_of_the_token_is_let_in_with_the_agents_own_token(edge: Edge) -> None:
    answer = edge.ask("alice", "/webhook", method="POST", token="cg_alice", body=b'{"message":"hi"}')
    assert answer.status == 200
    assert answer.json["headers"]["authorization"] == "Bearer ci_alice"
    assert answer.json["body"] == '{"message":"hi"}'


def test_the_bearer_scheme_may_be_written_in_any_case(edge: Edge) -> None:
    assert edge.ask("alice", "/webhook", headers={"Authorization": "bEARER cg_alice"}).status == 200


@pytest.mark.parametrize(
    ("query", "left"),
    [
        ("token=cg_alice", ""),
        ("session_id=s1&token=cg_alice&v=2", "?session_id=s1&v=2"),
        ("token=cg_alice&session_id=s1", "?session_id=s1"),
        ("session_id=s1&token=cg_alice", "?session_id=s1"),
        ("token=cg_alice&mytoken=kept&token=other", "?mytoken=kept"),
    ],
)
def test_a_token_in_the_query_is_taken_out_and_the_rest_kept(edge: Edge, query: str, left: str) -> None:
    answer = edge.ask("alice", f"/webhook?{query}")
    assert answer.status == 200
    assert answer.json["target"] == f"/webhook{left}"
    assert answer.json["headers"]["authorization"] == "Bearer ci_alice"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer cg_wrong"},
        {"Authorization": "Bearer cg_small"},  # another bot's
        {"Authorization": "Bearer ci_alice"},  # the internal one
        {"Authorization": "Basic cg_alice"},
        {"Authorization": "Bearer "},
    ],
)
def test_without_this_bots_gateway_token_a_checked_path_is_closed(
    edge: Edge, headers: dict[str, str]
) -> None:
    answer = edge.ask("alice", "/webhook", headers=headers)
    assert (answer.status, answer.error) == (401, "unauthorized")
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_a_wrong_bearer_is_not_saved_by_a_right_query(edge: Edge) -> None:
    assert edge.ask("alice", "/webhook?token=cg_alice", token="cg_wrong").status == 401


def test_a_public_path_never_shows_the_gateway_token_to_the_agent(edge: Edge) -> None:
    answer = edge.ask("alice", "/health?token=cg_alice&x=1", token="cg_alice")
    assert "cg_alice" not in answer.body.decode()
    assert answer.json["target"] == "/health?x=1"


def test_an_agent_that_checks_itself_gets_the_token_as_it_was_sent(edge: Edge) -> None:
    answer = edge.ask("ui", "/chat?token=abc", token="cg_ui")
    assert answer.json["headers"]["authorization"] == "Bearer cg_ui"
    assert answer.json["target"] == "/chat?token=abc"


def test_only_the_allowed_headers_reach_the_bot_and_its_own_name_does_not_come_back(edge: Edge) -> None:
    answer = edge.ask(
        "alice",
        "/webhook",
        token="cg_alice",
        headers={"Cookie": "a=b", "User-Agent": "x" * 500, "X-Real-IP": "1.2.3.4", "Forwarded": "for=1.2.3.4",
                 "X-Forwarded-Host": "evil.test", "Accept": "*/*", "Upgrade": "h2c", "Connection": "Upgrade"},
    )  # fmt: skip
    assert set(answer.json["headers"]) == {
        "host", "authorization", "accept", "connection", "x-forwarded-for", "x-forwarded-proto",
        "x-forwarded-host",
    }  # fmt: skip
    assert answer.json["headers"]["x-forwarded-host"] == f"alice.{BASE}"
    assert answer.json["headers"]["connection"] == "close"
    assert "server" not in answer.headers
    assert "set-cookie" not in answer.headers
    assert answer.headers["x-own"] == "kept"


def test_the_last_forwarded_address_counts_not_the_visitors_own_claim(edge: Edge) -> None:
    answer = edge.ask("alice", "/health", source="10.9.9.9, 192.0.2.77")
    assert answer.json["headers"]["x-forwarded-for"] == "192.0.2.77"


def test_a_request_without_a_client_address_is_refused(edge: Edge) -> None:
    assert edge.ask("alice", "/health", source="nobody").error == "bad_request"


def test_the_longest_body_fits_a_single_read_of_4096_bytes(site: Site) -> None:
    body = b"m" * 3072
    headers = {"Content-Type": "application/json", "Accept": "a" * 300, "User-Agent": "u" * 4000}
    target = "/webhook?session_id=" + "s" * 250
    site.reads.clear()
    answer = site.edge.ask("nully", target, method="POST", token="cg_nully", headers=headers, body=body)
    assert answer.status == 200
    (read,) = site.reads
    head, _, got = read.partition(b"\r\n\r\n")
    assert got == body
    assert b"content-length: 3072" in head


@pytest.mark.parametrize("target", ["/webhook?" + "q" * 1000, "/webhook"])
def test_a_head_that_leaves_no_room_for_the_body_is_refused(site: Site, target: str) -> None:
    headers = {} if "?" in target else {"Accept": "a" * 1000}
    answer = site.edge.ask("nully", target, token="cg_nully", headers=headers)
    assert (answer.status, answer.error) == (431, "headers_too_large")


@pytest.mark.parametrize("size", [3073, 30_000])
def test_a_body_the_bot_cannot_read_is_refused(edge: Edge, size: int) -> None:
    answer = edge.ask("alice", "/webhook", method="POST", token="cg_alice", body=b"m" * size)
    assert (answer.status, answer.error) == (413, "body_too_large")


@pytest.mark.parametrize("parts", [[b"m"], [b"m" * 4000], [b"m" * 1000] * 30])
def test_a_body_of_unknown_length_is_asked_for_its_length(edge: Edge, parts: list[bytes]) -> None:
    for label in ("alice", "ui"):
        answer = edge.ask(label, "/webhook", method="POST", token=f"cg_{label}", body=parts)
        assert (answer.status, answer.error) == (411, "length_required")


def test_a_long_body_passes_where_the_agent_can_read_it(edge: Edge) -> None:
    answer = edge.ask("ui", "/api/upload", method="POST", token="cg_ui", body=b"m" * 200_000)
    assert len(answer.json["body"]) == 200_000


def test_a_suspended_bot_is_closed_to_everybody(edge: Edge) -> None:
    for token in (None, "cg_halted"):
        answer = edge.ask("halted", "/health", token=token)
        assert (answer.status, answer.error) == (503, "suspended")


def test_suspending_takes_effect_at_once_and_ends(edge: Edge) -> None:
    bot, flags = edge.maps["hosts"]["alice"], f"{edge.directory}/maps/flags.map"
    edge.command(f"add map {flags} {bot} suspended")
    try:
        assert edge.ask("alice", "/health").error == "suspended"
    finally:
        edge.command(f"del map {flags} {bot}")
    assert edge.ask("alice", "/health").status == 200


def test_maps_swapped_as_a_whole_at_run_time_are_used(edge: Edge) -> None:
    for name, key, value in (("routes", f"{edge.maps['hosts']['ui']}:/new", "3000,public"),
                             ("prefixes", f"{edge.maps['hosts']['ui']}:/api/", "3000,public")):  # fmt: skip
        path = f"{edge.directory}/maps/{name}.map"
        before = edge.maps[name]
        for entries in (before | {key: value}, before):
            version = edge.command(f"prepare map {path}").split(":")[1].strip()
            lines = "\n".join(f"{k} {v}" for k, v in entries.items())
            edge.command(f"add map @{version} {path} <<\n{lines}\n")
            edge.command(f"commit map @{version} {path}")
            opened = entries is not before
            target, token = ("/new", None) if name == "routes" else ("/api/x", None)
            answer = edge.ask("ui", target, token=token)
            if name == "prefixes":
                assert answer.status == (200 if opened else 401)
            else:
                # Without its exact route the path falls under the prefix "/", where the agent checks.
                assert answer.status == 200


def test_a_bot_that_is_down_or_half_declared_is_said_to_be_so(edge: Edge) -> None:
    assert edge.ask("asleep", "/health").error == "bot_unavailable"
    assert edge.ask("homeless", "/health").error == "bot_unavailable"
    assert edge.ask("planless", "/health").error == "unknown_plan"


def flood(
    edge: Edge, label: str, seconds: float, rate: float, token: str | None = None, source: str | None = None
) -> list[Answer]:
    """Requests at a steady `rate` per second for so many seconds."""
    answers, start = [], time.monotonic()
    for number in range(round(seconds * rate)):
        time.sleep(max(0.0, start + number / rate - time.monotonic()))
        answers.append(edge.ask(label, "/webhook", token=token, source=source))
    return answers


def test_a_flood_costs_its_maker_and_nobody_else(edge: Edge) -> None:
    # The plan: 5 per second, burst 20. In 3 s of 40 per second: 20 + 5 x 3 = 35.
    with ThreadPoolExecutor(4) as pool:
        holder = pool.submit(flood, edge, "small", 3, 40, token="cg_small")
        stranger = pool.submit(flood, edge, "neighbour", 3, 40, source="192.0.2.66")
        guesser = pool.submit(flood, edge, "neighbour", 3, 40, source="192.0.2.67", token="cg_small")
        neighbour = pool.submit(flood, edge, "neighbour", 3, 4, token="cg_neighbour")
    served = [a for a in holder.result() if a.status == 200]
    refused = [a for a in holder.result() if a.status == 429]
    assert len(served) + len(refused) == 120
    assert 33 <= len(served) <= 38
    assert {a.error for a in refused} == {"too_many_requests"}
    assert {a.headers["retry-after"] for a in refused} == {"1"}
    # Strangers are told 401 as long as their own allowance (10 per second, burst 60) lasts: 60 + 10 x 3 = 90.
    for answers in (stranger.result(), guesser.result()):
        assert 86 <= sum(a.status == 401 for a in answers) <= 94
        assert {a.status for a in answers} == {401, 429}
    assert {a.status for a in neighbour.result()} == {200}


def test_a_browser_may_load_a_web_interface_of_many_files_at_once(edge: Edge) -> None:
    source = "192.0.2.70"
    with ThreadPoolExecutor(40) as pool:
        files = list(pool.map(lambda number: edge.ask("ui", f"/{number}.js", source=source), range(250)))
    assert {answer.status for answer in files} == {200}
    # That does not make it any less of a stranger elsewhere, and has an end.
    strange = [edge.ask("ui", "/api/list", source=source).status for _ in range(90)]
    assert strange[0] == 401
    assert 429 in strange
    with ThreadPoolExecutor(8) as pool:
        more = list(pool.map(lambda number: edge.ask("ui", f"/{number}.js", source=source), range(250)))
    assert 429 in {answer.status for answer in more}


def test_one_ipv6_network_is_one_stranger(edge: Edge) -> None:
    answers = [edge.ask("alice", "/webhook", source=f"2001:db8:1:2::{number:x}") for number in range(90)]
    assert sum(a.status == 429 for a in answers) >= 20
    assert edge.ask("alice", "/webhook", source="2001:db8:1:3::1").status == 401


def open_websocket(edge: Edge, label: str, token: str | None, source: str = "192.0.2.1") -> socket.socket:
    """The raw connection of a WebSocket handshake; the first bytes of its answer are still to be read."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(10)
    connection.connect(edge.socket)
    lines = [
        "GET /ws HTTP/1.1", f"Host: {label}.{BASE}", f"X-Forwarded-For: {source}", "Upgrade: websocket",
        "Connection: Upgrade", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ]  # fmt: skip
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    return connection


def status_of(connection: socket.socket) -> int:
    return int(connection.recv(4096).split()[1])


def test_websockets_count_as_open_requests_of_the_bot(edge: Edge) -> None:
    opened = [open_websocket(edge, "narrow", "cg_narrow") for _ in range(3)]
    try:
        assert [status_of(connection) for connection in opened] == [101] * 3
        refused = edge.ask("narrow", "/webhook", token="cg_narrow")
        assert (refused.status, refused.error) == (429, "too_many_connections")
        # Strangers have connections of their own, and so has the bot next door.
        assert edge.ask("narrow", "/health").status == 200
        assert edge.ask("alice", "/webhook", token="cg_alice").status == 200
    finally:
        for connection in opened:
            connection.close()
    await_condition(
        lambda: edge.ask("narrow", "/webhook", token="cg_narrow").status == 200, "end of the WebSockets"
    )


def test_strangers_slow_requests_do_not_use_up_the_holders_connections(edge: Edge) -> None:
    def trickle(number: int) -> socket.socket:
        """A stranger's request whose body never ends."""
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(edge.socket)
        lines = [
            "POST /api/open/x HTTP/1.1",
            f"Host: ui.{BASE}",
            f"X-Forwarded-For: 192.0.2.{number}",
            "Content-Length: 9",
        ]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        return connection

    held = [trickle(200) for _ in range(8)]
    try:
        await_condition(
            lambda: edge.ask("ui", "/api/open/x", source="192.0.2.200").status == 429,
            "the limit of one stranger",
        )
        assert edge.ask("ui", "/api/open/x", source="192.0.2.201").status == 200
        # Whoever loads the web interface from that address meanwhile does not notice.
        assert edge.ask("ui", "/chat", source="192.0.2.200").status == 200
        assert edge.ask("ui", "/api/list", token="cg_ui").status == 200
    finally:
        for connection in held:
            connection.close()


async def test_a_websocket_talks_through_with_the_token_in_the_query(edge: Edge) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(edge.socket)) as session:
        headers = {"X-Forwarded-For": "192.0.2.5"}
        url = f"http://alice.{BASE}/ws?session_id=s1&token="
        async with session.ws_connect(url + "cg_alice", headers=headers) as websocket:
            for text in ("hello", "again"):
                await websocket.send_str(text)
                assert await websocket.receive_str(timeout=5) == f"{loopback(71, 2)}: {text}"
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(url + "cg_wrong", headers=headers)
        assert refused.value.status == 401


def test_a_request_that_never_ends_is_given_up_without_troubling_the_bot(site: Site) -> None:
    site.reads.clear()
    with closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.settimeout(15)
        connection.connect(site.edge.socket)
        connection.sendall(
            f"POST /webhook HTTP/1.1\r\nHost: nully.{BASE}\r\nX-Forwarded-For: 192.0.2.8\r\n"
            "Authorization: Bearer cg_nully\r\nContent-Length: 100\r\n\r\nhalf".encode()
        )
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")
    assert site.reads == []


def test_certificates_are_allowed_for_bots_that_exist_and_for_nobody_else(edge: Edge) -> None:
    def ask(name: str) -> int:
        with closing(
            http.client.HTTPConnection("127.0.0.1", edge.settings["edge_ask_port"], timeout=5)
        ) as asked:
            asked.request("GET", f"/?domain={name}")
            return asked.getresponse().status

    assert ask(f"alice.{BASE}") == 200
    assert ask(BASE) == 200
    for name in (f"nobody.{BASE}", f"x.alice.{BASE}", "alice.evil.test", "", f"alice.{BASE}.evil.test"):
        assert ask(name) == 404


def test_the_access_log_names_bot_path_and_status_but_no_query_and_no_token(edge: Edge) -> None:
    edge.ask("alice", "/webhook?token=cg_alice&note=private", token=None)
    edge.ask("alice", "/webhook?note=private", token="cg_alice")
    bot = edge.maps["hosts"]["alice"]

    def lines() -> list[dict[str, object]]:
        return [json.loads(line) for line in edge.log.splitlines() if line.startswith('{"bot"')]

    await_condition(lambda: len(lines()) > 1, "the access log")
    last = [
        line
        for line in lines()
        if line["bot"] == bot and line["path"] == "/webhook" and line["who"] == "holder"
    ]
    assert last
    assert {"status", "ms"} <= set(last[-1])
    assert "private" not in edge.log
    assert "cg_" not in edge.log
    assert "ci_" not in edge.log


def test_bots_get_no_connection_that_stays_open(edge: Edge) -> None:
    # The bot keeps connections alive when it may; the edge tells it not to and closes its own side.
    assert edge.ask("alice", "/health").json["headers"]["connection"] == "close"
    assert connects((loopback(71, 2), 3000))


class TestPathMode:
    """Without a base domain the first path segment names the bot and all bots share one origin."""

    HOST = "203.0.113.7"

    def test_the_bots_name_is_cut_off(self, path_edge: Edge) -> None:
        answer = path_edge.ask("", "/alice/health?x=1", host=self.HOST)
        assert answer.json["target"] == "/health?x=1"
        assert answer.json["bot"] == loopback(72, 2)

    @pytest.mark.parametrize(
        "target", ["/", "/alice", "/alice/", "//alice/health", "/nobody/health", "/health",
                   "/../alice/health", "/alice//health", "/alice/../small/health", "/Alice/health",
                   "/alice/telegram"],
    )  # fmt: skip
    def test_other_paths_are_nobody(self, path_edge: Edge, target: str) -> None:
        assert path_edge.ask("", target, host=self.HOST).status == 404

    @pytest.mark.parametrize("host", ["203.0.113.8", f"alice.{BASE}", "203x0.113.7"])
    def test_other_hosts_are_nobody(self, path_edge: Edge, host: str) -> None:
        assert path_edge.ask("", "/alice/health", host=host).error == "unknown_bot"

    def test_the_token_is_checked_and_answers_cannot_act_as_pages(self, path_edge: Edge) -> None:
        assert path_edge.ask("", "/alice/webhook", host=self.HOST).status == 401
        assert path_edge.ask("", "/alice/webhook", host=self.HOST, token="cg_small").status == 401
        answer = path_edge.ask("", "/alice/webhook", host=self.HOST, token="cg_alice")
        assert answer.json["headers"]["authorization"] == "Bearer ci_alice"
        assert answer.headers["content-security-policy"] == "sandbox"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "set-cookie" not in answer.headers
