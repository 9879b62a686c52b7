# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is pushed, under which tags, and by whose credentials: without a registry."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _oci_sbom
from ansible_collections.cloudimg.factory.plugins.module_utils import _oci_describe as describe
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._oci_auth import Login, challenge, stored
from ansible_collections.cloudimg.factory.plugins.module_utils._oci_registry import (
    Found,
    Repository,
    check_reference,
    fallback_tag,
    manifest,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

HOST = "registry.example.org"
SHA256 = hashlib.sha256(b"image").hexdigest()


def make(**changes: t.Any) -> _descriptor.Descriptor:
    build = _descriptor.Descriptor(
        image="debian-12",
        identifier=_descriptor.stable_identifier("debian-12"),
        version="1.0",
        title="Debian 12",
        description="Minimal Debian 12",
        os=_descriptor.OperatingSystem("debian", "12", "x86_64"),
        min_disk=(3 << 30) + 1,
        memory=512,
        artifacts=(
            _descriptor.Artifact("ova", "a.ova", 9, 9, {"sha256": "0" * 64}),
            _descriptor.Artifact("qcow2", "a.qcow2", 5, 9, {"sha256": SHA256}),
        ),
        created="2025-01-31T12:00:00Z",
        provenance=_descriptor.Provenance("1" * 64, "7.2", "0.1.0"),
    )
    return dataclasses.replace(build, **changes)


def test_tags_and_annotations_are_those_that_sites_look_for() -> None:
    found = describe.package(make(), describe.Options(), "d")
    assert (found.moving, found.dated) == ("12", f"12-2025-01-31-{SHA256[:8]}")
    document = found.manifest.document
    (layer,) = document["layers"]
    assert (layer["mediaType"], layer["digest"], layer["size"]) == ("application/x-qemu-disk", f"sha256:{SHA256}", 5)
    about = layer["annotations"]
    assert about["eu.egi.cloud.tag"] == f"2025-01-31-{SHA256[:8]}"
    wanted = {"os_distro": "debian", "os_version": "12", "os_type": "linux", "architecture": "x86_64"}
    wanted |= {"disk_format": "qcow2", "container_format": "bare", "min_disk": "4", "min_ram": "512"}
    assert {name: about[f"org.openstack.glance.{name}"] for name in wanted} == wanted
    assert "org.openstack.glance.os_admin_user" not in about
    assert document["config"]["mediaType"] == "application/vnd.oci.empty.v1+json"
    assert base64.b64decode(document["config"]["data"]) == b"{}"
    assert found.manifest == describe.package(make(), describe.Options(), "d").manifest


@pytest.mark.parametrize(
    ("version", "tag"), [("24.04", "24.04"), ("15-SP6", "15_SP6"), ("9 (x)", "9__x_"), (".1", "1"), ("-", "_")]
)
def test_the_tag_that_moves_has_no_hyphen(version: str, tag: str) -> None:
    found = describe.package(make(os=_descriptor.OperatingSystem("x", version, "x86_64")), describe.Options(), "d")
    assert found.moving == tag and check_reference(found.dated, "x") == found.dated
    match = describe.DATED.fullmatch(found.dated)
    assert match and match[1] == tag


def test_annotations_can_be_added_changed_and_left_out() -> None:
    options = describe.Options(
        annotations={"org.opencontainers.image.source": "https://git.example.org", "cloudimg.image": ""},
        layer_annotations={"org.openstack.glance.os_admin_user": "root", "eu.egi.cloud.description": "Other"},
    )
    document = describe.package(make(), options, "d").manifest.document
    assert document["annotations"]["org.opencontainers.image.source"] == "https://git.example.org"
    assert "cloudimg.image" not in document["annotations"]
    about = document["layers"][0]["annotations"]
    assert (about["org.openstack.glance.os_admin_user"], about["eu.egi.cloud.description"]) == ("root", "Other")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("ova", r"d: artifacts: ova is not among what can be pushed; .*; name one of them: a\.qcow2"),
        ("raw", r"raw is not among what can be pushed"),
    ],
)
def test_artifacts_that_no_site_can_use_are_refused(wanted: str, message: str) -> None:
    with pytest.raises(FactoryError, match=message):
        describe.package(make(), describe.Options(artifact=wanted), "d")
    only = make(artifacts=make().artifacts[:1])
    with pytest.raises(FactoryError, match=r"artifacts: has ova only; .*; export one of those"):
        describe.package(only, describe.Options(), "d")


