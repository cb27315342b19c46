"""The pipelines that docs/ci.md offers work: what they call exists, their secrets land in private files."""

import os
import re
import shlex
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import ROOT, Run

PAGE = (ROOT / "docs/ci.md").read_text()
BLOCKS = {
    yaml_text.splitlines()[0].removeprefix("# file: "): yaml.safe_load(yaml_text)
    for yaml_text in re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
}
SECRETS = ("SSH_PRIVATE_KEY", "SSH_KNOWN_HOSTS", "DOTENV", "VAULT_PASSWORD")
PRIVATE_FILES = (".ssh/id_fleet", ".ssh/known_hosts", ".vault-password")
# Versions that are known to exist; a new one is added here after a look at the action's releases.
ACTIONS = {"actions/checkout@v4", "actions/setup-python@v5", "actions/upload-artifact@v4"}


def github_steps() -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = BLOCKS[".github/workflows/bots.yml"]["jobs"]["bots"]["steps"]
    return steps


def gitlab_scripts(*keys: str) -> str:
    pipeline = BLOCKS[".gitlab-ci.yml"]
    jobs = [job for name, job in pipeline.items() if name != "stages"]
    return "\n".join(line for job in jobs for key in keys for line in job.get(key, []))


SCRIPTS = {
    "github": "\n".join(step["run"] for step in github_steps() if "run" in step),
    "gitlab": gitlab_scripts("before_script", "script", "after_script"),
}


def ansible_commands(script: str) -> list[list[str]]:
    """Calls of ansible-playbook, without what their output is piped to."""
    lines = (line.partition(" | ")[0] for line in script.splitlines())
    return [shlex.split(line) for line in lines if line.startswith("ansible-playbook ")]


def test_page_holds_both_pipelines_and_the_list_of_bots() -> None:
    assert set(BLOCKS) == {"bots.yml (before encryption)", ".github/workflows/bots.yml", ".gitlab-ci.yml"}


@pytest.mark.parametrize("system", SCRIPTS)
def test_scripts_are_valid_shell(system: str) -> None:
    done = subprocess.run(["bash", "-n"], input=SCRIPTS[system], capture_output=True, text=True)
    assert done.stderr == ""


@pytest.mark.parametrize("system", SCRIPTS)
def test_playbooks_run_in_check_mode_for_review_and_for_real_on_a_tag(system: str) -> None:
    review: list[str] = []
    deploy: list[str] = []
    for command in ansible_commands(SCRIPTS[system]):
        playbook = next(word for word in command if word.endswith(".yml") and not word.startswith("@"))
        (review if "--check" in command else deploy).append(playbook)
    assert review == deploy == ["playbooks/prepare_host.yml", "deploy_bot.yml"]


def test_commands_are_accepted_by_ansible(tmp_path: Path, run: Run) -> None:
    bots = tmp_path / "bots.yml"
    bots.write_text(yaml.safe_dump(BLOCKS["bots.yml (before encryption)"]))
    commands = {tuple(command) for script in SCRIPTS.values() for command in ansible_commands(script)}
    for command in commands:
        words = [word.replace("@bots.yml", f"@{bots}") for word in command]
        run(*words, "--syntax-check", ANSIBLE_INVENTORY="inventory/example")


@pytest.mark.parametrize("system", SCRIPTS)
def test_requirements_that_are_installed_exist_and_are_locked(system: str) -> None:
    for name in re.findall(r"-r (\S+)", SCRIPTS[system]):
        assert "--hash=sha256:" in (ROOT / name).read_text()


def test_bots_and_extra_variables_are_settings_that_deploy_bot_knows() -> None:
    from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._entries import OPTIONS

    bots = BLOCKS["bots.yml (before encryption)"]
    assert list(bots) == ["bots"]
    assert {name for bot in bots["bots"] for name in bot} <= set(OPTIONS)
    playbook = (ROOT / "playbooks/deploy_bot.yml").read_text()
    used = {name for script in SCRIPTS.values() for name in re.findall(r"-e ([a-z_]+)=", script)}
    assert used == {"result_file"}
    assert "result_file" in playbook


@pytest.mark.parametrize("name", SECRETS)
def test_every_secret_is_explained_and_used_by_both(name: str) -> None:
    assert f"| `{name}` |" in PAGE
    assert f"secrets.{name} " in PAGE
    assert f'"${name}"' in SCRIPTS["gitlab"]


