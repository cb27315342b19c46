"""clawctl login: the agent's own link, as its owner can open it from outside."""

import json
import os

import pytest

from clawdeploy.cli import Machine
from clawdeploy.login import public_link

from .conftest import UI_EDGE, Engine, wanted
from .harness import ask, declared, run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="clawctl is root's")
LINK = "http://127.0.0.1:18789/ui/#bootstrapToken=abc&gatewayUrl=ws%3A%2F%2F127.0.0.1%3A18789%2Fui"
PUBLIC = (
    "https://support.bots.example.test/ui/#bootstrapToken=abc"
    "&gatewayUrl=wss%3A%2F%2Fsupport.bots.example.test%2Fui"
)


@pytest.fixture
def bot(machine: Machine) -> str:
    """The id of a bot named support whose agent has a web interface."""
    found: str = declared(machine, wanted(1, name="support", interface="ui", edge=UI_EDGE))[0]["id"]
    return found


def test_the_agents_link_leads_to_the_bots_public_name(machine: Machine, bot: str, engine: Engine) -> None:
    engine.output = json.dumps({"url": "secret", "browserUrl": LINK}).encode()
    assert ask(machine, "login", "support") == {"id": bot, "link": PUBLIC}
    assert engine.ran == [(bot, "agent", "link")]
    assert run(machine, "login", bot).stdout == PUBLIC + "\n"


@pytest.mark.parametrize(
    ("link", "public"),
    [
        ("http://localhost/", "https://b.example/"),
        (
            "HTTP://127.0.0.1:80/x?to=http%3a%2f%2flocalhost%3a80",
            "https://b.example/x?to=https%3A%2F%2Fb.example",
        ),
        ("https://elsewhere.example/127.0.0.1", "https://elsewhere.example/127.0.0.1"),
    ],
)
def test_only_local_addresses_are_replaced(link: str, public: str) -> None:
    assert public_link(link, "https://b.example/") == public


@pytest.mark.parametrize(
    "output", [b"", b"starting ...", b"[]", b"{}", b'{"browserUrl": 1}', b'{"browserUrl": ""}']
)
def test_an_agent_that_makes_no_link_is_not_quoted(
    machine: Machine, bot: str, engine: Engine, output: bytes
) -> None:
    engine.output = output
    error = ask(machine, "login", bot, code=1)["error"]
    assert error["code"] == "login_failed"
    assert "browserUrl is missing" in error["message"]
    assert "starting" not in error["message"]


def test_an_agent_without_a_web_interface_says_so(machine: Machine) -> None:
    plain = declared(machine, wanted(2))[0]["id"]
    assert ask(machine, "login", plain, code=1)["error"]["code"] == "no_login"
