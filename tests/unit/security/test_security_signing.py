"""Signed messages: only what a known sender signed is executed."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest

pytest.importorskip("cryptography")

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from kombu.serialization import registry

from celery_clone import security
from celery_clone.exceptions import ImproperlyConfigured, SecurityError
from celery_clone.security import disable_untrusted_serializers, setup_security
from celery_clone.security.certificate import Certificate, CertStore, FSCertStore
from celery_clone.security.key import PrivateKey
from celery_clone.security.serialization import SecureSerializer, register_auth
from celery_clone.security.utils import get_digest_algorithm, reraise_errors
from celery_clone.utils.serialization import b64decode, b64encode

PEM = serialization.Encoding.PEM


class Sender:
    """Somebody with a key and a certificate of it, both as text."""

    def __init__(self, name="shop", days=1, key=None, password=None, serial=None):
        key = key or rsa.generate_private_key(65537, 2048)
        protection = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        self.key = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, protection).decode()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.now(timezone.utc)
        self.cert = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(serial or x509.random_serial_number())
            .not_valid_before(now - timedelta(days=10))
            .not_valid_after(now + timedelta(days=days))
            .sign(key, hashes.SHA256())
            .public_bytes(PEM)
            .decode()
        )


@pytest.fixture(scope="module")
def shop():
    return Sender("shop", serial=17)


@pytest.fixture(scope="module")
def stranger():
    return Sender("stranger")


def serializer_of(sender: Sender, *trusted: Sender, **options) -> SecureSerializer:
    store = CertStore()
    for one in trusted:
        store.add_cert(Certificate(one.cert))
    return SecureSerializer(PrivateKey(sender.key), Certificate(sender.cert), store, **options)


@pytest.fixture
def kombu_tables():
    """The tables of serializers are put back after the test."""
    names = (
        "_encoders",
        "_decoders",
        "_default_encode",
        "_default_content_type",
        "_default_content_encoding",
    )
    names += ("_disabled_content_types", "type_to_name", "name_to_type")
    copies = {name: _copy(getattr(registry, name)) for name in names}
    yield registry
    for name, value in copies.items():
        setattr(registry, name, value)


def _copy(value):
    return value.copy() if hasattr(value, "copy") else value


# -- keys and certificates


def test_a_certificate_knows_its_issuer_and_number(shop):
    cert = Certificate(shop.cert)
    assert cert.get_id() == "shop 17"
    assert cert.get_issuer() == "shop"
    assert cert.get_serial_number() == 17
    assert not cert.has_expired()
    assert cert.get_pubkey().key_size == 2048


def test_what_a_key_signed_its_certificate_verifies(shop):
    digest = get_digest_algorithm()
    signature = PrivateKey(shop.key).sign("text", digest)
    Certificate(shop.cert).verify(b"text", signature, digest)
    with pytest.raises(SecurityError, match="Bad signature"):
        Certificate(shop.cert).verify(b"other", signature, digest)


def test_a_key_may_have_a_password():
    sender = Sender(password=b"secret")
    assert PrivateKey(sender.key, "secret").sign(b"x", get_digest_algorithm("sha512"))
    for password in (None, "wrong"):
        with pytest.raises(SecurityError, match="Invalid private key"):
            PrivateKey(sender.key, password)


@pytest.mark.parametrize("text", ["", "not a key"])
def test_texts_that_are_no_keys_or_certificates(text):
    with pytest.raises(SecurityError, match="Invalid private key"):
        PrivateKey(text)
    with pytest.raises(SecurityError, match="Invalid certificate"):
        Certificate(text)


def test_only_rsa_is_supported():
    sender = Sender(key=ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(SecurityError, match="Make an RSA key"):
        PrivateKey(sender.key)
    with pytest.raises(SecurityError, match="Non-RSA certificates"):
        Certificate(sender.cert)


def test_an_expired_certificate_verifies_nothing():
    old = Sender(days=-1)
    assert Certificate(old.cert).has_expired()
    with pytest.raises(SecurityError, match="Expired certificate.*new one"):
        serializer_of(old, old).deserialize(serializer_of(old).serialize("x"))


def test_a_certificate_is_trusted_once(shop, stranger):
    store = CertStore()
    store.add_cert(Certificate(shop.cert))
    with pytest.raises(SecurityError, match="Duplicate certificate: 'shop 17'"):
        store.add_cert(Certificate(shop.cert))
    with pytest.raises(SecurityError, match="Unknown certificate: 'nobody'"):
        store["nobody"]
    assert store[b"shop 17"] is next(store.itercerts())


def test_a_folder_or_a_pattern_of_certificates(tmp_path, shop, stranger):
    (tmp_path / "shop.pem").write_text(shop.cert)
    (tmp_path / "stranger.pem").write_text(stranger.cert)
    assert len(list(FSCertStore(str(tmp_path)).itercerts())) == 2
    assert [cert.get_issuer() for cert in FSCertStore(str(tmp_path / "sh*.pem")).itercerts()] == ["shop"]
    (tmp_path / "old.pem").write_text(Sender("old", days=-1).cert)
    with pytest.raises(SecurityError, match=r"Expired certificate.*old\.pem"):
        FSCertStore(str(tmp_path))


# -- messages


@pytest.mark.parametrize("value", ["text", {"a": [1, None]}, "\x00\x01", ""])
@pytest.mark.parametrize("digest", ["sha256", "sha512"])
def test_a_message_of_a_trusted_sender_is_read(shop, value, digest):
    both = serializer_of(shop, shop, digest=digest)
    assert both.deserialize(both.serialize(value)) == value


def test_what_is_signed_may_be_made_by_another_serializer(shop):
    message = serializer_of(shop, serializer="pickle").serialize({1, 2})
    assert serializer_of(shop, shop).deserialize(message) == {1, 2}


def test_a_message_of_a_stranger_is_refused(shop, stranger):
    with pytest.raises(SecurityError, match="Unknown certificate"):
        serializer_of(shop, shop).deserialize(serializer_of(stranger).serialize("x"))


def test_a_message_that_was_changed_is_refused(shop):
    both = serializer_of(shop, shop)
    changed = b64encode(b64decode(both.serialize("give 1")).replace(b"give 1", b"give 9"))
    with pytest.raises(SecurityError, match="Bad signature"):
        both.deserialize(changed)


@pytest.mark.parametrize("message", ["", "bm90IHNpZ25lZA==", "%%%"])
def test_a_message_that_is_not_signed_is_refused(shop, message):
    with pytest.raises(SecurityError, match="Unable to deserialize"):
        serializer_of(shop, shop).deserialize(message)


def test_what_cannot_be_encoded_is_told(shop):
    with pytest.raises(SecurityError, match="Unable to serialize"):
        serializer_of(shop).serialize(object())


def test_signing_needs_a_key_and_verifying_a_store():
    with pytest.raises(SecurityError, match="security_key"):
        SecureSerializer().serialize("x")
    with pytest.raises(SecurityError, match="security_cert_store"):
        SecureSerializer().deserialize("x")


def test_an_unknown_digest_is_refused():
    with pytest.raises(SecurityError, match="Unknown digest: 'md17'"):
        SecureSerializer(digest="md17")


def test_errors_of_the_library_become_ours():
    with pytest.raises(SecurityError, match="no: InvalidSignature") as caught, reraise_errors("no: {0!r}"):
        raise InvalidSignature
    assert isinstance(caught.value.__cause__, InvalidSignature)
    with pytest.raises(KeyError), reraise_errors():
        raise KeyError


# -- setting up


@pytest.fixture
def files(tmp_path, shop):
    (tmp_path / "key").write_text(shop.key)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "cert").write_text(shop.cert)
    return tmp_path


def app_with(files=None, **settings):
    conf = {
        "task_serializer": "auth",
        "accept_content": ["auth"],
        "security_key": files and str(files / "key"),
        "security_key_password": None,
        "security_certificate": files and str(files / "store" / "cert"),
        "security_cert_store": files and str(files / "store" / "*"),
        "security_digest": "sha256",
    }
    return SimpleNamespace(conf=SimpleNamespace(**{**conf, **settings}))


def test_everything_is_signed_after_the_set_up(files, kombu_tables):
    setup_security(app=app_with(files))
    content_type, encoding, body = registry.dumps({"a": 1})
    assert content_type == "application/data"
    assert registry.loads(body, content_type, encoding) == {"a": 1}
    assert "application/x-python-serialize" in registry._disabled_content_types


def test_files_may_be_given_by_hand(files, kombu_tables):
    given = app_with(files)
    setup_security(
        key=given.conf.security_key,
        cert=given.conf.security_certificate,
        store=given.conf.security_cert_store,
        digest="sha512",
        serializer="json",
        allowed_serializers=["pickle"],
        app=app_with(),
    )
    assert "application/x-python-serialize" not in registry._disabled_content_types


def test_missing_files_are_asked_for(kombu_tables):
    with pytest.raises(ImproperlyConfigured, match="security_cert_store"):
        setup_security(app=app_with())


@pytest.mark.parametrize(
    "settings",
    [{"task_serializer": "json"}, {"accept_content": ["auth", "json"]}, {"accept_content": None}],
    ids=str,
)
def test_signing_without_verifying_is_refused(files, kombu_tables, settings):
    with pytest.raises(ImproperlyConfigured, match="no point in signing"):
        setup_security(app=app_with(files, **settings))


def test_the_current_app_is_the_default(files, kombu_tables, monkeypatch):
    monkeypatch.setattr(security, "get_current_app", lambda: app_with(files))
    setup_security()
    assert registry.name_to_type["auth"] == "application/data"


def test_half_a_set_up_is_possible(shop, kombu_tables):
    register_auth(shop.key, None, shop.cert)
    assert registry.dumps("x", serializer="auth")[0] == "application/data"


def test_serializers_that_run_code_can_be_refused(kombu_tables):
    disable_untrusted_serializers(["json"])
    assert "application/x-python-serialize" in registry._disabled_content_types


def test_without_the_library_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    monkeypatch.delitem(sys.modules, "celery_clone.security.utils")
    with pytest.raises(ImproperlyConfigured, match=r"pip install celery_clone\[auth\]"):
        __import__("celery_clone.security.utils")
