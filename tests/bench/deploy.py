"""How long preparing and deploying take, on a virgin VPS in a container (everything on one machine).

Figures (seconds unless said otherwise):
  prepare_first_s, prepare_second_s, prepare_second_changed  prepare_host on a virgin VPS, and again
  deploy_one_s     one more bot: start of ansible-playbook → healthy through TLS and card shown (median of 3)
  floor_s          what no deploy can beat: network create + hardened docker run + agent healthy (median of 3)
  deploy_30_s, rerun_30_s, rerun_30_changed                  thirty bots in one run, and the same run again
"""

import json
import statistics
from typing import Any

from tests import lab
from tests.bench.figures import progress, report
from tests.playbooks import ROOT, Run, run_playbook, write_env
from tests.standin.build import build_image

PREPARE = ROOT / "playbooks" / "prepare_host.yml"
DEPLOY = ROOT / "deploy_bot.yml"

FLOOR = """
set -eu
start=$(date +%s.%N)
docker network create --subnet 10.200.255.240/28 \
  --opt com.docker.network.bridge.name=cb-floor floor >/dev/null
docker run --detach --name floor --network floor --ip 10.200.255.242 --init --read-only \
  --tmpfs /tmp:size=16m,noexec,nosuid --cap-drop ALL --security-opt no-new-privileges --pids-limit 64 \
  --memory 64m --memory-swap 64m --cpus 0.5 --user "$USER_IDS" \
  --env NULLCLAW_HOME=/nullclaw-data/.nullclaw --env NULLCLAW_WORKSPACE=/nullclaw-data/workspace \
  --mount "type=bind,src=$BOT/data,dst=/nullclaw-data" \
  --mount "type=bind,src=$BOT/config/config.json,dst=/nullclaw-data/.nullclaw/config.json,readonly" \
  "$IMAGE" gateway --port 3000 --host 0.0.0.0 >/dev/null
until curl -fsS -m 1 http://10.200.255.242:3000/health >/dev/null 2>&1; do :; done
end=$(date +%s.%N)
docker rm --force floor >/dev/null
docker network rm floor >/dev/null
python3 -c "print($end - $start)"
"""


def bot(number: int) -> dict[str, str]:
    """The deploy entry of one bot that the simulated Telegram knows."""
    return {"token": f"{8_000_000_000 + number}:AA{number:033d}", "owner": "4242"}


def main() -> None:
    """Measure on a VPS made for it, and report."""
    figures: dict[str, Any] = {}
    lab.down()
    vps = lab.up()
    image = build_image(lab.CA_BUNDLE)
    options = {"bot_image": image.tag, "bot_image_archive": image.archive}
    write_env()

    def play(what: str, playbook: Any, variables: dict[str, Any]) -> Run:
        progress(what)
        run = run_playbook(playbook, lab.INVENTORY, variables).check()
        progress(f"{what}: {run.seconds:.1f} s, changed={run.changed}")
        return run

    figures["prepare_first_s"] = play("prepare a virgin VPS", PREPARE, {}).seconds
    again = play("prepare it again", PREPARE, {})
    figures |= {"prepare_second_s": again.seconds, "prepare_second_changed": again.changed}

    # Nobody owns it yet, so a second container with its configuration takes no messages from it.
    play("deploy a first bot (loads the image)", DEPLOY, {"token": bot(0)["token"], **options})
    ones = [play(f"deploy one more bot ({n} of 3)", DEPLOY, {**bot(n), **options}).seconds for n in (1, 2, 3)]
    figures["deploy_one_s"] = statistics.median(ones)

    progress("measure the floor: docker network create + docker run + healthy")
    (some,) = json.loads(vps.exec("clawctl", "list", "--json"))["bots"][:1]
    home = f"/var/lib/clawdeploy/bots/{some['id']}"
    setting = f"IMAGE={image.tag} USER_IDS={some['uid']}:{some['uid']} BOT={home}"
    floors = [float(vps.exec("sh", "-c", f"{setting}\n{FLOOR}")) for _ in range(3)]
    figures["floor_s"] = statistics.median(floors)

    thirty = {"bots": [bot(number) for number in range(100, 130)], **options}
    figures["deploy_30_s"] = play("deploy thirty bots in one run", DEPLOY, thirty).seconds
    rerun = play("the same thirty again", DEPLOY, thirty)
    figures |= {"rerun_30_s": rerun.seconds, "rerun_30_changed": rerun.changed}

    report("deploy", {name: round(value, 2) for name, value in figures.items()})


if __name__ == "__main__":
    main()
