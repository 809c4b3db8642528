"""Models out of an object store: signed, resumed, checked, and fetched once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fake_bucket import KEY, REGION, FakeBucket, run_fake_bucket
from octavo.errors import ModelLoadError, SourceForbiddenError, SourceUnreachableError
from octavo.loading.bucket_signature import Credentials, signed_headers
from octavo.loading.bucket_store import PAUSES_S
from octavo.loading.model_files import find_model
from tiny_models import make_tiny_model

URI = "s3://models/tiny/v1"
WEIGHTS = "tiny/v1/model.safetensors"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeBucket]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY.secret_access_key)
    monkeypatch.setenv("AWS_REGION", REGION)
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    folder = make_tiny_model("llama", tmp_path / "source")
    with run_fake_bucket("models") as bucket:
        monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.url)
        files = {f"tiny/v1/{path.name}": path.read_bytes() for path in folder.iterdir()}
        unwanted = {"tiny/v1/README.md": b"x", "tiny/v1/a.bin": b"x", "tiny/v1/onnx/a.json": b"x"}
        bucket.objects = files | unwanted | {"tiny/v12/config.json": b"another model"}
        yield bucket


def entry(size: str = "2", etag: str = "e") -> bytes:
    """A listing of one object."""
    listed = f"<Key>tiny/v1/a.json</Key><Size>{size}</Size><ETag>{etag}</ETag>"
    return f"<ListBucketResult><Contents>{listed}</Contents></ListBucketResult>".encode()


def find(tmp_path: Path) -> Path:
    return find_model(URI, download_dir=str(tmp_path / "cache"))


def seen(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}


def test_signature_is_the_one_of_amazons_example() -> None:
    """ "Signature Calculations: GET Object" in the S3 API reference."""
    credentials = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    headers = signed_headers(
        "https://examplebucket.s3.amazonaws.com/test.txt",
        {},
        {"Range": "bytes=0-9"},
        credentials,
        "us-east-1",
        datetime(2013, 5, 24, tzinfo=UTC),
    )
    assert headers["Authorization"].endswith(
        "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    )


@pytest.mark.parametrize("is_multipart", [False, True], ids=["md5", "sha256"])
def test_model_is_fetched_whole_and_nothing_else(
    bucket: FakeBucket, tmp_path: Path, is_multipart: bool
) -> None:
    bucket.is_multipart = is_multipart
    folder = find(tmp_path)
    wanted = {key.rsplit("/", 1)[-1]: value for key, value in bucket.objects.items()}
    assert seen(folder) == {
        name: wanted[name]
        for name in (
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        )
    } | {"config.json": bucket.objects["tiny/v1/config.json"]}


def test_second_fetch_sends_nothing_and_a_new_object_is_noticed(
    bucket: FakeBucket, tmp_path: Path
) -> None:
    find(tmp_path)
    bucket.downloads.clear()
    find(tmp_path)
    assert not bucket.downloads
    bucket.objects[WEIGHTS] = b"new" + bucket.objects[WEIGHTS]
    folder = find(tmp_path)
    assert set(bucket.downloads) == {WEIGHTS}
    assert seen(folder)["model.safetensors"] == bucket.objects[WEIGHTS]


def test_many_at_once_fetch_once(bucket: FakeBucket, tmp_path: Path) -> None:
    """kserve 5116: every pod downloads again."""
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda _: find(tmp_path), range(4)))) == 1
    assert bucket.downloads[WEIGHTS] == len(bucket.objects[WEIGHTS])


def test_broken_download_goes_on_where_it_ended(bucket: FakeBucket, tmp_path: Path) -> None:
    bucket.breaks_after[WEIGHTS] = 1000
    folder = find(tmp_path)
    assert seen(folder)["model.safetensors"] == bucket.objects[WEIGHTS]
    assert bucket.downloads[WEIGHTS] == len(bucket.objects[WEIGHTS])


@pytest.mark.parametrize("is_multipart", [False, True], ids=["md5", "sha256"])
def test_damaged_object_is_refused_and_not_kept(
    bucket: FakeBucket, tmp_path: Path, is_multipart: bool
) -> None:
    bucket.is_multipart = is_multipart
    bucket.damaged.add(WEIGHTS)
    with pytest.raises(ModelLoadError, match="is damaged"):
        find(tmp_path)
    bucket.damaged.clear()
    assert seen(find(tmp_path))["model.safetensors"] == bucket.objects[WEIGHTS]


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3://models/absent", "holds no model"),
        ("s3://other/tiny", r"answered 404 \(NoSuchBucket\)"),
        ("s3://models/../x", "is no bucket"),
        ("s3://", "is no bucket"),
    ],
)
def test_what_is_not_there_is_said(
    bucket: FakeBucket, tmp_path: Path, uri: str, words: str
) -> None:
    with pytest.raises(ModelLoadError, match=words):
        find_model(uri, download_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("variable", "words"),
    [
        ("AWS_SECRET_ACCESS_KEY", r"403 \(SignatureDoesNotMatch\).*AWS_SECRET_ACCESS_KEY"),
        ("AWS_ACCESS_KEY_ID", r"403 \(InvalidAccessKeyId\).*AWS_ACCESS_KEY_ID"),
        ("AWS_REGION", r"403 \(SignatureDoesNotMatch\)"),
    ],
)
def test_what_is_wrong_with_a_key_is_said(
    bucket: FakeBucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    words: str,
) -> None:
    monkeypatch.setenv(variable, "wrong")
    with pytest.raises(SourceForbiddenError, match=words):
        find(tmp_path)


def test_nobody_may_read_what_is_not_public(
    bucket: FakeBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(SourceForbiddenError, match=r"403 \(AccessDenied\).*or nobody, without"):
        find(tmp_path)


def test_keys_of_any_characters_are_read(bucket: FakeBucket, tmp_path: Path) -> None:
    odd = "odd é+ü (v1) a&b=c'!*~ %25 #x <y>"
    bucket.objects |= {f"{odd}/config.json": b"{}", f"{odd}/a & b+c é.safetensors": b"weights"}
    folder = find_model(f"s3://models/{odd}", download_dir=str(tmp_path / "cache"))
    assert seen(folder) == {"config.json": b"{}", "a & b+c é.safetensors": b"weights"}


@pytest.fixture
def pauses_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Those that were made; they take no time."""
    made: list[float] = []
    monkeypatch.setattr("octavo.loading.bucket_store.time.sleep", made.append)
    return made