def test_a_bill_of_materials_is_the_same_twice(tmp_path: Path) -> None:
    packages = {
        "os_release": {"ID": "almalinux", "ID_LIKE": "rhel centos fedora", "PRETTY_NAME": "AlmaLinux 9.5"},
        "packages": [
            {"name": "openssl", "version": "1:3.2.2-6.el9", "arch": "x86_64"},
            {"name": "bash", "version": "5.1.8-9.el9", "arch": "x86_64"},
            {"name": "bash", "version": "5.1.8-9.el9", "arch": "x86_64"},
        ],
    }
    build = make(os=_descriptor.OperatingSystem("almalinux", "9.5", "x86_64"))
    text = _oci_sbom.render(build, packages, f"sha256:{SHA256}")
    again = {**packages, "packages": packages["packages"][::-1]}
    assert text == _oci_sbom.render(build, again, f"sha256:{SHA256}")
    document = json.loads(text)
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.5")
    assert document["metadata"]["timestamp"].startswith("2025-01-31T12:00:00")
    assert document["metadata"]["component"]["hashes"] == [{"alg": "SHA-256", "content": SHA256}]
    found = {row["name"]: row.get("purl") for row in document["components"]}
    assert found["bash"] == "pkg:rpm/almalinux/bash@5.1.8-9.el9?arch=x86_64&distro=almalinux-9.5"
    assert "openssl@3.2.2-6.el9?arch=x86_64&distro=almalinux-9.5&epoch=1" in found["openssl"]
    assert len(document["components"]) == 3


