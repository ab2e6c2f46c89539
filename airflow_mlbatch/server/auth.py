"""Who may talk to the server: a password, pairs of tokens, and patience with guessers.

Law: neither a password nor a token is stored, only their hashes. A token says nothing by itself: it is
a random text whose hash is looked up. Renewing or revoking a pair ends both its tokens.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import secrets
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from airflow_mlbatch.errors import InputError
from airflow_mlbatch.server.store import Pair, Store

__all__ = ["Account", "Denied", "Throttled", "Tokens", "load_account"]

ACCOUNT_FILE = "account.json"
_DAY = 24 * 3600
REFRESH_SECONDS = 14 * _DAY
RENEWABLE_SECONDS = 90 * _DAY

# About 50 ms and 16 MB a guess.
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 2**14, 8, 1
_MOST_HASHES_AT_ONCE = 2

_FREE_FAILURES = 5
_LONGEST_PENALTY = 60.0
_MOST_REMEMBERED = 10_000


class Denied(Exception):
    """The credentials or the token are not accepted; the message says which."""


class Throttled(Exception):
    """Too many failures in a row.

    :param seconds: when to try again
    """

    def __init__(self, seconds: int) -> None:
        super().__init__(f"Too many failed logins: try again in {seconds} seconds")
        self.seconds = seconds


# --- the account ---------------------------------------------------------------------------------


class _StoredAccount(msgspec.Struct):
    username: str
    salt: str
    password_hash: str


@dataclass(frozen=True)
class Account:
    """The one user of the server.

    :param is_changed: whether tokens given out before have to be forgotten
    """

    username: str
    salt: bytes
    password_hash: bytes
    is_changed: bool = False


def load_account(
    folder: Path, username: str, password: str | None, tell: Callable[[str], None]
) -> Account:
    """Read the account of a data folder, or make it.

    :param password: what the environment says; without it the stored one stays, or one is made up
    :param tell: shows the password that was made up. It is stored afterwards: one that nobody has
        seen is good for nothing.
    :raises InputError: the file in the folder cannot be read or written
    """
    path = folder / ACCOUNT_FILE
    known = _read_account(path)
    if known is not None and known.username == username and _is_good(known, password):
        return known
    if password is None:
        password = secrets.token_urlsafe(15)
        tell(password)
    salt = secrets.token_bytes(16)
    password_hash = _scrypt(password, salt)
    stored = _StoredAccount(username, salt.hex(), password_hash.hex())
    write_secret(path, msgspec.json.encode(stored))
    return Account(username, salt, password_hash, is_changed=True)


def _is_good(known: Account, password: str | None) -> bool:
    return password is None or hmac.compare_digest(
        _scrypt(password, known.salt), known.password_hash
    )


def _read_account(path: Path) -> Account | None:
    try:
        stored = msgspec.json.decode(path.read_bytes(), type=_StoredAccount)
        salt, password_hash = bytes.fromhex(stored.salt), bytes.fromhex(stored.password_hash)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, ValueError, OSError) as error:
        raise InputError(f"data folder: {path} cannot be read: {error}") from None
    return Account(stored.username, salt, password_hash)


def _scrypt(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(
        password.encode("utf-8", "surrogatepass"), salt=salt, n=_SCRYPT_N, r=_SCRYPT_R, p=_SCRYPT_P
    )


def write_secret(path: Path, content: bytes) -> None:
    """Write a file that only this user can read, whole or not at all.

    :raises InputError: it cannot be written
    """
    beside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        with suppress(OSError):
            os.unlink(beside)
        raise InputError(f"data folder: {path} cannot be written: {error}") from None


# --- tokens --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NewTokens:
    """What a login or a renewal gives out."""

    access_token: str
    refresh_token: str
    now: float
    lifetime: int


class Tokens:
    """Gives out pairs of tokens and judges them.

    :param lifetime: seconds that an access token lives
    """

    def __init__(self, store: Store, account: Account, lifetime: int) -> None:
        self._store, self._account, self._lifetime = store, account, lifetime
        self._by_access_hash: dict[str, Pair] = {}
        self._by_refresh_hash: dict[str, Pair] = {}
        self._throttle = _Throttle()
        self._hashing = asyncio.Semaphore(_MOST_HASHES_AT_ONCE)

    async def start(self) -> None:
        """Take up the pairs that are still good."""
        forget = float("inf") if self._account.is_changed else time.time()
        await self._store.write(self._store.remove_pairs, forget)
        for pair in self._store.pairs():
            self._remember(pair)

    async def log_in(self, username: str, password: str, client: str) -> NewTokens:
        """Exchange a password for tokens.

        :param client: address of the caller: failures count for it and this user alone
        :raises Denied: wrong user or password
        :raises Throttled: too many failures before
        """
        self._throttle.check(client, username)
        account = self._account
        async with self._hashing:
            # Once more: while this one waited, others of the same guesser have failed.
            self._throttle.check(client, username)
            found = await asyncio.to_thread(_scrypt, password, account.salt)
        # Both are compared whatever the first says: a wrong name takes as long as a wrong password.
        is_user = hmac.compare_digest(
            username.encode("utf-8", "replace"), account.username.encode()
        )
        if not hmac.compare_digest(found, account.password_hash) or not is_user:
            self._throttle.count_failure(client, username)
            raise Denied("Invalid username or password")
        self._throttle.forget(client, username)
        now = time.time()
        return await self._new_pair(username, now, now + RENEWABLE_SECONDS, None)

    async def renew(self, refresh_token: str) -> NewTokens:
        """Exchange a refresh token for a new pair; the old pair is dead.

        :raises Denied: the token is unknown, used, revoked or expired
        """
        pair = self._by_refresh_token(refresh_token)
        return await self._new_pair(pair.user, time.time(), pair.renewable_until, pair)

    async def revoke(self, refresh_token: str) -> None:
        """End a pair.

        :raises Denied: the token is unknown, used, revoked or expired
        """
        pair = self._by_refresh_token(refresh_token)
        await self._store.write(self._store.remove_pair, pair.refresh_hash)
        self._forget(pair)

    def check(self, access_token: str) -> None:
        """Judge an access token.

        :raises Denied: it is unknown, expired, or its pair was renewed or revoked
        """
        pair = self._by_access_hash.get(_hash(access_token))
        if pair is None or pair.access_expires_at <= time.time():
            raise Denied("Invalid or expired access token")

    def _by_refresh_token(self, refresh_token: str) -> Pair:
        # Nobody can steer a hash: the time that the look-up takes gives nothing away.
        pair = self._by_refresh_hash.get(_hash(refresh_token))
        if pair is None or pair.expires_at <= time.time():
            raise Denied("Invalid or expired refresh token")
        return pair

    async def _new_pair(
        self, user: str, now: float, renewable_until: float, old: Pair | None
    ) -> NewTokens:
        access_token, refresh_token = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        pair = Pair(
            refresh_hash=_hash(refresh_token),
            access_hash=_hash(access_token),
            user=user,
            access_expires_at=now + self._lifetime,
            expires_at=min(now + REFRESH_SECONDS, renewable_until),
            renewable_until=renewable_until,
        )
        if not await self._store.write(self._store.add_pair, pair, old and old.refresh_hash):
            raise Denied("Invalid or expired refresh token")
        if old is not None:
            self._forget(old)
        self._forget_expired(now)
        self._remember(pair)
        return NewTokens(access_token, refresh_token, now, self._lifetime)

    def _remember(self, pair: Pair) -> None:
        self._by_access_hash[pair.access_hash] = pair
        self._by_refresh_hash[pair.refresh_hash] = pair

    def _forget(self, pair: Pair) -> None:
        self._by_access_hash.pop(pair.access_hash, None)
        self._by_refresh_hash.pop(pair.refresh_hash, None)

    def _forget_expired(self, now: float) -> None:
        for pair in list(self._by_refresh_hash.values()):
            # An access token may be made to live longer than its refresh token.
            if max(pair.expires_at, pair.access_expires_at) <= now:
                self._forget(pair)


def _hash(token: str) -> str:
    # Random tokens cannot be guessed from a hash, so a quick one will do.
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


class _Throttle:
    """Makes guessers wait: after some failures in a row each further one doubles the wait."""

    def __init__(self) -> None:
        self._failures: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()

    def check(self, client: str, username: str) -> None:
        _, until = self._failures.get((client, username), (0, 0.0))
        left = until - time.monotonic()
        if left > 0:
            raise Throttled(max(1, round(left + 0.5)))

    def count_failure(self, client: str, username: str) -> None:
        count, _ = self._failures.pop((client, username), (0, 0.0))
        count += 1
        penalty = min(2.0 ** (count - _FREE_FAILURES), _LONGEST_PENALTY)
        until = time.monotonic() + penalty if count >= _FREE_FAILURES else 0.0
        self._failures[client, username] = (count, until)
        # The oldest are forgotten first: guessing with many names must not fill the memory.
        while len(self._failures) > _MOST_REMEMBERED:
            self._failures.popitem(last=False)

    def forget(self, client: str, username: str) -> None:
        self._failures.pop((client, username), None)