def test_a_store_that_is_busy_is_asked_again(
    bucket: FakeBucket, tmp_path: Path, pauses_s: list[float]
) -> None:
    bucket.num_busy = len(PAUSES_S)
    find(tmp_path)
    assert pauses_s == list(PAUSES_S)
    bucket.num_busy = len(PAUSES_S) + 1
    with pytest.raises(SourceUnreachableError, match=r"503 \(SlowDown\)"):
        find(tmp_path)


def test_a_store_that_goes_within_a_download_is_waited_for(
    bucket: FakeBucket, tmp_path: Path, pauses_s: list[float]
) -> None:
    bucket.breaks_after[WEIGHTS] = 1000
    bucket.num_lost = 3
    folder = find(tmp_path)
    assert seen(folder)["model.safetensors"] == bucket.objects[WEIGHTS]
    assert bucket.downloads[WEIGHTS] == len(bucket.objects[WEIGHTS])
    assert pauses_s


def test_a_key_is_sent_to_its_store_alone(
    bucket: FakeBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redirections are not followed: the token of temporary keys would go to wherever they lead."""
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    with run_fake_bucket("models") as other:
        bucket.leads_to = f"{other.url}/models"
        with pytest.raises(ModelLoadError, match=r"answered 307 .* set AWS_ENDPOINT_URL"):
            find(tmp_path)
        assert other.num_requests == 0


@pytest.mark.parametrize(
    ("listing", "words"),
    [
        (entry(size="abc"), "the size of 'tiny/v1/a.json' is 'abc'"),
        (entry(size="-5"), "the size of 'tiny/v1/a.json' is '-5'"),
        (entry(size="9" * 5000), "the size of 'tiny/v1/a.json' is '999"),
        (entry(etag="e&#13;&#10;Range: x"), r"the ETag of 'tiny/v1/a.json' is 'e\\r\\nRange"),
        (entry(etag="\u4e2d"), "the ETag of 'tiny/v1/a.json'"),
        (entry(etag=""), "the ETag of 'tiny/v1/a.json' is ''"),
        (b"<a>" + b" " * (1 << 23) + b"</a>", "a page of more than 8388608 bytes"),
        (b"<html><body>Log in", "no element found|unclosed"),
        (b"<a><NextContinuationToken>1</NextContinuationToken></a>", "more than 1000 pages"),
    ],
    ids=("size", "negative", "digits", "newline", "letters", "no-etag", "bytes", "html", "pages"),
)
def test_a_store_that_lists_anything_is_refused(
    bucket: FakeBucket, tmp_path: Path, listing: bytes, words: str
) -> None:
    bucket.listing = listing
    with pytest.raises(ModelLoadError, match=words):
        find(tmp_path)


def test_an_object_without_an_end_fills_no_disk(bucket: FakeBucket, tmp_path: Path) -> None:
    bucket.endless.add(WEIGHTS)
    size = len(bucket.objects[WEIGHTS])
    with pytest.raises(ModelLoadError, match=rf"is damaged \({size + 1} of {size} bytes"):
        find(tmp_path)