@pytest.mark.parametrize(("text", "problem"), [("{", "is not JSON"), ('{"packages": [1]}', "packages: must be a list")])
def test_packages_that_are_none(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "packages.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FactoryError, match=problem):
        _oci_sbom.read_packages(path)
    path.write_text("{}", encoding="utf-8")
    assert _oci_sbom.read_packages(path) is None


def config(tmp_path: Path, **content: t.Any) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def auth(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


@pytest.mark.parametrize(
    ("name", "entry", "login"),
    [
        (HOST, auth("jane:s:3cret"), Login("jane", "s:3cret")),
        (f"https://{HOST}", auth("jane:x"), Login("jane", "x")),
        (f"{HOST}/vo", auth("robot$vo+p:x"), Login("robot$vo+p", "x")),
        (HOST, {"username": "a", "password": "b"}, Login("a", "b")),
        (HOST, {"identitytoken": "idt"}, Login(identity_token="idt")),
    ],
)
def test_what_docker_has_stored(name: str, entry: dict[str, str], login: Login, tmp_path: Path) -> None:
    path = config(tmp_path, auths={"other.example.org": auth("x:y"), name: entry})
    assert stored(HOST, "vo/debian", path) == login


def test_the_most_special_credentials_count(tmp_path: Path) -> None:
    path = config(tmp_path, auths={HOST: auth("all:x"), f"{HOST}/vo": auth("vo:x")})
    assert stored(HOST, "vo/debian", path) == Login("vo", "x")
    assert stored(HOST, "vox/debian", path) == Login("all", "x")


def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    program = tmp_path / "docker-credential-test"
    program.write_text(f"#!/bin/sh\nread host\n{body}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def test_credential_helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = '\'{"ServerURL":"x","Username":"%s","Secret":"top"}\''
    helper(tmp_path, monkeypatch, f'[ "$1-$host" = get-{HOST} ] && echo {answer % "jane"}')
    assert stored(HOST, "a", config(tmp_path, credHelpers={HOST: "test"})) == Login("jane", "top")
    assert stored(HOST, "a", config(tmp_path, credsStore="test")) == Login("jane", "top")
    helper(tmp_path, monkeypatch, f"echo {answer % '<token>'}")
    assert stored(HOST, "a", config(tmp_path, credsStore="test")) == Login(identity_token="top")
    helper(tmp_path, monkeypatch, "echo credentials not found in native keychain; exit 1")
    path = config(tmp_path, credsStore="test", auths={HOST: auth("j:x")})
    assert stored(HOST, "a", path) == Login("j", "x")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "is not JSON; mend that file"),
        ("[]", "is no object"),
        (json.dumps({"auths": []}), "auths: must be an object"),
        (json.dumps({"auths": {HOST: {"auth": "***"}}}), f"auths.{HOST}.auth: is no Base64"),
        (json.dumps({"credsStore": "../../bin/sh"}), "credHelpers: is no name of a credential helper"),
        (json.dumps({"credsStore": "nowhere"}), "names docker-credential-nowhere, which is not installed"),
        (json.dumps({"credsStore": "test"}), "docker-credential-test failed with exit status 3"),
        (json.dumps({"auths": {}}), f"auth_file: has no credentials for {HOST}|has no credentials for {HOST}"),
    ],
)
def test_bad_files_of_credentials(content: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(tmp_path, monkeypatch, "echo this-is-secret; exit 3")
    path = tmp_path / "config.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(FactoryError) as caught:
        stored(HOST, "a", path)
    assert re.search(problem, str(caught.value)) and "secret" not in str(caught.value)


def test_the_files_of_docker_and_podman_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert stored(HOST, "a") is None
    (tmp_path / ".docker").mkdir()
    config(tmp_path / ".docker", auths={HOST: auth("docker:x")})
    assert stored(HOST, "a") == Login("docker", "x")
    other = tmp_path / "other"
    other.mkdir()
    config(other, auths={HOST: auth("env:x")})
    monkeypatch.setenv("DOCKER_CONFIG", str(other))
    assert stored(HOST, "a") == Login("env", "x")


def test_challenges() -> None:
    text = 'Bearer realm="https://auth.example.org/token",service="harbor",scope="repository:a:pull,push"'
    scheme, fields = challenge(text)
    assert scheme == "bearer" and fields["scope"] == "repository:a:pull,push"
    assert challenge('Basic realm="x"') == ("basic", {"realm": "x"})
    assert challenge("Negotiate") == ("negotiate", {})


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"repository": "Debian"}, "repository: 'Debian' is no name of a repository"),
        ({"repository": "a/../b"}, "is no name of a repository"),
        ({"registry": "https://u:p@x.example.org"}, "registry: is no place for a password"),
    ],
)
def test_bad_places(options: dict[str, str], problem: str) -> None:
    with pytest.raises(FactoryError, match=problem):
        Repository({"registry": HOST, "repository": "a", "username": "u", **options}, Progress("x"), write=False)


@pytest.mark.parametrize("text", ["a/b", "-a", "sha256:12", "x" * 129, ""])
def test_bad_references(text: str) -> None:
    with pytest.raises(FactoryError, match="is no tag, nor sha256:<hex>"):
        check_reference(text, "reference")


def test_a_referrer_names_its_subject() -> None:
    subject = manifest([], {}, artifact_type="a/b")
    found = manifest([], {"x": "y"}, artifact_type="c/d", subject=subject.describe())
    about = found.describe()
    assert found.document["subject"] == {key: subject.describe()[key] for key in ("mediaType", "digest", "size")}
    assert (about["artifactType"], about["annotations"]) == ("c/d", {"x": "y"})
    assert Found(found.data, found.media_type).digest == found.digest
    assert fallback_tag(found.digest) == "sha256-" + found.digest[7:]
