"""``secrets/<id>.json``: a bot's secrets in clear, root 0600, never on the bot's own disk."""

import msgspec

from clawdeploy.files import private_directory, write_atomic
from clawdeploy.host import Paths
from clawdeploy.models import BotSecrets


def load_secrets(paths: Paths, bot_id: str) -> BotSecrets | None:
    """The bot's secrets, or None if there is no file (a new bot, or a lost file: both get new ones)."""
    try:
        return msgspec.json.decode((paths.secrets / f"{bot_id}.json").read_bytes(), type=BotSecrets)
    except FileNotFoundError:
        return None


def save_secrets(paths: Paths, bot_id: str, secrets: BotSecrets) -> None:
    private_directory(paths.secrets)
    write_atomic(paths.secrets / f"{bot_id}.json", msgspec.json.encode(secrets).decode())


def remove_secrets(paths: Paths, bot_id: str) -> None:
    (paths.secrets / f"{bot_id}.json").unlink(missing_ok=True)
