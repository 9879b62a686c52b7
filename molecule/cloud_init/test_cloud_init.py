# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What role cloud_init has made of a system."""

import json
import re
import shlex

import pytest
import yaml

CONFIG = "/etc/cloud/cloud.cfg.d/99-cloudimg.cfg"
NOT_OF_USERS = {"datasource", "datasource_list", "system_info"}
"""What the schema of user data does not know, or not as it may stand in a system's files."""


def merged(host):
    """cloud-init's configuration as cloud-init itself reads it."""
    program = (
        'import json; from cloudinit import util; print(json.dumps(util.read_conf_with_confd("/etc/cloud/cloud.cfg")))'
    )
    return json.loads(host.check_output(f"python3 -c '{program}'"))


def release(host):
    return host.system_info.release.split(".")[0]


def test_exactly_one_flavour_is_installed(host):
    assert host.package("cloud-init").is_installed
    assert not host.package("one-context").is_installed


def test_the_partition_can_grow(host):
    assert host.exists("growpart")
    config = merged(host)
    assert config["growpart"] == {"mode": "auto", "devices": ["/"]}
    assert config["resize_rootfs"] is True


def test_the_list_of_data_sources_is_pinned_and_ds_identify_can_read_it(host):
    said = host.file(CONFIG).content_string.splitlines()
    assert "datasource_list: [NoCloud, ConfigDrive, OpenNebula, OpenStack, Ec2, None]" in said
    assert merged(host)["datasource_list"] == ["NoCloud", "ConfigDrive", "OpenNebula", "OpenStack", "Ec2", "None"]


def test_nobody_has_a_password_and_root_stays_out(host):
    config = merged(host)
    assert config["disable_root"] is True
    assert config["ssh_pwauth"] is False
    user = config["system_info"]["default_user"]
    assert (user["name"], user["lock_passwd"]) == ("debian", True)
    assert "passwd" not in user
    assert "plain_text_passwd" not in user


def test_host_keys_are_made_anew(host):
    config = merged(host)
    assert config["ssh_deletekeys"] is True
    assert config["ssh_genkeytypes"] == ["ed25519", "ecdsa", "rsa"]


def test_cloud_init_accepts_its_configuration(host):
    """By its own schema, where it has one for what stands in a system's files."""
    if release(host) == "11":
        pytest.skip("its cloud-init knows a schema of user data only")
    config = yaml.safe_load(host.file(CONFIG).content_string)
    text = "#cloud-config\n" + json.dumps({name: config[name] for name in config if name not in NOT_OF_USERS})
    checked = host.run(
        "printf '%s' "
        + shlex.quote(text)
        + " > /tmp/99.yaml; cloud-init schema --config-file /tmp/99.yaml; rm /tmp/99.yaml"
    )
    assert "Valid" in checked.stdout, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    "unit", ["systemd-networkd.service", "systemd-resolved.service", "ssh.service", "getty@tty1.service"]
)
def test_services_are_enabled(host, unit):
    assert host.service(unit).is_enabled


def test_each_card_asks_for_an_address(host):
    said = host.file("/etc/systemd/network/90-cloudimg-dhcp.network").content_string
    assert "Type=ether" in said
    assert "DHCP=yes" in said
    if release(host) == "11":
        assert host.file("/etc/network/interfaces").content_string.split("\n")[1:3] == [
            "auto lo",
            "iface lo inet loopback",
        ]
    else:
        assert not host.package("ifupdown").is_installed


def test_cloud_init_can_write_for_what_runs_the_network(host):
    renderer = merged(host)["system_info"]["network"]["renderers"][0]
    program = f"from cloudinit.net import renderers; print(renderers.NAME_TO_RENDERER[{renderer!r}].available())"
    assert host.check_output(f'python3 -c "{program}"') == "True"


def test_no_card_is_known_by_address_or_name(host):
    for path in (
        "/etc/network/interfaces.d/eth0",
        "/etc/udev/rules.d/70-persistent-net.rules",
        "/etc/systemd/network/80-dhcp.network",
    ):
        assert not host.file(path).exists, path
    assert host.file("/etc/udev/rules.d/75-persistent-net-generator.rules").linked_to == "/dev/null"
    found = host.run(
        "grep -rIiE 'hwaddr|macaddress|^uuid=' /etc/network /etc/systemd/network /etc/netplan /etc/NetworkManager"
    )
    assert found.stdout == ""


