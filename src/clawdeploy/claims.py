"""The owner claim of a bot: a one-time code, kept as a hash until somebody opens its link on Telegram.

Everything here is data and files; the listener is in ``claim_service``.
"""

import hmac
import json
from typing import Literal

import msgspec

from clawdeploy.errors import ClawError
from clawdeploy.files import private_directory, write_atomic
from clawdeploy.host import Paths
from clawdeploy.models import Bot, BotId
from clawdeploy.tokens import new_claim_code, sha256_hex

OWNER_PLACEHOLDER = "__CLAWDEPLOY_OWNER__"
CODE_SECONDS = 24 * 3600
WRONG_PER_USER = 5
WRONG_PER_BOT = 50

Verdict = Literal["right", "wrong", "silent"]


class ClaimFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file in the bot's directory becomes once the owner is known."""

    path: str
    content: str

    def for_owner(self, owner: str) -> str:
        """The content with the placeholder, inside a JSON string, replaced by the escaped owner."""
        return self.content.replace(OWNER_PLACEHOLDER, json.dumps(owner)[1:-1])


class FileState(msgspec.Struct, frozen=True):
    """What the config hash covers of one file."""

    mode: str
    sha256: str


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """``claims/<id>.json``. Times are Unix seconds.

    file and files come from ``home apply``; until then the claim waits. update_id is the last message that
    counted. claimed_by is written first when the right code arrives, so that what follows can be done again
    after a crash.
    """

    bot: BotId
    code_hash: str
    expires: int
    wrong: int = 0
    wrong_by_user: dict[str, int] = {}
    file: ClaimFile | None = None
    files: dict[str, FileState] = {}
    claimed_by: str | None = None
    update_id: int | None = None

    @property
    def issued(self) -> int:
        return self.expires - CODE_SECONDS

    def open(self, now: int) -> bool:
        """Whether a code can still be redeemed."""
        return now < self.expires and self.wrong < WRONG_PER_BOT

    def pending(self, now: int) -> bool:
        """Whether the listener has something to do for this bot."""
        return self.file is not None and (self.claimed_by is not None or self.open(now))


def issue(bot_id: str, now: int, previous: Claim | None = None) -> tuple[Claim, str]:
    """A claim with a new code, and the code itself, which is kept nowhere. Wrong guesses start from none."""
    code = new_claim_code()
    fresh = Claim(bot=bot_id, code_hash=sha256_hex(code), expires=now + CODE_SECONDS)
    if previous is not None:
        kept = {"file": previous.file, "files": previous.files, "update_id": previous.update_id}
        fresh = msgspec.structs.replace(fresh, **kept)
    return fresh, code


def link(username: str, code: str) -> str:
    """What the owner opens; Telegram then sends ``/start <code>`` to the bot."""
    return f"https://t.me/{username}?start={code}"


def judge(claim: Claim, user: str, code: str, now: int) -> tuple[Claim, Verdict]:
    """Compare a guess. A right one is ``right`` only while the code is open and the user has guesses left.

    Returns the claim with the guess counted; the caller stores it before it answers.
    """
    guesses = claim.wrong_by_user.get(user, 0)
    if claim.claimed_by is not None or not claim.open(now) or guesses >= WRONG_PER_USER:
        return claim, "silent"
    if hmac.compare_digest(sha256_hex(code), claim.code_hash):
        return claim, "right"
    counted = {**claim.wrong_by_user, user: guesses + 1}
    return msgspec.structs.replace(claim, wrong=claim.wrong + 1, wrong_by_user=counted), "wrong"


def config_hash(files: dict[str, FileState]) -> str:
    """One hash over path, mode and content of every file the deploy renders (seeds are the bot's own)."""
    listed = sorted((path, state.mode, state.sha256) for path, state in files.items())
    return sha256_hex(json.dumps(listed))


def load_claim(paths: Paths, bot_id: str) -> Claim | None:
    try:
        return msgspec.json.decode((paths.claims / f"{bot_id}.json").read_bytes(), type=Claim)
    except FileNotFoundError:
        return None


def save_claim(paths: Paths, claim: Claim) -> None:
    private_directory(paths.claims)
    write_atomic(paths.claims / f"{claim.bot}.json", msgspec.json.encode(claim).decode())


def remove_claim(paths: Paths, bot_id: str) -> None:
    (paths.claims / f"{bot_id}.json").unlink(missing_ok=True)


def pending_claims(paths: Paths, now: int) -> dict[str, Claim]:
    """Every claim the listener has to serve, by bot id."""
    claims = (load_claim(paths, file.stem) for file in sorted(paths.claims.glob("[a-z0-9]*.json")))
    return {claim.bot: claim for claim in claims if claim is not None and claim.pending(now)}


def renew(paths: Paths, bot: Bot, now: int) -> tuple[Claim, str]:
    """Store and return a new claim and its code for a bot that has no owner yet; the old code is void.

    ClawError("owner_known") if the bot needs none, "claim_missing" if a deploy has to prepare it first.
    """
    if bot.owner is not None or bot.open_to_all:
        who = "is open to everyone" if bot.open_to_all else f"belongs to Telegram user {bot.owner}"
        raise ClawError("owner_known", f"{bot.label} {who}: deploy it with another `owner` to change that.")
    previous = load_claim(paths, bot.id)
    if previous is None or previous.file is None:
        raise ClawError(
            "claim_missing", f"{bot.label} is not ready to be claimed: run deploy_bot for it again."
        )
    claim, code = issue(bot.id, now, previous)
    save_claim(paths, claim)
    return claim, code
