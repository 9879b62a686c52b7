# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Operations on files, and the lists of them that the roles bring."""

from __future__ import annotations

import pytest
import yaml

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._file_operations import Operation, perform, select


@pytest.fixture
def root(tmp_path):
    """A small system."""
    for name, text in {
        "etc/ssh/ssh_host_rsa_key": "secret",
        "etc/ssh/sshd_config": "Port 22",
        "var/log/syslog": "said",
        "var/log/empty": "",
        "var/log/app/old.gz": "x",
        "tmp/a/b": "x",
        "proc/log": "the kernel's",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "var/log/link").symlink_to("/etc/passwd")
    return tmp_path


def do(root, dry=False, **what):
    """Perform an operation."""
    return perform(
        Operation("x", "x", **{key: tuple(v) if isinstance(v, list) else v for key, v in what.items()}), root, dry=dry
    )


def test_remove(root):
    assert do(root, remove=["/etc/ssh/ssh_host_*", "/nowhere/*"]) == ["/etc/ssh/ssh_host_rsa_key"]
    assert [path.name for path in (root / "etc/ssh").iterdir()] == ["sshd_config"]
    assert do(root, remove=["/etc/ssh/ssh_host_*"]) == []


def test_empty_keeps_the_directory(root):
    assert do(root, empty=["/tmp"]) == ["/tmp/a"]
    assert list((root / "tmp").iterdir()) == []


def test_truncate_keeps_files_and_leaves_links_alone(root):
    assert do(root, truncate=["/var/log/**/*"]) == ["/var/log/syslog", "/var/log/app/old.gz"]
    assert (root / "var/log/syslog").read_text() == ""
    assert (root / "var/log/link").is_symlink()


def test_write_and_links(root):
    assert do(root, write={"/etc/new/file": "text"}, links={"/etc/id": "/etc/machine-id", "/no/such/x": "y"}) == [
        "/etc/new/file",
        "/etc/id",
    ]
    assert (root / "etc/new/file").read_text() == "text"
    assert (root / "etc/id").readlink().as_posix() == "/etc/machine-id"
    assert do(root, write={"/etc/new/file": "text"}, links={"/etc/id": "/etc/machine-id"}) == []


def test_write_keeps_the_mode_and_replaces_a_link(root):
    (root / "etc/ssh/sshd_config").chmod(0o600)
    (root / "etc/target").write_text("untouched")
    (root / "etc/link").symlink_to("target")
    do(root, write={"/etc/ssh/sshd_config": "Port 23", "/etc/link": "own"})
    assert (root / "etc/ssh/sshd_config").stat().st_mode & 0o777 == 0o600
    assert (root / "etc/target").read_text() == "untouched"


def test_homes_are_those_of_accounts_and_below_home(root):
    (root / "etc/passwd").write_text(
        "root:x:0:0::/root:/bin/sh\nbin:x:2:2::/bin:/bin/sh\nweb:x:33:33::/var/www:/bin/sh\nup:x:34:34::/../up:/bin/sh\n"
        "nobody:x:65534:65534::/nonexistent:/bin/sh\nwhole:x:1:1::/:/bin/sh\nshort\n"
    )
    for folder in ("root", "bin", "var/www", "home/alice", "home/bob", "."):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / ".zhistory").write_text("x")
    (root / "home/link").symlink_to("/var")
    assert do(root, remove=["~/.zhistory"]) == [
        "/var/www/.zhistory",
        "/root/.zhistory",
        "/home/bob/.zhistory",
        "/home/alice/.zhistory",
    ]
    with pytest.raises(FactoryError, match="is not an absolute path"):
        do(root, remove=["~/../x"])


def test_edit_removes_lines_and_keeps_the_file(root):
    path = root / "etc/ssh/sshd_config"
    path.write_bytes(b"Port 22\r\n# caf\xe9\nPort 23\nlast")
    path.chmod(0o600)
    inode = path.stat().st_ino
    assert do(root, edit={"/etc/ssh/*_config": ["^Port 2[23]$"]}) == ["/etc/ssh/sshd_config"]
    assert path.read_bytes() == b"# caf\xe9\nlast"
    assert (path.stat().st_ino, path.stat().st_mode & 0o777) == (inode, 0o600)
    assert do(root, edit={"/etc/ssh/*_config": "^Port"}) == []
    with pytest.raises(FactoryError, match=r"^operation x: edit: '\(' is no regular expression: .*; correct it$"):
        do(root, edit={"/etc/ssh/sshd_config": ["("]})


def test_modes(root):
    assert do(root, modes={"/etc/ssh/*": "0600", "/var/log/link": "0600"}) == [
        "/etc/ssh/sshd_config",
        "/etc/ssh/ssh_host_rsa_key",
    ]
    assert (root / "etc/ssh/sshd_config").stat().st_mode & 0o777 == 0o600
    assert do(root, modes={"/etc/ssh/*": "600"}) == []
    with pytest.raises(FactoryError, match="modes: /etc: 'u=rw' is no mode; write octal digits"):
        do(root, modes={"/etc": "u=rw"})


def test_keep(root):
    assert do(root, remove=["/etc/ssh/*"], keep=["/etc/ssh/*_config"]) == ["/etc/ssh/ssh_host_rsa_key"]
    assert do(root, truncate=["/var/log/*"], keep=["/var/log/sys*"]) == []


def test_the_kernels_files_are_never_touched(root):
    assert do(root, remove=["/proc/*", "/*/log"]) == ["/var/log"]
    assert (root / "proc/log").exists()


def test_dry_changes_nothing(root):
    assert do(root, dry=True, remove=["/etc/ssh/*"], empty=["/tmp"], write={"/x": "y"}) != []
    assert len(list((root / "etc/ssh").iterdir())) == 2
    assert not (root / "x").exists()


@pytest.mark.parametrize("pattern", ["etc/x", "/etc/../x", ""])
def test_patterns_must_be_absolute(root, pattern):
    with pytest.raises(FactoryError, match="is not an absolute path"):
        do(root, remove=[pattern])


def test_select():
    operations = [Operation("a", "x"), Operation("b", "x", optional=True)]
    assert [op.name for op in select(operations, [], [])] == ["a"]
    assert [op.name for op in select(operations, ["a"], ["b"])] == ["b"]
    with pytest.raises(FactoryError, match=r"disabled: there is no operation 'c'; use one of: a, b"):
        select(operations, ["c"], [])
    with pytest.raises(FactoryError, match=r"disabled: there is no operation 'log-files'; did you mean logfiles\?"):
        select([Operation("logfiles", "x"), *operations], ["log-files"], [])
    with pytest.raises(FactoryError, match="enabled: there is no operation"):
        select(operations, [], ["c"])


@pytest.mark.parametrize(
    ("role", "variable"), [("sanitize", "__sanitize_operations"), ("cloud_init", "__cloud_init_operations")]
)
def test_the_roles_operations_make_sense(checkout, role, variable):
    data = yaml.safe_load((checkout / "roles" / role / "vars/main.yml").read_text(encoding="utf-8"))[variable]
    operations = [Operation(**entry) for entry in data]
    names = [operation.name for operation in operations]
    assert len(names) == len(set(names))
    for operation in operations:
        assert operation.description
        assert "\n" not in operation.description
        for pattern in (*operation.remove, *operation.empty, *operation.truncate, *operation.links):
            assert pattern.startswith(("/", "~/"))