def test_no_other_secret_is_used() -> None:
    assert set(re.findall(r"secrets\.([A-Z_]+)", PAGE)) == set(SECRETS)


def test_no_secret_is_an_argument_of_a_program() -> None:
    for script in SCRIPTS.values():
        for line in script.splitlines():
            if any(f"${name}" in line for name in SECRETS):
                assert line.startswith(("printf ", "install -m 0600 ")), line


def run_and_list(script: str, home: Path, secrets: dict[str, str]) -> dict[str, int]:
    """Runs a script in an empty home; returns the mode of each file that it made there."""
    subprocess.run(
        ["bash", "-euc", script],
        cwd=home,
        env={"PATH": os.environ["PATH"], "HOME": str(home), **secrets},
        check=True,
    )
    return {
        str(path.relative_to(home)): stat.S_IMODE(path.stat().st_mode)
        for path in home.rglob("*")
        if path.is_file()
    }


def test_github_writes_secrets_only_for_its_own_user(tmp_path: Path) -> None:
    step = next(step for step in github_steps() if "env" in step and "DOTENV" in step["env"])
    modes = run_and_list(step["run"], tmp_path, {name: f"value of {name}" for name in SECRETS})
    assert modes == dict.fromkeys([*PRIVATE_FILES, ".env"], 0o600)
    assert (tmp_path / ".vault-password").read_text() == "value of VAULT_PASSWORD\n"


def test_gitlab_writes_secrets_only_for_its_own_user(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    for name in SECRETS:
        (given / name).write_text(f"value of {name}\n")
    home = tmp_path / "home"
    home.mkdir()
    script = "\n".join(
        line for line in gitlab_scripts("before_script").splitlines() if line.startswith(("mkdir", "install"))
    )
    modes = run_and_list(script, home, {name: str(given / name) for name in SECRETS})
    assert modes == dict.fromkeys([*PRIVATE_FILES, ".env"], 0o600)
    assert (home / ".vault-password").read_text() == "value of VAULT_PASSWORD\n"


def test_both_remove_the_secrets_and_the_readable_result(tmp_path: Path) -> None:
    clean = {
        "github": next(step["run"] for step in github_steps() if step.get("if") == "always()"),
        "gitlab": gitlab_scripts("after_script"),
    }
    for system, script in clean.items():
        home = tmp_path / system
        (home / ".ssh").mkdir(parents=True)
        for name in (".ssh/id_fleet", ".vault-password", ".env", "result.json"):
            (home / name).write_text("secret")
        assert run_and_list(script, home, {}) == {}, system


def test_the_result_that_is_kept_is_encrypted(tmp_path: Path, run: Run) -> None:
    upload = next(step for step in github_steps() if "upload-artifact" in step.get("uses", ""))
    assert upload["with"]["path"] == "result.json"
    assert BLOCKS[".gitlab-ci.yml"]["deploy"]["artifacts"]["paths"] == ["result.json"]
    (tmp_path / "plain.json").write_text('{"gateway_token": "cg_example"}')
    (tmp_path / "password").write_text("password")
    for script in SCRIPTS.values():
        (line,) = [line for line in script.splitlines() if line.startswith("ansible-vault encrypt ")]
        words = shlex.split(line.replace("~/result.json", "plain.json"))
        run(*words, cwd=tmp_path, ANSIBLE_VAULT_PASSWORD_FILE=str(tmp_path / "password"))
        assert (tmp_path / "result.json").read_text().startswith("$ANSIBLE_VAULT;")


@pytest.mark.parametrize("system", SCRIPTS)
def test_the_log_shows_neither_token_nor_claim_link(system: str, tmp_path: Path) -> None:
    (line,) = [line for line in SCRIPTS[system].splitlines() if "result_file=" in line]
    assert "set -o pipefail" in SCRIPTS[system].splitlines()
    card = "Gateway token: cg_ab-cd_EF12\n1. Open https://t.me/my_bot?start=x-Y_9 in Telegram.\nURL: https://a.b/\n"
    (tmp_path / "card").write_text(card)
    shown = subprocess.run(
        ["bash", "-c", f"cat card | {line.partition(' | ')[2]}"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    expected = (
        "Gateway token: cg_***\n1. Open https://t.me/my_bot?start=*** in Telegram.\nURL: https://a.b/\n"
    )
    assert shown == expected


def test_actions_are_pinned_to_versions_that_exist() -> None:
    assert {step["uses"] for step in github_steps() if "uses" in step} == ACTIONS
