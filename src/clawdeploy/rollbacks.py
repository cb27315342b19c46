"""``rollbacks/<id>.json``: what a bot was before its last upgrade, root 0600, for the way back.

Written before the first change of an upgrade, so that no crash in the middle loses it. Data and files only.
"""

from typing import Literal

import msgspec

from clawdeploy import claims
from clawdeploy.claims import ClaimFile, FileState
from clawdeploy.containers import ContainerSpec
from clawdeploy.files import private_directory, write_atomic
from clawdeploy.host import Paths
from clawdeploy.models import Bot, BotId, Edge
from clawdeploy.storage import HomeFile, file_state


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One bot's way back.

    run, ended: of which upgrade, and whether that came to its end; files: its managed files; absent: those
    that the upgrade added; claim_file and claim_files: of its claim, while nobody has claimed it;
    retired: what pins the image that the upgrade before this one replaced, which nobody needs any more.
    """

    bot: BotId
    run: str
    image: str
    image_digest: str
    config_hash: str
    interface: Literal["api", "ui"]
    llm_refusal: Literal["message", "error"]
    edge: Edge
    owner: str | None
    container: ContainerSpec
    files: tuple[HomeFile, ...]
    absent: tuple[str, ...]
    claim_file: ClaimFile | None = None
    claim_files: dict[str, FileState] = {}
    ended: bool = False
    retired: str = ""

    def cut_off(self, bot: Bot) -> bool:
        """Whether the bot is still leased to the upgrade; to be asked when that is dead for sure."""
        return not self.ended and self.run == bot.lease_run

    def facts_of(self, bot: Bot) -> Bot:
        """The bot as it is now, but with what the upgrade changed as it was before."""
        return msgspec.structs.replace(
            bot,
            image=self.image,
            image_digest=self.image_digest,
            config_hash=self.config_hash_for(bot.owner),
            interface=self.interface,
            llm_refusal=self.llm_refusal,
            edge=self.edge,
        )

    def files_for(self, owner: str | None) -> tuple[HomeFile, ...]:
        """The files as they were before, for whoever owns the bot by now."""
        claimed = self.claim_file
        if claimed is None or owner is None or owner == self.owner:
            return self.files
        return tuple(
            msgspec.structs.replace(file, content=claimed.for_owner(owner))
            if file.path == claimed.path
            else file
            for file in self.files
        )

    def config_hash_for(self, owner: str | None) -> str:
        """Hash of ``files_for``."""
        files = self.files_for(owner)
        if files == self.files:
            return self.config_hash
        return claims.config_hash(
            {file.path: file_state(file) for file in files if file.path in self.claim_files}
        )


def load(paths: Paths, bot_id: str) -> Point | None:
    try:
        return msgspec.json.decode((paths.rollbacks / f"{bot_id}.json").read_bytes(), type=Point)
    except FileNotFoundError:
        return None


def save(paths: Paths, point: Point) -> None:
    private_directory(paths.rollbacks)
    write_atomic(paths.rollbacks / f"{point.bot}.json", msgspec.json.encode(point).decode())


def remove(paths: Paths, bot_id: str) -> None:
    (paths.rollbacks / f"{bot_id}.json").unlink(missing_ok=True)
