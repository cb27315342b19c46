"""Debian 12: refused while something is wrong, then prepared and deployed on like Debian 13."""

import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import lab
from tests.customer import TelegramUser, internet
from tests.e2e.conftest import result_of, telegram_token
from tests.playbooks import ENV_FILE, ROOT, Run, run_playbook, write_env
from tests.standin.build import Image

UBUNTU = "ID=ubuntu NAME=Ubuntu VERSION_ID=24.04 PRETTY_NAME=Ubuntu"
TOKEN = telegram_token(7_610_000_001)


@pytest.fixture(scope="module")
def bookworm() -> Iterator[lab.Vps]:
    """A virgin VPS with Debian 12."""
    lab.down("vps12")
    vps = lab.up("vps12")
    write_env(ENV_FILE | {"BASE_DOMAIN": vps.host.domain})
    yield vps
    write_env()
    lab.down("vps12")


@pytest.fixture(scope="module")
def before(bookworm: lab.Vps) -> str:
    """What was installed on it."""
    return packages(bookworm)


def prepare(**variables: Any) -> Run:
    return run_playbook(ROOT / "playbooks" / "prepare_host.yml", lab.INVENTORY, variables, host="vps12")


def deploy(image: Image, **variables: Any) -> Run:
    standin = {"bot_image": image.tag, "bot_image_archive": image.archive, "token": TOKEN}
    return run_playbook(ROOT / "deploy_bot.yml", lab.INVENTORY, standin | variables, host="vps12")


def packages(vps: lab.Vps) -> str:
    """What is installed: a refused prepare_host leaves it as it is."""
    return vps.exec("dpkg-query", "--show")


def test_a_host_that_is_not_prepared_is_refused(bookworm: lab.Vps, before: str, image: Image) -> None:
    run = deploy(image)
    assert run.returncode != 0
    assert "prepare_host" in run.output
    assert run.changed == 0


def test_a_port_that_something_else_holds_is_named_before_anything_changes(
    bookworm: lab.Vps, before: str
) -> None:
    bookworm.exec("systemd-run", "--unit=squatter", "python3", "-m", "http.server", "443")
    bookworm.exec("sh", "-c", "until ss -ltn | grep -q ':443 '; do :; done")
    try:
        run = prepare()
    finally:
        bookworm.exec("systemctl", "stop", "squatter")
    assert run.returncode != 0
    assert re.search(r"port 443 by python3", run.output)
    assert packages(bookworm) == before


def test_another_system_is_refused(bookworm: lab.Vps, before: str) -> None:
    release = bookworm.exec("cat", "/usr/lib/os-release")
    try:
        bookworm.exec("sh", "-c", f"printf '%s\\n' {UBUNTU} >/usr/lib/os-release")
        run = prepare()
    finally:
        bookworm.exec("sh", "-c", f"cat >/usr/lib/os-release <<'END'\n{release}\nEND")
    assert run.returncode != 0
    assert "Ubuntu" in run.output
    assert packages(bookworm) == before


async def test_it_is_prepared_and_a_bot_answers_on_it(
    bookworm: lab.Vps, image: Image, tmp_path: Path
) -> None:
    prepare().check()
    assert prepare().check().changed == 0
    result = tmp_path / "bot.json"
    deploy(image, owner="4242", result_file=str(result)).check()
    card = result_of(result)
    authorization = {"Authorization": f"Bearer {card['gateway_token']}"}
    async with (
        internet(bookworm.host.address) as web,
        web.post(f"{card['url']}webhook", json={"message": "on bookworm"}, headers=authorization) as response,
    ):
        assert "on bookworm" in (await response.json())["response"]
    async with TelegramUser(card["telegram_id"]) as owner:
        await owner.write("hello bookworm")
        assert "hello bookworm" in await owner.read(wait=45)


async def test_a_wildcard_certificate_serves_all_names(bookworm: lab.Vps, image: Image) -> None:
    prepare(platform_tls_mode="dns01").check()
    context = ssl.create_default_context(cafile=str(lab.CA_BUNDLE))
    name = f"anything.{bookworm.host.domain}"
    with (
        socket.create_connection((bookworm.host.address, 443), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=name) as connection,
    ):
        certificate = connection.getpeercert()
    assert certificate is not None
    assert ("DNS", f"*.{bookworm.host.domain}") in certificate["subjectAltName"]
    assert bookworm.exec("systemctl", "is-active", "clawdeploy-wildcard.timer") == "active"


async def test_without_a_domain_bots_share_one_sandboxed_origin(
    bookworm: lab.Vps, image: Image, tmp_path: Path
) -> None:
    origin = f"https://{bookworm.host.address}"
    without = {name: value for name, value in ENV_FILE.items() if name != "BASE_DOMAIN"}
    write_env(without | {"PUBLIC_BASE_URL": origin})
    prepare(platform_tls_mode="internal", platform_remote_bots=False).check()
    result = tmp_path / "bot.json"
    deploy(image, owner="4242", rotate_gateway_token=True, result_file=str(result)).check()
    card = result_of(result)
    assert card["url"].startswith(f"{origin}/")
    root = bookworm.exec("cat", "/var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt")
    async with internet(bookworm.host.address, authority=root) as web:
        async with web.post(
            f"{card['url']}webhook",
            json={"message": "by path"},
            headers={"Authorization": f"Bearer {card['gateway_token']}"},
        ) as response:
            assert "by path" in (await response.json())["response"]
            assert response.headers["Content-Security-Policy"] == "sandbox"
            assert response.headers["X-Content-Type-Options"] == "nosniff"
        async with web.get(f"{origin}/nosuchbot/health") as response:
            assert response.status == 404


def test_uninstalling_leaves_the_vps_as_it_was_and_open_to_its_operator(
    bookworm: lab.Vps, before: str
) -> None:
    def uninstall() -> Run:
        confirmed = {"confirm": "vps12"}
        return run_playbook(ROOT / "playbooks" / "uninstall.yml", lab.INVENTORY, confirmed, host="vps12")

    uninstall().check()
    assert packages(bookworm) == before
    assert bookworm.exec("find", "/", "-xdev", "-iname", "*clawdeploy*") == ""
    assert "clawdeploy" not in bookworm.exec("systemctl", "list-units", "--all", "--no-legend")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((bookworm.host.address, 443), timeout=10)
    assert uninstall().check().changed == 0