def test_names_are_resolved_by_systemd(host):
    assert host.check_output("readlink /etc/resolv.conf").lstrip("./") == "run/systemd/resolve/stub-resolv.conf"


def test_leases_are_kept_out_of_the_main_log(host):
    said = host.check_output("cat /etc/systemd/system/systemd-networkd.service.d/50-cloudimg-log.conf")
    assert "LogLevelMax=notice" in said


def test_logrotate_takes_the_file_of_leases(host):
    host.run_expect([0], "seq 100 > /var/log/dhcp.log")
    checked = host.run("logrotate --debug --force /etc/logrotate.d/cloudimg-dhcp")
    host.run_expect([0], "rm /var/log/dhcp.log")
    assert checked.rc == 0
    assert [line for line in checked.stderr.splitlines() if "error:" in line and "state file" not in line] == []
    assert "log needs rotating" in checked.stdout + checked.stderr


@pytest.mark.parametrize("unit", ["vmcontext-prolog.service", "vmcontext.service"])
def test_a_medium_of_context_starts_its_scripts(host, unit):
    wants = f"/etc/systemd/system/dev-disk-by\\x2dlabel-CONTEXT.device.wants/{unit}"
    assert host.file(wants).is_symlink
    if release(host) != "11":  # there it asks for users that only a running systemd knows
        checked = host.run(f"systemd-analyze verify --man=no /etc/systemd/system/{unit}")
        assert [line for line in checked.stderr.splitlines() if "vmcontext" in line] == []


def test_no_unit_waits_for_itself(host):
    """systemd would leave one out to break the circle, such as cloud-init."""
    units = ["multi-user.target", "cloud-init.target", "vmcontext-prolog.service", "vmcontext.service"]
    checked = host.run(f"systemd-analyze verify --man=no {' '.join(units)}")
    assert "Unit" not in checked.stdout
    assert [line for line in checked.stderr.splitlines() if "cycle" in line or "dependency on" in line] == []


def test_without_a_medium_nothing_happens(host):
    host.run_expect([0], "/bin/sh /usr/lib/cloudimg/vmcontext.sh prolog")
    host.run_expect([0], "/bin/sh /usr/lib/cloudimg/vmcontext.sh epilog")
    host.run_expect([2], "/bin/sh /usr/lib/cloudimg/vmcontext.sh context")


def test_the_kernel_talks_on_both_consoles(host):
    lines = [
        line
        for line in host.file("/boot/grub/grub.cfg").content_string.splitlines()
        if "/boot/vmlinuz-6.1.0-1-amd64" in line
    ]
    assert lines
    for line in lines:
        assert "console=tty0 console=ttyS0,115200" in line
    assert re.search(r"^serial --unit=0 --speed=115200", host.file("/boot/grub/grub.cfg").content_string, re.MULTILINE)


def test_one_login_on_the_screen(host):
    said = host.check_output("systemd-analyze cat-config systemd/logind.conf")
    assert re.findall(r"^(NAutoVTs|ReserveVT)=(.*)$", said, re.MULTILINE) == [("NAutoVTs", "1"), ("ReserveVT", "1")]


def test_the_initramfs_would_have_drivers_of_each_hypervisor(host):
    assert host.file("/etc/initramfs-tools/conf.d/zz-cloudimg").content_string == "MODULES=most\n"
    hook = host.file("/etc/initramfs-tools/hooks/cloudimg")
    assert hook.mode == 0o755
    assert {"virtio_blk", "virtio_net", "xen-blkfront", "xen-netfront"} <= set(hook.content_string.split())
    host.run_expect([0], "/etc/initramfs-tools/hooks/cloudimg prereqs")


def test_the_guest_agent_is_there(host):
    assert host.package("qemu-guest-agent").is_installed


def test_sshd_takes_the_configuration(host):
    host.run_expect([0], "mkdir -p /run/sshd; ssh-keygen -A")
    said = host.check_output("sshd -T")
    host.run_expect([0], "rm /etc/ssh/ssh_host_*")
    assert "passwordauthentication no" in said.splitlines()
