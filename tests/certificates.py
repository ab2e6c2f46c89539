"""TLS certificates and keys, made for the occasion."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

__all__ = ["Papers", "make_papers", "pem", "signed", "write"]


@dataclass(frozen=True)
class Papers:
    """Files: an authority's certificate, and a certificate and key that it signed for each role."""

    authority: str
    server: tuple[str, str]
    client: tuple[str, str]
    locked_key: str


def write(path: Path, *contents: bytes) -> str:
    path.write_bytes(b"".join(contents))
    return str(path)


def signed(name: str, issuer: Any = None, signer: Any = None) -> tuple[x509.Certificate, Any]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key((signer or key).public_key()),
            critical=False,
        )
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=issuer is None,
                crl_sign=issuer is None,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    return builder.sign(signer or key, hashes.SHA256()), key


def pem(key: Any, password: bytes | None = None) -> bytes:
    lock: Any = serialization.NoEncryption()
    if password:
        lock = serialization.BestAvailableEncryption(password)
    encoded: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock
    )
    return encoded


def make_papers(folder: Path) -> Papers:
    """An authority, and what it has signed."""
    authority, authority_key = signed("Test Authority")

    def pair(role: str) -> tuple[str, str, Any]:
        certificate, key = signed(role, authority, authority_key)
        encoded = certificate.public_bytes(serialization.Encoding.PEM)
        return write(folder / f"{role}.pem", encoded), write(folder / f"{role}.key", pem(key)), key

    server, client = pair("server"), pair("client")
    return Papers(
        authority=write(
            folder / "authority.pem", authority.public_bytes(serialization.Encoding.PEM)
        ),
        server=server[:2],
        client=client[:2],
        locked_key=write(folder / "locked.key", pem(client[2], b"a password")),
    )
